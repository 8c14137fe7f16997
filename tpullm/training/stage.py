"""A stage that trains, from its begin to its manifest: the same for pretraining and for every kind of tuning.

A stage of tuning starts from the checkpoint with which the stage before it ended.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tpullm.formats.checkpoints import description
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest, stages
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.training import metrics, resume, trackers
from tpullm.training.job import Job, RollBack
from tpullm.training.loop import train


def is_stage_finished(stage: Path, inputs: dict) -> bool:
    """Whether a stage is finished, on every host the same; `UserError` if the hosts' inputs differ."""
    hosts.agree(f"the inputs of {stage.name}", inputs)
    return hosts.broadcast(f"{stage.name} is finished", lambda: manifest.is_finished(stage, inputs))


def make_training(
    job: Job,
    recipe: Recipe,
    inputs: dict,
    tokenizer: Path,
    changed: dict[str, str] | None = None,
    notes: dict[str, Any] | None = None,
    **facts: Any,
) -> None:
    """Train a stage, and mark it as finished.

    Args:
        tokenizer: the folder with the model's tokenizer.
        changed: see `stages.begin_training`.
        notes: by the name of a file, JSON for the report.
        facts: for the manifest, beside the results of the training.
    """
    stage = job.directory
    hosts.on_first("the trackers", trackers.check_trackers, recipe.trackers, stage)
    start = resume.start_of_training(stage, inputs, job.config, job.first, job.differs)
    stages.begin_training(stage.parent, stage.name, inputs, tokenizer, changed)
    for name, value in (notes or {}).items() if hosts.is_first() else ():
        storage.write_json(stage / name, value)
    while True:
        if job.prepare:
            job.prepare(job.config.steps + sum(count for _, count in start.left_out))
        try:
            more = {"before": job.before, "adapter": job.adapter and asdict(job.adapter)}
            describes = description(stage.name, job.model, recipe, inputs, **start.past, **more)
            results = train(job, describes, start)
            break
        except RollBack as bad:
            ask = partial(resume.rolled_back, stage, start, bad, job.config, job.first)
            start = resume.decide_on_host_0(f"{stage.name} rolls back", ask)

    def finish() -> None:
        manifest.write(
            stage, inputs, seconds=metrics.seconds_in_steps(stage / metrics.FILE, job.first), **facts, **results
        )

    hosts.on_first(f"{stage.name} ends", finish)
