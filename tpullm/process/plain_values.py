"""Values of Python as JSON, and back: data alone, so that reading it runs no code of its sender.

A subclass becomes its kind (a `Counter` a `dict`), so equality with plain values stays and methods of its own do not.
"""

import builtins
import datetime
import decimal
import fractions
from collections import deque
from collections.abc import Callable
from typing import Any

_BIG = 1 << 64  # from here on JSON's decimals take the square of the time, or are refused

# A kind of value that JSON has not, its mark, and what makes JSON or plain values of it and a value of these.
_PARTS: dict[type, tuple[str, Callable, Callable]] = {
    list: ("list", list, list),
    tuple: ("tuple", list, tuple),
    dict: ("dict", lambda value: [list(pair) for pair in value.items()], dict),
    set: ("set", list, set),
    frozenset: ("frozenset", list, frozenset),
    deque: ("deque", list, deque),
    range: ("range", lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    complex: ("complex", lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    bytes: ("bytes", lambda value: [value.hex()], lambda parts: bytes.fromhex(*parts)),
    bytearray: ("bytearray", lambda value: [value.hex()], lambda parts: bytearray.fromhex(*parts)),
    fractions.Fraction: (
        "Fraction",
        lambda value: [value.numerator, value.denominator],
        lambda parts: fractions.Fraction(*parts),
    ),
    decimal.Decimal: ("Decimal", lambda value: [str(value)], lambda parts: decimal.Decimal(*parts)),
    datetime.datetime: (
        "datetime",
        lambda value: [value.isoformat()],
        lambda parts: datetime.datetime.fromisoformat(*parts),
    ),
    datetime.date: ("date", lambda value: [value.isoformat()], lambda parts: datetime.date.fromisoformat(*parts)),
    datetime.time: ("time", lambda value: [value.isoformat()], lambda parts: datetime.time.fromisoformat(*parts)),
    datetime.timedelta: (
        "timedelta",
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda parts: datetime.timedelta(*parts),
    ),
}
_MAKE = {mark: make for mark, _, make in _PARTS.values()}


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
    for kind, (mark, parts, _) in _PARTS.items():
        if isinstance(value, kind):
            return [mark, *(encode(part, other) for part in parts(value))]
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
        return _type(*parts)
    if mark not in _MAKE:
        return other(mark, *parts)
    return _MAKE[mark]([decode(part, other) for part in parts])


def _type(name: str) -> type:
    """A type of Python's own, such as `int`."""
    found = getattr(builtins, name, None)
    if not isinstance(found, type):
        raise ValueError(name)
    return found
