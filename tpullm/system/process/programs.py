"""A program that nobody trusts, in a process of its own, and what may be asked of it from another process.

`serve_program` runs the program. `Program` is the other end: it asks for names of the program, calls its functions, and
gets plain values as JSON, so that reading them runs no code of their sender. So what the program may do to its
interpreter changes no test: tests compare values of their own process. It learns the arguments of calls, and nothing
else.

An object that is not a plain value stays with the program, and is a `Remote` to the tests. It has no equality, order or
arithmetic with plain values: these would be the program's, and objects that are equal to all pass any test. A subclass
becomes its kind (a `Counter` a `dict`), so equality with plain values stays and methods of its own do not.
"""

import builtins
import datetime
import decimal
import fractions
import functools
import json
import operator
from collections import deque
from collections.abc import Callable
from typing import Any

from tpullm.system.process import child

_BIG = 1 << 64  # from here on JSON's decimals take the square of the time, or are refused

# A kind of value that JSON has not, what makes JSON or plain values of it, and a value of these; the first that fits.
_PARTS: dict[type, tuple[Callable, Callable]] = {
    **{kind: (list, kind) for kind in (list, tuple, set, frozenset, deque, bytes, bytearray)},
    dict: (lambda value: [list(pair) for pair in value.items()], dict),
    **{
        kind: (operator.attrgetter(*names), lambda parts, kind=kind: kind(*parts))
        for kind, names in {
            range: ("start", "stop", "step"),
            complex: ("real", "imag"),
            fractions.Fraction: ("numerator", "denominator"),
            datetime.timedelta: ("days", "seconds", "microseconds"),
        }.items()
    },
    **{
        kind: (lambda value: [value.isoformat()], lambda parts, kind=kind: kind.fromisoformat(*parts))
        for kind in (datetime.datetime, datetime.date, datetime.time)
    },
    decimal.Decimal: (lambda value: [str(value)], lambda parts: decimal.Decimal(*parts)),
}
_MAKE = {kind.__name__: make for kind, (_, make) in _PARTS.items()}


def encode(value: Any, other: Callable[[Any], list]) -> Any:
    """A value as JSON; `other` gives it, as a mark and one part, for what is no plain value."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -_BIG < value < _BIG else ["int", hex(value)]
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    for kind, (parts, _) in _PARTS.items():
        if isinstance(value, kind):
            return [kind.__name__, *(encode(part, other) for part in parts(value))]
    if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
        return ["type", value.__name__]
    return other(value)


def decode(found: Any, other: Callable[[str, Any], Any]) -> Any:
    """The value of JSON that nobody has checked; `other` gives that of another mark and its part.

    Raises:
        ValueError, TypeError, ArithmeticError, RecursionError: it is none of `encode`'s.
    """
    if not isinstance(found, list):
        if isinstance(found, dict):
            raise ValueError("an object")
        return found
    mark, *parts = found
    if mark == "int":
        return int(*parts, 16)
    if mark == "type":
        found = getattr(builtins, *parts, None)
        if not isinstance(found, type):
            raise ValueError(*parts)
        return found
    if mark not in _MAKE:
        return other(mark, *parts)
    return _MAKE[mark]([decode(part, other) for part in parts])


MOST_BYTES = 1 << 24  # of a message
_PUT_BACK: dict[type, Callable] = {
    list: lambda old, new: operator.setitem(old, slice(None), new),
    bytearray: lambda old, new: operator.setitem(old, slice(None), new),
    deque: lambda old, new: (old.clear(), old.extend(new)),
    dict: lambda old, new: (old.clear(), old.update(new)),
    set: lambda old, new: (old.clear(), old.update(new)),
}
_BETWEEN = ("lt", "le", "eq", "ne", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or")
_OF_ONE: dict[str, Callable] = {
    "__call__": lambda value, *arguments, **named: value(*arguments, **named),
    **{"__len__": len, "__iter__": iter, "__next__": next, "__bool__": bool, "__hash__": hash},
    **{"__repr__": repr, "__str__": str, "__neg__": operator.neg, "__abs__": abs},
    **{"__getitem__": operator.getitem, "__setitem__": operator.setitem, "__delitem__": operator.delitem},
    **{"__getattr__": getattr, "__setattr__": setattr, "__delattr__": delattr},
}
_OF_TWO: dict[str, Callable] = {
    **{f"__{name}__": getattr(operator, f"__{name}__") for name in _BETWEEN},
    "__instancecheck__": lambda kind, value: isinstance(value, kind),
}


class Gone(BaseException):
    """The program's process has ended, or what it answers is no answer.

    No `Exception`, so that few tests catch it; `Program.gone` remembers it in any case.
    """


class ProgramError(Exception):
    """An exception of the program's that Python does not have."""


class _Channel:
    """Messages of JSON over a descriptor."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def send(self, message: list) -> None:
        text = json.dumps(message)
        if len(text) > MOST_BYTES:
            raise ValueError(f"a value of {len(text):,} bytes is too long")
        child.send(self._descriptor, text)

    def receive(self) -> list:
        """The next message: a list whose parts nobody has checked. `Gone` if there is none."""
        size = int.from_bytes(self._read(8), "big")
        if size > MOST_BYTES:
            raise Gone
        try:
            found = json.loads(self._read(size))
        except (ValueError, RecursionError):
            raise Gone from None
        if not isinstance(found, list):
            raise Gone
        return found

    def _read(self, size: int) -> bytes:
        found = child.read(self._descriptor, size)
        if len(found) < size:
            raise Gone
        return found


class Program:
    """The program, as tests ask it.

    Args:
        descriptor: of the socket to the process that runs it.

    Attributes:
        gone: whether there was no answer once.
    """

    def __init__(self, descriptor: int):
        self._channel = _Channel(descriptor)
        self.gone = False
        self._functions: list[Callable] = []  # of the tests, which the program was given
        self._remotes: dict[int, Remote] = {}

    def run(self, text: str) -> None:
        """Run the program's text, once. Raises what it raises, as `ask`."""
        self.ask("run", text)

    def names(self) -> list[str]:
        """The names that the program has defined."""
        return [name for name in self.ask("names") if isinstance(name, str)]

    def ask(self, operation: str, *values: Any, **named: Any) -> Any:
        """The result of an operation of `serve_program`.

        Arguments that the program changes in place, such as a list that it sorts, are changed here too: those of
        `_PUT_BACK`, if they are arguments themselves.

        Raises:
            Gone: there is no answer.
            Exception: of Python, as the program raised it or the nearest; else `ProgramError`.
            TypeError: an argument is neither a plain value, nor a function, nor the program's.
        """
        message = [operation, encode([list(values), named], self._as_json)]
        try:
            self._channel.send(message)
            while (answer := self._channel.receive())[:1] == ["call"]:
                self._call_back(*self._values(answer[1:]))
            kind, found = answer[0], self._values(answer[1:])
        except (Gone, OSError, IndexError):  # it has ended, or says nothing
            self.gone = True
            raise Gone from None
        if kind == "raised":
            error = _exception_by_name(*found)
            if isinstance(error, StopIteration) and operation != "__next__":
                raise RuntimeError("StopIteration")  # as PEP 479: a test's `all(map(f, values))` would end and hold
            raise error
        result, changed = found
        for key, new in changed:
            argument = named[key] if isinstance(key, str) else values[key]
            _PUT_BACK[type(argument)](argument, new)
        return result

    def _values(self, content: list) -> list:
        """What a message says."""
        try:
            return [decode(part, self._of_json) for part in content]
        except (ValueError, TypeError, ArithmeticError, RecursionError, LookupError):
            raise Gone from None

    def _call_back(self, function: Any, arguments: Any) -> None:
        """The program calls a function of the tests."""
        if function not in self._functions or not isinstance(arguments, list):
            raise Gone
        try:
            answer = ["returned", encode(function(*arguments), self._as_json)]
        except Exception as error:
            answer = ["raised", [kind.__name__ for kind in type(error).__mro__], str(error)]
        self._channel.send(answer)

    def _as_json(self, value: Any) -> list:
        if isinstance(value, Remote):
            return ["remote", object.__getattribute__(value, "_number")]
        if not callable(value):
            raise TypeError(f"a program can't be given a {type(value).__name__}")
        if value not in self._functions:
            self._functions.append(value)
        return ["function", self._functions.index(value)]

    def _of_json(self, mark: str, number: Any) -> Any:
        if type(number) is not int or number < 0 or mark not in ("function", "remote"):
            raise ValueError(mark)
        if mark == "function":
            return self._functions[number]
        return self._remotes.setdefault(number, Remote(self, number))


class Remote:
    """An object of the program's."""

    __slots__ = ("_ask", "_number")
    __contains__ = None  # or a program could make an object that holds all

    def __init__(self, program: Program, number: int):
        object.__setattr__(self, "_ask", program.ask)
        object.__setattr__(self, "_number", number)


def _forwarded_method(name: str, between: bool) -> Callable:
    def asks(self: Remote, *values: Any, **named: Any) -> Any:
        if between and not isinstance(values[0], Remote):
            return False if name == "__instancecheck__" else NotImplemented
        if name == "__getattr__" and values[0].startswith("__array"):
            raise AttributeError(values[0])  # numpy would read the tests' memory at an address of the program's
        return object.__getattribute__(self, "_ask")(name, self, *values, **named)

    return asks


for _name in (*_OF_ONE, *_OF_TWO):
    setattr(Remote, _name, _forwarded_method(_name, _name in _OF_TWO))


def _exception_by_name(names: Any, text: Any) -> Exception:
    """The exception of the first of `names` that Python has. None that ends a process is raised here."""
    for name in names if isinstance(names, list) else ():
        kind = getattr(builtins, name, None) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, Exception) and kind not in (Exception, UnicodeError):
            try:
                return kind(text)
            except TypeError:  # it takes other arguments
                continue
    return ProgramError(text)


def serve_program(descriptor: int) -> None:
    """Run a program, and answer what the tests ask of it until they end."""
    channel, space, kept, numbers = _Channel(descriptor), {"__name__": "answer"}, [], {}

    def as_json(value: Any) -> list:
        if isinstance(value, functools.partial) and value.func is ask:
            return ["function", *value.args]
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            return encode(value.item(), as_json)
        if id(value) not in numbers:  # it is kept, so its id is its own
            numbers[id(value)] = len(kept)
            kept.append(value)
        return ["remote", numbers[id(value)]]

    def of_json(mark: str, number: int) -> Any:
        return kept[number] if mark == "remote" else functools.partial(ask, number)

    def ask(number: int, *arguments: Any) -> Any:
        """Call a function of the tests."""
        channel.send(["call", ["function", number], encode(list(arguments), as_json)])
        kind, *content = channel.receive()
        if kind == "raised":
            raise _exception_by_name(*content)
        return decode(*content, of_json)

    def name(wanted: str) -> Any:
        if wanted not in space:
            raise NameError(f"name '{wanted}' is not defined")
        return space[wanted]

    operations = {
        "run": lambda text: exec(compile(text, "answer", "exec"), space),
        "names": lambda: list(space),
        "name": name,
        **_OF_ONE,
        **_OF_TWO,
    }
    while True:
        operation, given = channel.receive()
        try:
            values, named = decode(given, of_json)
            arguments = dict(enumerate(values)) | named
            kept_in_place = {key: value for key, value in arguments.items() if type(value) in _PUT_BACK}
            before = {key: encode(value, as_json) for key, value in kept_in_place.items()}
            result = operations[operation](*values, **named)
            after = {key: encode(value, as_json) for key, value in kept_in_place.items()}
            changed = [["list", key, new] for key, new in after.items() if new != before[key]]
            answer = ["returned", encode(None if operation == "run" else result, as_json), ["list", *changed]]
            channel.send(answer)
        except Gone:
            raise
        except BaseException as error:  # SystemExit too
            names = [kind.__name__ for kind in type(error).__mro__]
            channel.send(["raised", ["list", *names], str(error)[:1000]])
