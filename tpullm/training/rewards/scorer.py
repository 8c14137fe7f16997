"""What is scored: an answer with its prompt and the further fields of its example."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from tpullm.system.errors import UserError
from tpullm.system.log import one_line


@dataclasses.dataclass(frozen=True)
class Example:
    """One answer.

    Attributes:
        number: its place in the batch, from 0.
        answer: the text of the model.
        prompt: `{"role", "content"}` each.
        fields: what else the example has, such as the right `answer`, or `tests`.
    """

    number: int
    answer: str
    prompt: Sequence[dict[str, str]] = ()
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def where(self) -> str:
        """Which example it is, for an error."""
        asked = one_line(str(self.prompt[-1].get("content", "")), 40) if self.prompt else ""
        return f'example {self.number} ("{asked}")' if asked else f"example {self.number}"

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """A user error inside says which example it is about."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None

    def field(self, name: str) -> Any:
        """The value of a field that has to be there."""
        if name not in self.fields:
            known = f"it has {', '.join(sorted(self.fields))}" if self.fields else "it has none"
            raise UserError(f"there is no field `{name}` ({known}); add it to each example of the data")
        return self.fields[name]


class Scorer(Protocol):
    """A reward with its parameters."""

    def score(self, examples: Sequence[Example]) -> Sequence[float]:
        """One number for each of `examples`."""

    def close(self) -> None:
        """End the processes that it started."""


def check_process_limits(seconds: int, memory_mib: int) -> None:
    """Refuse limits in which no process starts."""
    if seconds < 1 or memory_mib < 16:
        raise UserError(f"seconds {seconds}, memory_mib {memory_mib}: give at least 1 second and 16 MiB")


@dataclasses.dataclass(frozen=True)
class Each:
    """A reward that looks at each answer by itself, in this process."""

    function: Callable[[Example], float]

    def score(self, examples: Sequence[Example]) -> list[float]:
        """As of `Scorer`; an error names its example."""
        scores = []
        for example in examples:
            with example.named():
                scores.append(float(self.function(example)))
        return scores

    def close(self) -> None:
        """There is nothing to end."""
