"""The search: every mesh, remat policy, number of micro-batches, block of attention and number of the loss's chunks,
estimated; the best that fit first.

What is searched changes no number of the training. Only where nothing fits, moments in bfloat16 are tried too.
"""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from tpullm.log import moment
from tpullm.mesh.axes import AXES, written
from tpullm.planning.estimate import Estimate, estimate
from tpullm.planning.memory import Memory, memory
from tpullm.planning.resting import Resting, resting
from tpullm.planning.setting import RECOMPUTED, Setting, divisors, with_remat
from tpullm.recipe.schema import Recipe

LONGEST_SEQUENCE = 16  # devices that share a row, at most
LONG_ROW = 16384  # tokens, from which on sharing a row is tried
MOST_PARTS = 64  # micro-batches of a step, at most
SMALLEST_BLOCK = 256  # of attention: smaller ones take three times as long, by the kernel's schedule
CHUNKS = (0.25, 0.5, 2, 4)  # of the loss, times the platform's own number
NEAR = 0.002  # steps that differ by less are equally long: then fewer changes and more memory to spare win


@dataclass(frozen=True)
class Candidate:
    """One way to run a training on a slice; `estimate` is None where it does not fit the memory."""

    setting: Setting
    memory: Memory
    estimate: Estimate | None

    @property
    def time(self) -> Estimate:
        """The estimate, also of what does not fit."""
        return self.estimate or estimate(self.setting)

    @property
    def mesh(self) -> dict[str, int]:
        """Devices along each axis that has several."""
        return {axis: size for axis, size in zip(AXES, self.setting.sizes, strict=True) if size > 1} or {"fsdp": 1}

    def keys(self) -> dict[str, Any]:
        """The keys of the recipe that it sets."""
        return {
            "mesh": written(self.mesh),
            "model.remat": self.setting.remat,
            "model.attention_block": self.setting.attention_block,
            "pretrain.accumulation": self.setting.accumulation,
            "pretrain.loss_chunks": self.setting.loss_chunks,
            "pretrain.optimizer.moments": self.setting.optimizer.moments,
        }

    def changed(self, recipe: Recipe) -> Recipe:
        """The recipe that does it."""
        setting = self.setting
        config = dataclasses.replace(
            recipe.pretrain,
            accumulation=setting.accumulation,
            loss_chunks=setting.loss_chunks,
            optimizer=setting.optimizer,
            batch_size=setting.rows,
        )
        model = dataclasses.replace(recipe.model, remat=setting.remat, attention_block=setting.attention_block)
        return dataclasses.replace(recipe, mesh=self.mesh, model=model, pretrain=config, topology=str(setting.topology))


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        screened: candidates that were looked at.
        fitting: of these, how many fit.
        seconds: that it took.
        best: those that fit, the fastest first, each with its best block of attention and number of the loss's chunks.
    """

    screened: int
    fitting: int
    seconds: float
    best: tuple[Candidate, ...]


def assessed(setting: Setting, rests: Resting) -> Candidate:
    """A setting with its memory and, where it fits, its time."""
    held = memory(setting, rests)
    return Candidate(setting, held, estimate(setting) if held.peak <= setting.device.hbm_bytes else None)


def search(base: Setting, most: int = 10) -> Found:
    """The fastest ways to run a training that fit the memory of its slice."""
    began, screened, fitting = time.perf_counter(), 0, []
    for start in _with_moments(base):
        rests = resting(start.model, start.optimizer)
        for setting in settings(start):
            candidate, screened = assessed(setting, rests), screened + 1
            if candidate.estimate:
                fitting.append(candidate)
        if fitting:
            break
    best = _distinct(_in_order(fitting, base))
    return Found(screened, len(fitting), time.perf_counter() - began, tuple(best[:most]))


def settings(base: Setting) -> Iterator[Setting]:
    """`base`, and every other way to run it."""
    yield base
    for sizes in meshes(base):
        for remat, parts in product(RECOMPUTED, _parts(base, sizes)):
            free = dataclasses.replace(
                with_remat(base, remat), sizes=sizes, accumulation=parts, attention_block=0, loss_chunks=0
            )
            for block, chunks in product(_blocks(free), _chunks(free)):
                setting = dataclasses.replace(free, attention_block=block, loss_chunks=chunks)
                if setting != base:
                    yield setting


def meshes(setting: Setting) -> Iterator[tuple[int, ...]]:
    """Every way to share the chips among the axes that the model, the rows and the slices allow."""
    model, topology, length = setting.model, setting.topology, setting.length
    split_by_tensor = (model.heads, model.kv_heads, model.mlp_width, model.vocabulary_size)
    tensors = [size for size in divisors(topology.chips) if not any(of % size for of in split_by_tensor)]
    sequences = [size for size in range(1, LONGEST_SEQUENCE + 1) if size == 1 or length % (2 * size) == 0]
    experts = divisors(model.experts) if model.experts else [1]
    for tensor, sequence, expert in product(tensors, sequences if length >= LONG_ROW else [1], experts):
        rest, left = divmod(topology.chips, tensor * sequence * expert)
        for fsdp in [] if left else divisors(rest):
            if model.width % fsdp == 0 and rest // fsdp % topology.slices == 0:
                yield rest // fsdp, fsdp, expert, sequence, tensor


def why_behind(one: Candidate, best: Candidate) -> str:
    """What costs a runner-up most of the time that it loses."""
    mine, theirs = (found.estimate.parts for found in (one, best))
    more = {name: mine.get(name, 0.0) - theirs.get(name, 0.0) for name in {*mine, *theirs}}
    worst = max(more, key=more.get)
    lost = one.estimate.step_seconds / best.estimate.step_seconds - 1
    if lost < NEAR:
        return "as fast, with more changes or less memory to spare"
    return f"{lost:.1%} slower: {moment(more[worst])} more of {worst}"


def _with_moments(base: Setting) -> list[Setting]:
    own = base.optimizer
    if own.kind == "adafactor" or own.moments == "bfloat16":
        return [base]
    return [base, dataclasses.replace(base, optimizer=dataclasses.replace(own, moments="bfloat16"))]


def _parts(setting: Setting, sizes: tuple[int, ...]) -> list[int]:
    """Numbers of micro-batches whose rows the devices can share."""
    rows, left = divmod(setting.rows, sizes[0] * sizes[1] * sizes[2])
    return [] if left else [parts for parts in divisors(min(rows, MOST_PARTS)) if rows % parts == 0]


def _blocks(setting: Setting) -> list[int]:
    """Of attention: 0 is the platform's own choice, the others are other ones that the kernel takes on that chip."""
    own = [of for of in setting.device.attention if of >= SMALLEST_BLOCK]
    return [0, *(of for of in own if of != setting.block and setting.turn % of == 0)]


def _chunks(setting: Setting) -> list[int]:
    """Of the loss: 0 is the platform's own choice, the others are near it and divide a device's part of a row."""
    near, length = [round(setting.chunks * times) for times in CHUNKS], setting.length // setting.along("sequence")
    return [0, *(count for count in near if count and count != setting.chunks and length % count == 0)]


def _in_order(fitting: list[Candidate], base: Setting) -> list[Candidate]:
    """The fastest first; of those that are as fast, the nearest to the recipe, and then the smallest."""
    order = sorted(fitting, key=lambda found: found.estimate.step_seconds)
    if not order:
        return []
    bound = order[0].estimate.step_seconds * (1 + NEAR)
    first = [found for found in order if found.estimate.step_seconds <= bound]
    first.sort(key=lambda found: (_changes(found.setting, base), found.memory.peak))
    return first + order[len(first) :]


def _distinct(order: list[Candidate]) -> list[Candidate]:
    """Of those that differ in attention's block or the loss's chunks alone, the first."""
    first: dict[tuple, Candidate] = {}
    for one in order:
        setting = one.setting
        first.setdefault((setting.sizes, setting.remat, setting.accumulation, setting.optimizer), one)
    return list(first.values())


def _changes(setting: Setting, base: Setting) -> int:
    names = ("sizes", "remat", "accumulation", "attention_block", "loss_chunks", "optimizer")
    return sum(getattr(setting, name) != getattr(base, name) for name in names)
