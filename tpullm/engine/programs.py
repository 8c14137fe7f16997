"""The programs of an engine: which are compiled, and how others are compiled while texts are written.

A program is compiled when it is first needed: a start compiles the few that most texts need. While a server answers, a
thread compiles; until it has, texts that need the program wait, and others do not. Threads that compile have a third of
the weight of others. XLA starts some with the first program, of the weight of who asked, so a start compiles so too.
"""

import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import jax

from tpullm.system import log
from tpullm.system.process.child import go_last

Run = Callable[..., Any]
TOLD_SECONDS = 2  # a shorter wait is not told
_NICE = 5  # see the begin


def dispatch(function: Callable, *arguments: Any, **static: Any) -> Any:
    """Compute what a jitted function returns."""
    return function(*arguments, **static)


def only_compile(function: Callable, *arguments: Any, **static: Any) -> Any:
    """Compile a jitted function for such arguments, arrays or their shapes: the shapes of what it returns."""
    lowered = function.lower(*arguments, **static)
    lowered.compile()
    return lowered.out_info


@cache
def _events() -> Counter:
    """How often JAX has asked for a compiled program, and found it in the cache, since this was first called."""
    found: Counter = Counter()
    jax.monitoring.register_event_listener(lambda event, **_: found.update([event]))
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: found.update([event]))
    return found


def compilations() -> int:
    """How many programs XLA has compiled, other than those in the cache, since this was first called."""
    return _events()["/jax/core/compile/backend_compile_duration"] - _events()["/jax/compilation_cache/cache_hits"]


def of_weak(method: Callable) -> Callable:
    """A method that does not keep its engine: in a circle, the cache would stay in memory after the last use."""
    reference = weakref.WeakMethod(method)
    return lambda *arguments, **named: reference()(*arguments, **named)


class Programs:
    """Programs by their keys.

    Args:
        compile_one: compiles the program of a key; it may be called in another thread.

    Attributes:
        compiled: the keys of those that are compiled, and the seconds that each took.
    """

    def __init__(self, compile_one: Callable[[Hashable], None]):
        self._compile_one, self.compiled, self._in_thread = compile_one, {}, False
        self._lock, self._asked, self._left = threading.Lock(), set(), deque()
        self._works, self._fault = False, None

    def compile(self, keys: Sequence[Hashable]) -> None:
        """Compile these, one after the other."""
        thread = ThreadPoolExecutor(1, "compile", partial(go_last, _NICE))
        with thread, log.progress("compile", len(keys), "programs") as advance:
            for number, key in enumerate(keys):
                before = compilations()
                thread.submit(self._compile, key).result()
                advance(1)
                left = len(keys) - 1 - number  # the second one tells how long they take: the first has costs of its own
                is_new = number == 1 and compilations() > before  # not found in the cache
                if is_new and (seconds := self.compiled[key] * left) > TOLD_SECONDS:
                    later = "; later starts find them" if jax.config.jax_compilation_cache_dir else ""
                    log.say(f"engine: compiles {left} more programs, about {seconds:.0f} s{later}")

    def compile_in_thread(self) -> None:
        """From now on compile others in a thread; before, a program is compiled where it is first called."""
        self._in_thread, self._asked = True, set(self.compiled)

    def have(self, *keys: Hashable, begin: bool = True, first: bool = False) -> bool:
        """Whether programs can be called without waiting.

        Args:
            begin: if not, begin to compile them.
            first: and compile them before others.
        """
        if self._fault is not None:
            raise self._fault
        missing = [key for key in keys if self._in_thread and key not in self.compiled]
        for key in missing if begin else ():
            self._begin(key, first)
        return not missing

    def _begin(self, key: Hashable, first: bool) -> None:
        with self._lock:
            if first and key in self._left:
                self._left.remove(key)
                self._left.appendleft(key)
            if key not in self._asked:
                self._asked.add(key)
                (self._left.appendleft if first else self._left.append)(key)
                if not self._works:
                    self._works = True
                    threading.Thread(target=self._work, name="compile").start()

    def _compile(self, key: Hashable) -> None:
        began = time.monotonic()
        self._compile_one(key)
        self.compiled[key] = time.monotonic() - began

    def _work(self) -> None:
        """Compile what is left; at the end of the process only the program that is begun, for XLA can't be stopped."""
        go_last(_NICE)
        try:
            while threading.main_thread().is_alive():
                with self._lock:
                    if not self._left:
                        self._works = False
                        return
                    key = self._left.popleft()
                self._compile(key)
        except BaseException as error:  # the engine's thread raises it
            self._fault = error
