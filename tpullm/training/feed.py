"""The batches of a training, placed on its mesh: rows of a stream, old text beside them, or answers to prompts.

A share of old text keeps a model from forgetting. Beside preferences, judged answers and rewards the text has rows of
its own, from a stream of its own. The step weights its loss by the whole batch, so the text has its share of the loss
however many answers there are.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

from tpullm.data.batch import Batch
from tpullm.training.job import Job, Tree
from tpullm.training.meter import Meter
from tpullm.training.pace import Phases
from tpullm.training.programs import Programs

DOCUMENTS = 32  # of a skipped step that are named, and as many of old text


class Feed:
    """The batches of one training, in the order of its steps.

    Args:
        left_out: batches that the training leaves out after it rolled back, as of `Start`.
    """

    def __init__(self, job: Job, left_out: list[list[int]], programs: Programs, phase: Phases):
        self._job, self._left_out, self._programs, self._phase = job, left_out, programs, phase
        self._streams = [stream.without(left_out) for stream in (job.stream, job.text) if stream]
        self._batches: list[Iterator] = []

    def open(self, first: int, meter: Meter) -> None:
        """Begin to read ahead, from the batch of the step after `first`; the log says what is left out there."""
        config, self._meter = self._job.config, meter
        for step, batches in self._left_out:
            if step == first:
                meter.log.write({"step": step, "rolled_back": batches})
        self._batches = [stream.batches(first, config.steps, config.data_workers) for stream in self._streams]

    def next(self, step: int, state: Tree) -> Batch:
        """The batch of the step after `step`, where `state` is that after `step`."""
        answers, figures, began = self._job.answers, None, time.monotonic()
        with self._phase.watchdog.of("answers" if answers else "data"):
            batch, *text = map(next, self._batches)
            if answers:
                batch, figures = answers.batch(step, self._programs.params(state), batch)
            if text:
                batch = replace(batch, beside=text[0], share=self._job.share)
            batch = self._programs.place(batch)
        if figures:
            self._meter.answered(step + 1, figures)
        if not answers and (self._meter.newest is None or self._meter.newest.is_ready()):
            # Otherwise the device had work in the meantime.
            self._phase.hours.seconds["data"] += time.monotonic() - began
        return batch

    def changes(self, step: int) -> bool:
        """Whether a phase of the mixture begins with the batch of `step` (from 1)."""
        return any(stream.changes(step - 1) for stream in self._streams)

    def again(self, step: int) -> Batch:
        """The batch of `step` (from 1), which was read before; without old text beside it."""
        return self._programs.place(self._streams[0].batch_at(step - 1))

    def documents(self, step: int) -> list[str]:
        """Documents of the batch of `step` (from 1): the first `DOCUMENTS` of each stream."""
        of_streams = ([piece.id for piece in stream.documents_at(step - 1)] for stream in self._streams)
        return [document for ids in of_streams for document in list(dict.fromkeys(ids))[:DOCUMENTS]]

    def close(self) -> None:
        """End the threads that read ahead: they end with their generators."""
        self._batches = []
