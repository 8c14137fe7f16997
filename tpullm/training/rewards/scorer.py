"""What is scored: an answer with its prompt and the further fields of its example."""

import dataclasses
from collections.abc import Callable, Sequence
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


@dataclasses.dataclass(frozen=True)
class Each:
    """A reward that looks at each answer by itself, in this process."""

    function: Callable[[Example], float]

    def score(self, examples: Sequence[Example]) -> list[float]:
        """As of `Scorer`; an error names its example."""
        return [self._one(example) for example in examples]

    def _one(self, example: Example) -> float:
        try:
            return float(self.function(example))
        except UserError as error:
            raise UserError(f"{example.where}: {error}") from None

    def close(self) -> None:
        """There is nothing to end."""
