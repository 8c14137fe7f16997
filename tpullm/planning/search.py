"""Search the fastest way to run a training; and advice where a way does not fit: the one key whose change makes it fit.

The search estimates every mesh, remat policy, number of micro-batches, attention block and number of loss chunks. None
of these changes a result of the training. Moments in bfloat16 are tried too, but only if nothing else fits.
"""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from tpullm.planning.economics import Estimate, estimate_step
from tpullm.planning.memory import Memory, device_memory, global_state
from tpullm.planning.program import stage_of
from tpullm.planning.setting import RECOMPUTED, Setting, divisors, with_remat
from tpullm.recipe.mesh_axes import AXES, written
from tpullm.recipe.schema import Recipe
from tpullm.recipe.schema_keys import sections
from tpullm.system.words import moment

LONGEST_SEQUENCE = 16  # most devices that share a row
LONG_ROW = 16384  # tokens of the shortest row that devices share
MOST_PARTS = 64  # most micro-batches of a step
SMALLEST_BLOCK = 256  # of attention; smaller blocks take three times as long, by the kernel's schedule
CHUNKS = (0.25, 0.5, 2, 4)  # of the loss: multiples of the platform's number
NEAR = 0.002  # steps that differ by less count as equal: then fewer changes win, and then less memory


@dataclass(frozen=True)
class Candidate:
    """One way to run a training on a slice."""

    setting: Setting
    memory: Memory

    @property
    def fits(self) -> bool:
        """Whether it fits the memory of a device."""
        return self.memory.peak <= self.setting.device.hbm_bytes

    @cached_property
    def estimate(self) -> Estimate:
        """The time of a step, also if it does not fit."""
        return estimate_step(self.setting)

    def keys(self) -> dict[str, Any]:
        """The keys of the recipe that it sets, with their values."""
        return {
            "mesh": written(mesh_of(self.setting)),
            "model.remat": self.setting.remat,
            "model.attention_block": self.setting.attention_block,
            f"{self.setting.key}.accumulation": self.setting.accumulation,
            f"{self.setting.key}.loss_chunks": self.setting.loss_chunks,
            f"{self.setting.key}.optimizer.moments": self.setting.optimizer.moments,
        }

    def changed(self, recipe: Recipe) -> Recipe:
        """The recipe with these keys."""
        setting, stage = self.setting, stage_of(recipe, self.setting.key)
        parts = {"accumulation": setting.accumulation, "loss_chunks": setting.loss_chunks}
        config = dataclasses.replace(stage.config, **parts, optimizer=setting.optimizer, batch_size=setting.rows)
        model = dataclasses.replace(recipe.model, remat=setting.remat, attention_block=setting.attention_block)
        recipe = dataclasses.replace(recipe, mesh=mesh_of(setting), model=model, topology=str(setting.topology))
        return stage.changed(recipe, config)


def mesh_of(setting: Setting) -> dict[str, int]:
    """The mesh axes with more than one device, and their sizes."""
    return {axis: size for axis, size in zip(AXES, setting.sizes, strict=True) if size > 1} or {"fsdp": 1}


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        screened: number of candidates.
        fitting: number of candidates that fit.
        seconds: duration of the search.
        best: candidates that fit, the fastest first, each with its best attention block and number of loss chunks.
    """

    screened: int
    fitting: int
    seconds: float
    best: tuple[Candidate, ...]


def assess_memory(setting: Setting) -> Candidate:
    """A setting with its memory."""
    return Candidate(setting, device_memory(setting, global_state(setting.model, setting.optimizer, setting.adapter)))


def search(base: Setting, most: int = 10) -> Found:
    """The fastest ways to run a training that fit the memory of its slice."""
    began, screened, fitting, starts = time.perf_counter(), 0, [], [base]
    if base.optimizer.kind != "adafactor" and base.optimizer.moments != "bfloat16":
        half = dataclasses.replace(base.optimizer, moments="bfloat16")
        starts.append(dataclasses.replace(base, optimizer=half))
    for start in starts:
        state = global_state(start.model, start.optimizer, start.adapter)
        for setting in variants(start):
            candidate, screened = Candidate(setting, device_memory(setting, state)), screened + 1
            if candidate.fits:
                fitting.append(candidate)
        if fitting:
            break
    distinct: dict[tuple, Candidate] = {}  # the first of those that differ only in the block or the loss chunks
    for one in fastest_first(fitting, base):
        setting = one.setting
        distinct.setdefault((setting.sizes, setting.remat, setting.accumulation, setting.optimizer), one)
    return Found(screened, len(fitting), time.perf_counter() - began, tuple(distinct.values())[:most])


def variants(base: Setting) -> Iterator[Setting]:
    """`base`, and every other way to run it.

    An attention block or a number of loss chunks of 0 is the platform's choice. The others are the blocks that the
    chip's kernel accepts, and numbers of chunks near the platform's that divide a device's part of a row.
    """
    yield base
    accepted = [block for block in base.device.attention if block >= SMALLEST_BLOCK]
    for sizes in meshes(base):
        rows, left = divmod(base.rows, sizes[0] * sizes[1] * sizes[2])
        shared = [] if left else [parts for parts in divisors(min(rows, MOST_PARTS)) if rows % parts == 0]
        for remat, parts in product(RECOMPUTED, shared):
            platforms = {"attention_block": 0, "loss_chunks": 0}
            free = dataclasses.replace(with_remat(base, remat), sizes=sizes, accumulation=parts, **platforms)
            blocks = [block for block in accepted if block != free.block and free.contiguous % block == 0]
            length, own = base.length // free.along("sequence"), free.chunks
            near = [round(own * times) for times in CHUNKS]
            near = [count for count in near if count and count != own and length % count == 0]
            for block, chunks in product([0, *blocks], [0, *near]):
                setting = dataclasses.replace(free, attention_block=block, loss_chunks=chunks)
                if setting != base:
                    yield setting


def meshes(setting: Setting) -> Iterator[tuple[int, ...]]:
    """Every mesh that the model, the rows and the slices allow."""
    model, topology, length = setting.model, setting.topology, setting.length
    split_by_tensor = (model.heads, model.kv_heads, model.mlp_width, model.vocabulary_size)
    tensors = [size for size in divisors(topology.devices) if not any(of % size for of in split_by_tensor)]
    sequences = [size for size in range(1, LONGEST_SEQUENCE + 1) if size == 1 or length % (2 * size) == 0]
    experts = divisors(model.experts) if model.experts else [1]
    for tensor, sequence, expert in product(tensors, sequences if length >= LONG_ROW else [1], experts):
        rest, left = divmod(topology.devices, tensor * sequence * expert)
        for fsdp in [] if left else divisors(rest):
            if model.width % fsdp == 0 and rest // fsdp % topology.slices == 0:
                yield rest // fsdp, fsdp, expert, sequence, tensor


def why_behind(one: Candidate, best: Candidate) -> str:
    """The part of the step that makes a runner-up slower, in words."""
    mine, theirs = (found.estimate.parts for found in (one, best))
    more = {name: mine.get(name, 0.0) - theirs.get(name, 0.0) for name in {*mine, *theirs}}
    worst = max(more, key=more.get)
    lost = one.estimate.step_seconds / best.estimate.step_seconds - 1
    if lost < NEAR:
        return "as fast, with more changes or less memory to spare"
    return f"{lost:.1%} slower: {moment(more[worst])} more of {worst}"


def fastest_first(fitting: list[Candidate], base: Setting) -> list[Candidate]:
    """The fastest first; among equals, the nearest to the recipe, and then the smallest."""
    order = sorted(fitting, key=lambda found: found.estimate.step_seconds)
    bound = order[0].estimate.step_seconds * (1 + NEAR) if order else 0.0
    first = [found for found in order if found.estimate.step_seconds <= bound]
    names = ("sizes", "remat", "accumulation", "attention_block", "loss_chunks", "optimizer")
    changes = lambda setting: sum(getattr(setting, name) != getattr(base, name) for name in names)  # noqa: E731
    first.sort(key=lambda found: (changes(found.setting), found.memory.peak))
    return first + order[len(first) :]


@dataclass(frozen=True)
class Advice:
    """For a setting that does not fit.

    Args:
        over_bytes: what is missing on each device.
        largest: the kind of memory that is largest, and its bytes.
        change: the key and the value that make it fit; empty if no one key does. A key that changes no number of the
            result comes before one that does, then the fastest comes first.
    """

    over_bytes: float
    largest: str
    largest_bytes: float
    change: str


def advise(candidate: Candidate) -> Advice | None:
    """Advice for what does not fit; None for what does."""
    if candidate.fits:
        return None
    kinds, limit = candidate.memory.kinds, candidate.setting.device.hbm_bytes
    largest = max(kinds, key=kinds.get)
    keys = {section.dotted(key): key for section in sections(Recipe) for key in section.keys}
    ways = {}
    for change, setting in changes_of_one_key(candidate.setting):
        found = assess_memory(setting)
        if found.fits:
            dotted = change.split(":")[0].replace(setting.key, "pretrain")  # every training has the keys of `pretrain`
            ways[change] = not keys[dotted].changes.resumes, -found.estimate.tokens_per_second
    change = min(ways, key=ways.get, default="")
    return Advice(candidate.memory.peak - limit, largest, kinds[largest], change)


def changes_of_one_key(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """Every setting that differs in one key of the recipe, and that key with its value."""
    for remat in RECOMPUTED:
        yield f"model.remat: {remat}", with_remat(setting, remat)
    rows = setting.rows // setting.along("data", "fsdp", "expert")
    for parts in divisors(rows):
        if parts > setting.accumulation:
            yield f"{setting.key}.accumulation: {parts}", dataclasses.replace(setting, accumulation=parts)
    length = setting.length // setting.along("sequence")
    for count in divisors(length):
        if count > setting.chunks:
            yield f"{setting.key}.loss_chunks: {count}", dataclasses.replace(setting, loss_chunks=count)
    for sizes in meshes(setting):
        if setting.rows // setting.accumulation % (sizes[0] * sizes[1] * sizes[2]) == 0:
            changed = dataclasses.replace(setting, sizes=sizes)
            yield f"mesh: {written(mesh_of(changed))}", changed
    smaller = (("moments", "bfloat16"), ("kind", "adafactor"), ("kind", "muon"))
    for key, value in smaller if setting.optimizer.kind != "adafactor" else ():
        own = {"moments": "float32"} if value == "adafactor" else {}
        optimizer = dataclasses.replace(setting.optimizer, **own | {key: value})
        yield f"{setting.key}.optimizer.{key}: {value}", dataclasses.replace(setting, optimizer=optimizer)
    least = setting.along("data", "fsdp", "expert") * setting.accumulation
    for parts in divisors(setting.rows // least)[1:] if setting.rows % least == 0 else []:
        fewer = dataclasses.replace(setting, rows=setting.rows // parts)
        yield f"{setting.key}.batch_size: {fewer.rows}", fewer
