"""The engines of the models that are served, and the loop that steps them, in one thread."""

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tpullm.cluster import hosts
from tpullm.inference.request import Request, Token

if TYPE_CHECKING:
    from tpullm.inference.engine import Engine


class Stepping:
    """One thread calls `compile` and `run`; the other methods may be called from any thread.

    Attributes:
        ready: whether all programs are compiled.
    """

    def __init__(self, engines: "Mapping[str, Engine]"):
        self._engines, self._work, self.ready = dict(engines), threading.Event(), False

    def compile(self) -> None:
        """Compile the programs of all engines; then they may be asked."""
        for engine in self._engines.values():
            engine.compile()
        self.ready = True

    def run(self) -> None:
        """Step whichever engine has something to do. It ends by an exception only: Ctrl-C, or a fault of an engine."""
        while True:
            self._work.clear()  # before the steps: what comes during them is seen by the next ones
            if not any([engine.step() for engine in self._engines.values()]):
                hosts.wait_for(self._work)

    def submit(self, name: str, request: Request, heard: Callable[[Token], None]) -> int:
        """As `Engine.submit` of a model's engine; `heard` is called in the thread that steps."""
        number = self._engines[name].submit(request, heard)
        self._work.set()
        return number

    def cancel(self, name: str, number: int) -> None:
        """Nobody wants the rest of an answer."""
        self._engines[name].cancel(number)
        self._work.set()

    def figures(self) -> dict[str, dict[str, float]]:
        """The figures of each engine, by the model's name."""
        return {name: engine.figures() for name, engine in self._engines.items()}

    def waiting(self) -> int:
        """The number of requests that no engine has begun."""
        return int(sum(figures["waiting"] for figures in self.figures().values()))
