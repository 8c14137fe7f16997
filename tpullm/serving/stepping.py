"""The engines of the models that are served, and the loop that steps them, in one thread.

It is the main thread, so Ctrl-C reaches it between two steps, and a fault of an engine ends the command as any other
fault. On several hosts all have the engines and take the same steps. Only host 0 listens. It tells the other hosts what
it is asked before each step; a mask of tokens is told as its grammar. Between requests the others wait on their
connection, outside of any collective.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from tpullm.engine.request import Request, Token
from tpullm.system.cluster import hosts
from tpullm.system.cluster.channel import Channel
from tpullm.system.cluster.hosts import FromFirst
from tpullm.system.process import memory

if TYPE_CHECKING:
    from tpullm.engine.engine import Engine
    from tpullm.serving.served_model import ServedModel


_REQUEST = TypeAdapter(Request)
CYCLES_SECONDS = 60


class OnAllHosts:
    """An engine with the methods of `Engine` that `Stepping` needs.

    Requests, cancellations and `on_token` are on host 0 alone. The others are in a turn, or wait for the next one.

    Args:
        engine: of this host.
        model: whose prompts fit the engine, and whose grammars make the masks of a request again.
        channel: to the other hosts. All hosts must have made theirs before host 0 takes a turn.
    """

    def __init__(self, engine: "Engine", model: "ServedModel", channel: Channel):
        self._engine, self._model, self._is_first = engine, model, channel.index == 0
        self._turns = FromFirst(f"turns of {model.name}", channel)
        self._lock, self._number = threading.Lock(), 0
        self._calls: list[tuple[Any, ...]] = []  # on host 0: those that the next turn begins with
        self.compile, self.memory_bytes = engine.compile, engine.memory_bytes

    def submit(self, request: Request, on_token: Callable[[Token], None]) -> int:
        """As `Engine.submit`, in the next turn."""
        with self._lock:
            self._number += 1
            self._calls.append((request, on_token))
            return self._number

    def cancel(self, number: int) -> None:
        """As `Engine.cancel`, in the next turn."""
        with self._lock:
            self._calls.append((number,))

    def figures(self) -> dict[str, float]:
        """As `Engine.figures`; requests that are not submitted yet count as waiting."""
        with self._lock:
            asked = sum(len(call) > 1 for call in self._calls)
        figures = self._engine.figures()
        return figures | {"waiting": figures["waiting"] + asked}

    def step(self) -> bool:
        """One turn; False if no text is left. Other hosts than host 0 wait for it, and are never told that."""
        if self._is_first:
            with self._lock:
                calls, self._calls = self._calls, []
            late = sorted(self._engine.late())
            self._turns.tell([late, *(_call_as_json(*call) for call in calls)])
        else:
            late, *words = self._turns.next()
            self._engine.late()  # begins masks here too: when host 0 has one, it should be ready
            calls = [self._call(one) for one in words]
        for call in calls:
            (self._engine.submit if len(call) > 1 else self._engine.cancel)(*call)
        return self._engine.step(late) or not self._is_first

    def _call(self, words: dict[str, Any]) -> tuple[Any, ...]:
        """On other hosts: a call from its words."""
        if "cancel" in words:
            return (words["cancel"],)
        grammar = words.pop("grammar")
        allowed = self._model.grammars.of_grammar(grammar) if grammar else None
        return replace(_REQUEST.validate_python(words), allowed=allowed), lambda token: None


def _call_as_json(asked: Request | int, on_token: Callable | None = None) -> dict[str, Any]:
    """A call as JSON has it."""
    if on_token is None:
        return {"cancel": asked}
    return asdict(replace(asked, allowed=None)) | {"grammar": asked.allowed.grammar if asked.allowed else ""}


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
        memory.all_stays()
        self.ready = True

    def run(self) -> None:
        """Step whichever engine has something to do. It ends by an exception only: Ctrl-C, or a fault of an engine."""
        while True:
            memory.free_cycles_every(CYCLES_SECONDS)
            self._work.clear()  # before the steps: what comes during them is seen by the next ones
            if not any([engine.step() for engine in self._engines.values()]):
                hosts.wait_for(self._work)

    def submit(self, name: str, request: Request, on_token: Callable[[Token], None]) -> int:
        """As `Engine.submit` of a model's engine; `on_token` is called in the thread that steps."""
        number = self._engines[name].submit(request, on_token)
        self._work.set()
        return number

    def cancel(self, name: str, number: int) -> None:
        """Nobody wants the rest of an answer."""
        self._engines[name].cancel(number)
        self._work.set()

    def figures(self) -> dict[str, dict[str, float]]:
        """The figures of each engine, by the model's name."""
        return {name: engine.figures() for name, engine in self._engines.items()}
