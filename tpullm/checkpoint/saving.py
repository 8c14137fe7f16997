"""Saving and restoring a training state by Orbax, in the background, and saving parameters alone.

A checkpoint holds the training state (parameters, optimizer, step: the step is the whole position in the data) and a
description: the model's config, the recipe, the stage and its inputs. `latest` is never a save that did not finish:
Orbax writes beside and renames.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from tpullm.cluster import hosts
from tpullm.errors import UserError
from tpullm.recipe.schema import CheckpointConfig, ModelConfig

Tree = Any


MOST_BYTES_AT_ONCE = 1 << 28


CHUNK_BYTES = 1 << 26  # compressed at once, and held back before it is written


def _alone() -> ocp.options.MultiprocessingOptions:
    """Orbax without waiting for the other hosts: what one of them may do by itself, or each in its own time."""
    host = hosts.index()
    return ocp.options.MultiprocessingOptions(
        primary_host=host, active_processes={host}, barrier_sync_key_prefix=f"host{host}"
    )


def reader(directory: Path, **named: Any) -> ocp.CheckpointManager:
    """Orbax's manager of `STAGE/checkpoints`, to read; `named` goes to it."""
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=_alone(), read_only=True)
    return ocp.CheckpointManager(directory, options=options, **named)


class Checkpoints:
    """The checkpoints of one stage, saved in the background; with several hosts, each writes what its devices hold.

    Args:
        directory: `STAGE/checkpoints`.
        config: how many to keep.
        always: the step of a checkpoint that is never removed; 0 is none.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, always: int = 0):
        # Orbax logs the traceback of a failed save from its thread; `check` and `close` raise the same error here.
        logging.getLogger("absl").setLevel(logging.CRITICAL + 1)
        kept = [preservation_policy.LatestN(config.keep), preservation_policy.CustomSteps([always])]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(kept),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(directory, options=options)

    def save(self, step: int, state: Tree, description: dict) -> None:
        """Start saving; an earlier save's failure is raised here."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), description=ocp.args.JsonSave(description))
        self._manager.save(step, args=items, force=True)

    def check(self) -> None:
        """Raise the error of a save that failed in the background."""
        self._manager.check_for_errors()

    def restore(self, step: int, target: Tree) -> Tree:
        """The state at `step`, placed as `target` (shapes, types, shardings) says, whatever mesh wrote it."""
        return _restore(self._manager, step, target)

    def close(self) -> None:
        """Wait for the last save."""
        self._manager.wait_until_finished()
        self._manager.close()


def save_params(directory: Path, params: Tree, description: dict) -> None:
    """Save parameters alone as step 0, in little memory: few at a time, in small pieces, and waiting for each.

    A save in the background first copies all of them. For 4.2 GB in bfloat16, the largest parameter of 1.1 GB, the
    process takes 0.9 to 1.1 GB more than the arrays; it was up to 1.8 where files were held back up to 2 GB.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL + 1)
    # Below the size of the largest parameter, Orbax would wait for ever.
    most = max([MOST_BYTES_AT_ONCE, *(leaf.nbytes for leaf in jax.tree.leaves(params))])
    state_handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=most / 1e9 + 0.001)
    handlers = {"state": state_handler, "description": ocp.JsonCheckpointHandler()}
    directory.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        create=False, enable_async_checkpointing=False, cleanup_tmp_directories=True, multiprocessing_options=_alone()
    )
    manager = ocp.CheckpointManager(directory, item_handlers=handlers, options=options)
    try:
        in_chunks = jax.tree.map(lambda leaf: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), {"params": params})
        state = ocp.args.PyTreeSave({"params": params}, save_args=in_chunks, ocdbt_target_data_file_size=CHUNK_BYTES)
        if manager.latest_step() is None:  # else killed after the save
            manager.save(0, args=ocp.args.Composite(state=state, description=ocp.args.JsonSave(description)))
    finally:
        manager.close()


def _restore(manager: ocp.CheckpointManager, step: int, target: Tree) -> Tree:
    try:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return manager.restore(step, args=items)["state"]
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise UserError(
            f"{manager.directory / str(step)}: the checkpoint can't be read ({first_line(error)})"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, 200 characters at most."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def description(stage: str, config: ModelConfig, recipe: Any, inputs: dict, horizons: list[list[int]] = ()) -> dict:
    """What a checkpoint says of itself; see `models.Model`."""
    return {
        "stage": stage,
        "model": dataclasses.asdict(config),
        "recipe": dataclasses.asdict(recipe),
        "inputs": inputs,
        "horizons": list(horizons),
    }
