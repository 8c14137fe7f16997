"""Whether a model in use fits the memory of this machine: before its weights are read, from their shapes alone."""

import math
from typing import Any, NamedTuple

import jax

from tpullm.engine.cache import CHUNK, SIZE
from tpullm.engine.engine import PIECES, Engine
from tpullm.engine.session import Found, Session, built_on_mesh, dtype_in_use, targets_in_use
from tpullm.model.platform import decodes_separate_layers, is_one_cpu
from tpullm.model.rows import row_parts
from tpullm.system.errors import UserError
from tpullm.system.process.memory import free_bytes

GIB = 1 << 30
SMALL = 1 * GIB  # of a model that may come beside another without being asked for


class Needs(NamedTuple):
    """Bytes of one device."""

    weights: int
    rows: int
    programs: int


def needs_of_session(session: Session, longest: int, models: int = 1) -> Needs:
    """What engines of texts of up to `longest` tokens need.

    Args:
        session: of which only the shapes of the parameters are looked at.
        models: how many have rows of their own; of adapters, which are small, the parameters are not counted.
    """
    config, mesh = session.architecture.config, session.mesh
    with jax.set_mesh(mesh):
        twice = decodes_separate_layers() and not is_one_cpu(mesh)
    again = [session.params[name] for name in config.stacks] if twice else []
    weights = _device_bytes(session.params) + _device_bytes(again)
    rows = Engine(session, longest=longest).memory_bytes() // mesh.size
    # The largest program's, for each piece: to read it, scores twice in float32, and where several texts are read at a
    # time, keys and values; to echo its tokens, logits of a quarter of it.
    of_slot = 2 * config.heads * SIZE + (2 * config.kv_heads * config.head_width if row_parts(mesh) > 1 else 0)
    reading = longest * of_slot + SIZE * (3 * config.mlp_width + 6 * config.width) + config.vocabulary_size
    piece = 4 * max(reading, 3 * SIZE // 4 * config.vocabulary_size)
    return Needs(weights, models * rows, piece * -(-PIECES[-1] // mesh.size))


def _device_bytes(arrays: Any) -> int:
    """What a device holds of arrays."""
    return sum(math.prod(of.sharding.shard_shape(of.shape)) * of.dtype.itemsize for of in jax.tree.leaves(arrays))


def _needs_of_found(found: Found, longest: int, models: int, base: Found | None) -> Needs:
    dtype, (architecture, mesh) = dtype_in_use(exact=False), built_on_mesh(found)
    shapes = targets_in_use(found, architecture, mesh, dtype)
    own = needs_of_session(Session(found.tokenizer, architecture, shapes, mesh, dtype), longest, models)
    if base is None:
        return own
    beside = _needs_of_found(base, min(longest, base.config.context_length), 1, None)
    return Needs(own.weights + beside.weights, own.rows + beside.rows, max(own.programs, beside.programs))


def is_small_beside(base: Found, found: Found, longest: int, models: int) -> bool:
    """Whether a base takes little, and this machine has it free beside the model; arguments as of `check_memory`."""
    alone, both = (_needs_of_found(found, longest, models, of) for of in (None, base))
    free = _free_device_bytes()
    return sum(both) - sum(alone) <= SMALL and (free is None or sum(both) <= free)


def check_memory(found: Found, longest: int, models: int = 1, base: Found | None = None) -> None:
    """Refuse a model for which this machine lacks memory, before any is taken; arguments as of `needs_of_session`.

    Args:
        base: another model that is served beside it.

    Raises:
        UserError: by how much, and the longest text that would fit.
    """
    free, needed = _free_device_bytes(), _needs_of_found(found, longest, models, base)
    if free is None or sum(needed) <= free:
        return
    length = longest
    while length and sum(_needs_of_found(found, length, models, base)) > free:
        length = length // 2 // CHUNK * CHUNK  # half, a quarter, and so on, in whole chunks
    advice = f"use --longest {length}" if length else "use a smaller model or a machine with more memory"
    where = "a device" if jax.default_backend() != "cpu" else "this machine"
    weights, rows, programs = (size / GIB for size in needed)
    raise UserError(
        f"serve: needs {sum(needed) / GIB:,.2f} GiB of memory (weights {weights:,.2f}, keys and values {rows:,.2f}, "
        f"programs {programs:,.2f}), {(sum(needed) - free) / GIB:,.2f} more than {where} has free; {advice}"
    )


def _free_device_bytes() -> int | None:
    """The free bytes of the local device that has least; a CPU's devices share the machine's."""
    if jax.default_backend() == "cpu":
        free = free_bytes()
        return None if free is None else free // jax.local_device_count()
    stats = [device.memory_stats() for device in jax.local_devices()]
    known = [one["bytes_limit"] - one["bytes_in_use"] for one in stats if one and "bytes_limit" in one]
    return min(known, default=None)
