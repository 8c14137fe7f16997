"""The reward of a task of reasoning-gym: the package's own score of an answer."""

from collections.abc import Sequence

from tpullm.data.examples.reasoning_tasks import FIELD, package
from tpullm.system.errors import UserError
from tpullm.system.process.isolated import Isolated
from tpullm.training.rewards.scorer import Example, check_process_limits


class ReasoningGym:
    """The package's own score of the answer: 1 for a right one; some families give a part for one that is near.

    Args:
        after: the answer is what follows this text the last time; all of it if the text is empty or not there.
        seconds: of the processor for one answer; what takes longer scores 0.
        memory_mib: for it.
    """

    def __init__(self, after: str = "", seconds: int = 2, memory_mib: int = 512):
        check_process_limits(seconds, memory_mib)
        package()
        self._after = after
        self._isolated = Isolated("tpullm.training.rewards.reasoning_child:score_reasoning", seconds, memory_mib << 20)

    def score(self, examples: Sequence[Example]) -> list[float]:
        """As of `Scorer`."""
        calls = []
        for example in examples:
            with example.named():
                task = example.field(FIELD)
                if not isinstance(task, dict) or task.keys() != {"name", "seed", "size", "parameters", "index"}:
                    raise UserError(f"field `{FIELD}` is no task; take it as `reasoning_gym:NAME` gives it")
            answer = example.answer.rpartition(self._after)[2] if self._after else example.answer
            calls.append([task, answer.strip()])
        scores = [outcome.value for outcome in self._isolated.map(calls)]
        return [min(max(score, 0.0), 1.0) if isinstance(score, int | float) else 0.0 for score in scores]

    def close(self) -> None:
        """End the processes."""
        self._isolated.close()
