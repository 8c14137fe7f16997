"""The checkpoints of a stage: saved by Orbax in the background, with checksums, and restored.

A checkpoint holds the training state (parameters, optimizer, step; the step alone is the position in the data) and a
description: the model's config, the recipe, the stage and its inputs. The newest one is never unfinished, since Orbax
writes to a temporary folder and renames it.

`STEP/checksums.json` has the bytes and the MD5 of every file. It is written before Orbax commits the save, so every
save has it. MD5, since Google's servers compute it of every object: on `gs://` one listing is all that saving and
verifying take. Against flipped bits it is enough; nobody is to be kept from changing a checkpoint. On a disk the files
are read back when they are saved, in the background, and once more before a checkpoint is used, at 0.9 GB/s a core.
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from tpullm.recipe.schema import CheckpointConfig, ModelConfig
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError

Tree = Any

FILE = "checksums.json"
# Of Orbax, which writes it in the background and notes in it what restoring needs (`HANDLERS`), then the time of the
# commit. Both may come after all other files: once, on a machine with a load of 16, the checksums were made before.
METADATA, HANDLERS, SECONDS_TO_NOTE = "_CHECKPOINT_METADATA", "item_handlers", 60.0
COMMITTED = "commit_success.txt"  # of Orbax; nobody reads it, it only has to be there
# Orbax times a save by the time of day, so one fails when the clock is set ahead. The watchdog ends one that hangs.
SAVE_SECONDS = 100 * 365 * 86_400
HELD_OUT = "held_out.json"  # in a stage: held-out losses by step
MOST_BYTES_AT_ONCE = 1 << 28
CHUNK_BYTES = 1 << 26  # compressed at once, and buffered before it is written


class CorruptSave(UserError):
    """A checkpoint is not as it was written."""


class Checkpoints:
    """The checkpoints of one stage, saved in the background; each host writes the shards of its own devices.

    Args:
        directory: `STAGE/checkpoints`.
        config: which to keep.
        always: the step of a checkpoint that is never removed; 0 is none.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, always: int = 0):
        # Orbax's thread logs the traceback of a failed save; `check` and `close` raise the same error.
        logging.getLogger("absl").setLevel(logging.CRITICAL + 1)
        self.best = Best(directory.parent / HELD_OUT, config.keep_best)
        kept = [preservation_policy.LatestN(config.keep), LatestOfEvery(config.every_steps, config.keep)]
        kept += [preservation_policy.CustomSteps([always]), self.best]
        if config.keep_every:
            kept.append(preservation_policy.EveryNSteps(config.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(kept),
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(timeout_secs=SAVE_SECONDS, post_finalization_callback=self._written),
            cleanup_tmp_directories=True,
        )
        self._manager, self._step = ocp.CheckpointManager(directory, options=options), 0

    def _written(self) -> None:
        """Called on host 0, in the background, when all files of a save are written and it is not yet committed."""
        save = storage.path(self._manager.directory / str(self._step))
        if not storage.is_remote(save):  # where Orbax renames it
            (save,) = save.parent.glob(f"{self._step}.orbax-checkpoint-tmp*")
        write(save)

    def save(self, step: int, state: Tree, description: dict) -> None:
        """Start saving; raises the error of an earlier save that failed."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), description=ocp.args.JsonSave(description))
        with storage.naming(self._manager.directory):  # Orbax writes some files by `write_text`, whose error names none
            self._manager.wait_until_finished()
            self._step = step
            self._manager.save(step, args=items, force=True)

    def check(self) -> None:
        """Raise the error of a save that failed in the background."""
        with storage.naming(self._manager.directory):
            self._manager.check_for_errors()

    def restore(self, step: int, target: Tree) -> Tree:
        """The state at `step` with the shapes, types and shardings of `target`, from any mesh."""
        self.best.forget(after=step)
        return restore(self._manager, step, target)

    def close(self) -> None:
        """Wait until the last save has finished."""
        with storage.naming(self._manager.directory):
            self._manager.wait_until_finished()
            self._manager.close()


class Best(preservation_policy.PreservationPolicy):
    """Keeps the checkpoints of the lowest held-out losses, which may be known only after a checkpoint was saved.

    Args:
        file: JSON, the losses by step. Host 0 writes it; all hosts know the same losses.
        count: of the checkpoints that are kept.
    """

    def __init__(self, file: Path, count: int):
        self._file, self._count = file, count
        noted = storage.read_json(file) if count and file.exists() else {}
        self._losses = {int(step): loss for step, loss in noted.items()}

    def note(self, step: int, loss: float) -> None:
        """Note the held-out loss at a step, before or after its checkpoint is saved."""
        self._losses[step] = loss
        if self._count and hosts.is_first():
            storage.write_json(self._file, self._losses)

    def forget(self, after: int) -> None:
        """Forget the losses of steps that will be repeated, maybe otherwise."""
        self._losses = {step: loss for step, loss in self._losses.items() if step <= after}

    def should_preserve(self, checkpoints: Sequence, *, context: Any) -> list[bool]:
        """Whether each of the checkpoints, which have a `step`, is one of the best."""
        known = [saved.step for saved in checkpoints if math.isfinite(self._losses.get(saved.step, math.nan))]
        best = sorted(known, key=lambda step: (self._losses[step], -step))[: self._count]
        return [saved.step in best for saved in checkpoints]


@dataclasses.dataclass
class LatestOfEvery(preservation_policy.PreservationPolicy):
    """Keeps the last `count` checkpoints of every so many steps, to which a training rolls back.

    Others are saved by the clock. Which ones there are must not decide a result.
    """

    every: int
    count: int

    def should_preserve(self, checkpoints: Sequence, *, context: Any) -> list[bool]:
        """Whether each of the checkpoints, which have a `step`, is one of them."""
        chosen = sorted(saved.step for saved in checkpoints if self.every and saved.step % self.every == 0)
        return [saved.step in chosen[-self.count :] for saved in checkpoints]


def save_params(directory: Path, params: Tree, description: dict) -> None:
    """Save parameters alone as step 0, in little memory: a few at a time, in small chunks, in the foreground.

    A save in the background first copies all parameters. For 4.2 GB in bfloat16, the largest parameter of 1.1 GB, the
    process takes 0.9 to 1.1 GB more than the arrays; it was up to 1.8 with buffers of up to 2 GB.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL + 1)
    # With a limit below the size of the largest parameter, Orbax would wait forever.
    most = max([MOST_BYTES_AT_ONCE, *(leaf.nbytes for leaf in jax.tree.leaves(params))])
    state_handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=most / 1e9 + 0.001)
    handlers = {"state": state_handler, "description": ocp.JsonCheckpointHandler()}
    directory.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        create=False,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        multiprocessing_options=_without_barrier(),
    )
    with ocp.CheckpointManager(directory, item_handlers=handlers, options=options) as manager:
        in_chunks = jax.tree.map(lambda leaf: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), {"params": params})
        state = ocp.args.PyTreeSave({"params": params}, save_args=in_chunks, ocdbt_target_data_file_size=CHUNK_BYTES)
        if manager.latest_step() is None:  # otherwise an earlier process was killed after the save
            manager.save(0, args=ocp.args.Composite(state=state, description=ocp.args.JsonSave(description)))
    write(directory / "0")


def _without_barrier() -> ocp.options.MultiprocessingOptions:
    """Options of Orbax for steps that hosts may run without a barrier."""
    host = hosts.index()
    alone = {"primary_host": host, "active_processes": {host}, "barrier_sync_key_prefix": f"host{host}"}
    return ocp.options.MultiprocessingOptions(**alone)


def reader(directory: Path, **named: Any) -> ocp.CheckpointManager:
    """Orbax's manager of `STAGE/checkpoints`, for reading; `named` are its further arguments."""
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=_without_barrier(), read_only=True)
    return ocp.CheckpointManager(directory, options=options, **named)


@contextmanager
def readable(save: Path, what: str = "the checkpoint can't be read") -> Iterator[None]:
    """Raise what Orbax raises of broken files as a `CorruptSave`."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        raise CorruptSave(f"{save}: {what} ({first_line(error)})") from error


def restore(manager: ocp.CheckpointManager, step: int, target: Tree) -> Tree:
    """The state at `step` with the shapes, types and shardings of `target`, from any mesh."""
    with readable(manager.directory / str(step)):
        return manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty, at most 200 characters."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def description(stage: str, config: ModelConfig, recipe: Any, inputs: dict, **more: Any) -> dict:
    """The description in a checkpoint; see `models.Model`, and for `more`: horizons, left_out, ...."""
    model, recipe = dataclasses.asdict(config), dataclasses.asdict(recipe)
    nothing = {"horizons": [], "left_out": [], "opened": [], "adapter": None, "before": None}
    return {"stage": stage, "model": model, "recipe": recipe, "inputs": inputs} | nothing | more


def write(save: Path) -> None:
    """Note what the files of a checkpoint are."""
    sizes = _noted_sizes(save)
    md5s = storage.md5s(save, sizes)
    deadline, metadata = time.monotonic() + SECONDS_TO_NOTE, ""
    while not metadata and (save / METADATA).exists() and time.monotonic() < deadline:
        with suppress(UserError, ValueError, AttributeError):  # Orbax is writing it
            metadata = _orbax_metadata_hash(save)
        if not metadata:
            time.sleep(0.02)
    files = {name: [size, md5s[name]] for name, size in sizes.items()}
    storage.write_json(save / FILE, {"files": files, "metadata": metadata})


def _noted_sizes(save: Path) -> dict[str, int]:
    """The bytes of the files of a checkpoint that its checksums are of."""
    noted = lambda name: name not in (FILE, METADATA) and name.rpartition("/")[2] != COMMITTED  # noqa: E731
    return {name: size for name, size in storage.sizes(save).items() if noted(name)}


def _orbax_metadata_hash(save: Path) -> str:
    """Hash of what Orbax notes of a checkpoint, without times; empty if that is not whole, or no save of Orbax's."""
    noted = storage.read_json(save / METADATA) if (save / METADATA).exists() else {}
    if not noted.get(HANDLERS):
        return ""
    return storage.hash_json({key: value for key, value in noted.items() if not key.endswith("_nsecs")})


def verify(save: Path) -> None:
    """Compare a checkpoint with its checksums. One without any is no whole one: they are the last that is written.

    Raises:
        CorruptSave: a file is not as it was written.
    """
    if reason := _first_damaged_file(save, 0, 1):
        raise CorruptSave(f"{save}: the checkpoint is corrupt ({reason})")


def verify_together(save: Path) -> None:
    """The same on all hosts: each compares its share, and all raise the same error."""
    reasons = hosts.gather(f"save {save.name} is whole", _first_damaged_file(save, hosts.index(), hosts.count()))
    if reason := next(filter(None, reasons), ""):
        raise CorruptSave(f"{save}: the checkpoint is corrupt ({reason})")


def _first_damaged_file(save: Path, share: int, shares: int) -> str:
    """The first of a share of the files that is not as it was written, and in what; empty if there is none."""
    if not (save / FILE).exists():
        return f"{FILE} is missing"
    try:
        noted = json.loads((save / FILE).read_bytes())
        files = {name: (int(size), str(md5)) for name, (size, md5) in noted["files"].items()}
        metadata = noted["metadata"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{FILE} can't be read"
    try:
        if metadata and _orbax_metadata_hash(save) != metadata:
            return f"{METADATA} has changed"
    except (UserError, ValueError, AttributeError):
        return f"{METADATA} can't be read"
    own, sizes = sorted(files, key=lambda name: (-files[name][0], name))[share::shares], _noted_sizes(save)
    if unknown := sorted(sizes.keys() - files.keys()):
        return f"{unknown[0]} is not in {FILE}"
    for name in own:
        size = files[name][0]
        if sizes.get(name) != size:
            has = f"has {sizes[name]:,} bytes instead of {size:,}" if name in sizes else "is missing"
            return f"{name} {has}"
    try:
        found = storage.md5s(save, own)
    except OSError as error:  # a disk that is breaking
        return f"{error.filename or 'a file'} can't be read: {error.strerror}"
    changed = (name for name in own if files[name][1] and found.get(name, "missing") not in (files[name][1], ""))
    return next((f"{name} has changed" for name in changed), "")
