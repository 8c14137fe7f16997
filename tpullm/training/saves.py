"""When and where the state of a training is saved: checkpoints in the run, and local saves between them.

A checkpoint is due every so many steps, by the clock of host 0, at the last step, where the decay of `wsd` begins, and
when a stop or a user asks for it.
"""

import time
from pathlib import Path

import numpy as np

from tpullm.formats.checkpoints import Checkpoints
from tpullm.formats.local_saves import REQUEST, LocalSaves
from tpullm.recipe.schema import TrainConfig
from tpullm.system.cluster import hosts
from tpullm.training.job import Tree
from tpullm.training.optimizer.chain import decay_begin
from tpullm.training.programs import Programs
from tpullm.training.rewards.known_failures import SUM

CHECKPOINT, LOCAL = "checkpoint", "local"  # kinds of saves


class Saves:
    """The saves of one training.

    Args:
        directory: the stage's folder.
        description: what a checkpoint says of itself.
    """

    def __init__(self, directory: Path, config: TrainConfig, description: dict):
        self._config, self._description = config, description
        self._stable = decay_begin(config.optimizer, config.steps) if config.optimizer.schedule == "wsd" else 0
        self._checkpoints = Checkpoints(directory / "checkpoints", config.checkpoint, always=self._stable)
        self._local = LocalSaves(directory, config.checkpoint, description)
        self._step, self._since = 0, time.monotonic()

    def restore(self, programs: Programs, step: int) -> Tree:
        """The state that the training starts with; where there are several, the first of these:

        1. a local save, if it is newer than `step`; 2. the checkpoint of `step`; 3. what the job begins with.
        """
        if found := self._local.newest(programs.target, after=step):
            state = self._local.restore(found, programs.target)
        else:
            state = self._checkpoints.restore(step, programs.target) if step else programs.begin()
        self._step, self._since = int(state["step"]), time.monotonic()
        self._local.forget(after=self._step)
        return state

    def asks(self) -> list[str]:
        """What this host asks all hosts to save after this step, by its clock."""
        every, seconds = self._config.checkpoint.every_minutes, time.monotonic() - self._since
        late = every and seconds >= 60 * every and hosts.is_first()
        return ["save"] * bool(late) + self._local.asks()

    def due(self, step: int, asked: set[str]) -> str:
        """Which kind of save all hosts make after `step`; empty if none.

        Args:
            asked: what all hosts do after this step.
        """
        every = self._config.checkpoint.every_steps
        if asked - {REQUEST} or step in (self._config.steps, self._stable) or (every and step % every == 0):
            return CHECKPOINT
        return LOCAL if self._local.due(step, asked) else ""

    def save(self, step: int, state: Tree, kind: str) -> None:
        """Begin to save; raises the error of an earlier checkpoint that failed in the background."""
        if kind == LOCAL:
            return self._local.save(step, state)
        self._checkpoints.check()
        self._checkpoints.save(step, state, self._description)
        self._step, self._since = step, time.monotonic()

    def evaluated(self, step: int, results: dict) -> None:
        """Note how good the model is at a step, since the best checkpoints are kept."""
        if "eval_reward" in results:
            self._checkpoints.best.note(step, -results["eval_reward"][SUM])
        elif losses := results["eval_loss"]:
            self._checkpoints.best.note(step, float(np.mean(list(losses.values()))))

    def close(self) -> None:
        """Wait until all is saved. Local saves of a finished training are removed."""
        self._checkpoints.close()
        self._local.close(finished=self._step == self._config.steps)
