"""The reward of a task of reasoning-gym: the package's own score of an answer."""

from collections.abc import Sequence
from typing import Any

from tpullm.data.examples.reasoning_tasks import FIELD, package
from tpullm.system.errors import UserError
from tpullm.system.process.isolated import Isolated
from tpullm.training.rewards.scorer import Example


class ReasoningGym:
    """The package's own score of the answer: 1 for a right one; some families give a part for one that is near.

    Args:
        after: the answer is what follows this text the last time; all of it if the text is empty or not there.
        seconds: of the processor for one answer; what takes longer scores 0.
        memory_mib: for it.
    """

    def __init__(self, after: str = "", seconds: int = 2, memory_mib: int = 512):
        if seconds < 1 or memory_mib < 16:
            raise UserError(f"seconds {seconds}, memory_mib {memory_mib}: give at least 1 second and 16 MiB")
        package()
        self._after = after
        self._isolated = Isolated("tpullm.training.rewards.reasoning_child:score", seconds, memory_mib << 20)

    def score(self, examples: Sequence[Example]) -> list[float]:
        """As of `Scorer`."""
        found = self._isolated.map([[_task(example), self._answer(example.answer)] for example in examples])
        scores = [one.value for one in found]
        return [min(max(score, 0.0), 1.0) if isinstance(score, int | float) else 0.0 for score in scores]

    def _answer(self, text: str) -> str:
        return (text.rpartition(self._after)[2] if self._after else text).strip()

    def close(self) -> None:
        """End the processes."""
        self._isolated.close()


def _task(example: Example) -> dict[str, Any]:
    try:
        task = example.field(FIELD)
    except UserError as error:
        raise UserError(f"{example.where}: {error}") from None
    if not isinstance(task, dict) or task.keys() != {"name", "seed", "size", "parameters", "index"}:
        raise UserError(f"{example.where}: field `{FIELD}` is no task; take it as `reasoning_gym:NAME` gives it")
    return task
