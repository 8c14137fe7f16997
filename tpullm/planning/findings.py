"""What a compiled step should not do, in words: what it is, its cost, its place in our code, and the cure.

A rule is a function that yields what it finds in a `Look`: a program, and what is expected. `find_faults` runs all.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tpullm.planning.instructions import Instruction, computations
from tpullm.planning.timeline import Item
from tpullm.system.words import memory
from tpullm.training.losses import CHUNK

SMALL = 1 << 20  # bytes; up to this, an array is a norm, a loss or the like
SHARE = 0.005  # of a step; cheaper findings are not reported
ASKED = ("all_to_all", "optimizer")  # places of intended all-to-alls: dispatch and combine, and Muon's matrices


@dataclass(frozen=True)
class Finding:
    """Something in the program that should be changed.

    Args:
        kind: a key of `KINDS`.
        text: one sentence: what it is, its size, its place, and the cure.
        place: in our code, as the traced function names it.
        bytes: that it moves or holds in a step, on one device.
        seconds: its cost in a step; 0 if it costs only memory.
    """

    kind: str
    text: str
    place: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Look:
    """A program and what is expected of it.

    Args:
        items: of `schedule`.
        text: of the executable.
        mesh: devices along each axis, in the order of the mesh.
        largest_parameter: elements of the largest parameter that is used at once.
        tokens: of a micro-batch on one device.
        vocabulary: token ids of one device.
    """

    items: list[Item]
    text: str
    mesh: dict[str, int]
    largest_parameter: int
    tokens: int
    vocabulary: int

    @cached_property
    def named(self) -> dict[str, Instruction]:
        """Every instruction of the program by its name."""
        return {one.name: one for body in computations(self.text).values() for one in body}

    @property
    def seconds(self) -> float:
        """Time of a step."""
        return sum(item.seconds for item in self.items)

    def collectives(self, *kinds: str) -> list[Item]:
        """The collectives of these kinds with more than `SMALL` bytes."""
        return [one for one in self.items if one.collective and _collective_kind(one) in kinds and one.bytes > SMALL]


def axes_of(groups: list[list[int]], mesh: dict[str, int]) -> str:
    """The mesh axes in which the devices of a group differ, such as `fsdp` or `fsdp+tensor`."""
    sizes = tuple(mesh.values())
    if not groups or max(groups[0]) >= math.prod(sizes):
        return ""
    places = np.array(np.unravel_index(groups[0], sizes))
    return "+".join(name for name, along in zip(mesh, places, strict=True) if len(set(along.tolist())) > 1)


def find_faults(look: Look) -> tuple[Finding, ...]:
    """All findings, the most expensive first."""
    found = [
        Finding(kind, f"{what}, in {place}: {cure}", place, size, seconds)
        for kind, rule in KINDS.items()
        for place, what, cure, size, seconds in rule(look)
    ]
    return tuple(sorted(found, key=lambda finding: (-finding.seconds, -finding.bytes)))


# A rule yields the place, what is wrong there, the cure, and the bytes and seconds that it costs.
Found = Iterator[tuple[str, str, str, int, float]]


def _whole_all_gathers(look: Look) -> Found:
    most = 4 * look.largest_parameter  # bytes in float32, the widest type of a matmul
    for place, items in _by_place(item for item in look.collectives("all-gather") if item.bytes > most):
        sizes = f"{memory(items[0].bytes)}, where the largest has {memory(most)}"
        what = f"more than one layer's parameter is gathered at once ({sizes})"
        yield place, what, "gather it where it is used, in the loop over layers", *_total_cost(items)


def _all_reduces_along_fsdp(look: Look) -> Found:
    summed = (item for item in look.collectives("all-reduce") if "fsdp" in _collective_axes(look, item).split("+"))
    for place, items in _by_place(summed):
        what = f"{memory(items[0].bytes)} are all-reduced along fsdp, twice the bytes of a reduce-scatter"
        yield place, what, "reduce-scatter it (model/collectives.py), or make its width even", *_total_cost(items)


def _unwanted_reshards(look: Look) -> Found:
    """A name of a reshard, or of no intended all-to-all. Parts of a reduce-scatter have no name."""

    def is_unasked(item: Item) -> bool:
        name = item.collective.operation
        unknown = _collective_kind(item) == "all-to-all" and not any(asked in name for asked in ASKED)
        return unknown or bool(re.search(r"(reshard|sharding_constraint)[^/]*$", name))

    moved = look.collectives("all-to-all", "collective-permute", "all-gather")
    for place, items in _by_place(filter(is_unasked, moved)):
        what = f"{_collective_kind(items[0])} of {memory(items[0].bytes)} that our code does not ask for"
        yield place, what, "give both sides the same sharding (mesh.layout.Rules)", *_total_cost(items)


def _waits_for_collectives(look: Look) -> Found:
    grouped = defaultdict(list)
    for item in look.items:
        if item.collective:
            grouped[_collective_kind(item), _collective_axes(look, item)].append(item)
    for (kind, axes), items in grouped.items():
        (size, waited), busy = _total_cost(items), sum(item.busy_seconds for item in items)
        if waited > SHARE * look.seconds:
            place = _place_in_code(max(items, key=lambda item: item.seconds))
            what = f"{kind} along {axes or 'all devices'}: {waited * 1e3:.0f} of {busy * 1e3:.0f} ms are exposed"
            yield place, what, "more rows a device, or fewer devices along that axis", size, waited


def _large_copies(look: Look) -> Found:
    """Copies that keep the layout, and all copies outside of loops."""
    for place, items in _by_place(item for item in _copies(look) if not _changes_layout(look, item)):
        what = f"{memory(items[0].instruction.shapes[0].bytes)} are copied {_times_a_step(items)}"
        yield place, what, "use the array before it is changed, or donate it", *_total_cost(items)


def _layout_changes(look: Look) -> Found:
    for place, items in _by_place(item for item in _copies(look) if _changes_layout(look, item)):
        shape = items[0].instruction.shapes[0]
        what = f"{memory(shape.bytes)} {shape.dtype}{list(shape.dims)} change their layout {_times_a_step(items)}"
        yield place, what, "produce it in the layout that its use needs", *_total_cost(items)


def _logits_at_once(look: Look) -> Found:
    """Logits of a quarter of all tokens or more, and larger than a chunk of the loss (`losses.CHUNK`)."""
    most = max(look.tokens * look.vocabulary // 4, look.largest_parameter, CHUNK // 4)
    for item in look.items:
        for shape in item.instruction.shapes:
            if shape.dtype == "f32" and math.prod(shape.dims) > most and look.vocabulary in shape.dims:
                what = f"float32 logits of many tokens at once, {list(shape.dims)}, {memory(shape.bytes)}"
                yield _place_in_code(item), what, "chunk the loss", shape.bytes, 0.0
                return


def _no_attention_kernel(look: Look) -> Found:
    if not re.search("splash|triton_attention", look.text):
        what = "attention does not use the chip's kernel, and its scores go through memory"
        cure = "make pretrain.sequence_length a multiple of 128"
        yield "attention.kernels.attention_kernel", what, cure, 0, 0.0


KINDS: dict[str, Callable[[Look], Found]] = {
    "gathered_whole": _whole_all_gathers,
    "summed_everywhere": _all_reduces_along_fsdp,
    "resharded": _unwanted_reshards,
    "waited_for": _waits_for_collectives,
    "copied": _large_copies,
    "transposed": _layout_changes,
    "all_scores": _logits_at_once,
    "no_kernel": _no_attention_kernel,
}


def _collective_kind(item: Item) -> str:
    return item.collective.kind.removeprefix("ragged-")


def _collective_axes(look: Look, item: Item) -> str:
    return axes_of(item.collective.devices(), look.mesh)


def _copies(look: Look) -> list[Item]:
    """Copies within HBM that are neither small nor cheap."""
    copies = [item for item in look.items if item.instruction.opcode in ("copy", "transpose")]
    return [one for one in copies if one.seconds > SHARE / 2 * look.seconds and one.instruction.shapes[0].bytes > SMALL]


def _changes_layout(look: Look, item: Item) -> bool:
    """Whether a copy in a loop changes the layout."""
    copied = next((look.named[name].shapes[:1] for name in item.instruction.uses if name in look.named), [])
    return item.times > 1 and any(source.order != item.instruction.shapes[0].order for source in copied)


def _by_place(items: Iterable[Item]) -> list[tuple[str, list[Item]]]:
    """Group items by their place in our code; each group is one finding."""
    grouped = defaultdict(list)
    for item in items:
        grouped[_place_in_code(item)].append(item)
    return list(grouped.items())


def _place_in_code(item: Item) -> str:
    """The end of the path in the traced function, without the parts that JAX adds."""
    operation = item.instruction.operation or (item.collective.operation if item.collective else "")
    backward = "transpose(" in operation
    operation = re.sub(r"(transpose|jvp)\(|\)", "", operation.replace("rematted_computation", "recomputed"))
    added = ("jit(", "step", "while", "body", "eval_jaxpr", "closed_call", "checkpoint", "shard_map", "cond", "vmap(")
    parts = [part for part in operation.split("/") if part and not part.startswith(added)]
    return "/".join(["backward"] * backward + parts[-4:]) if parts else item.inside


def _total_cost(items: list[Item]) -> tuple[int, float]:
    return sum(item.times * item.bytes for item in items), sum(item.seconds for item in items)


def _times_a_step(items: list[Item]) -> str:
    times = sum(item.times for item in items)
    return f"{times} times a step" if times > 1 else "once a step"
