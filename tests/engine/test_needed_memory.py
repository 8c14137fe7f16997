"""What a model in use needs is what its arrays take, and a machine that lacks it is told in one line."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from tpullm.engine import needed_memory
from tpullm.engine.cache import SIZE, empty_block, row_block_sizes
from tpullm.engine.engine import PIECES, Engine
from tpullm.engine.forward import read_layers
from tpullm.engine.session import Found, Session, parameter_targets
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import named_sharding
from tpullm.model.rows import row_parts
from tpullm.system.errors import UserError


@pytest.fixture(scope="module")
def shapes(session):
    """A model of 1,024 tokens of which there are only shapes."""
    architecture = Architecture(dataclasses.replace(session.architecture.config, context_length=1024))
    params = parameter_targets(architecture, session.mesh, session.dtype)
    return Session(session.tokenizer, architecture, params, session.mesh, session.dtype)


def bytes_of(arrays) -> int:
    """What arrays take, some of which are parts of others."""
    shards = [shard.data for array in jax.tree.leaves(arrays) for shard in array.addressable_shards]
    ranges = [range(one.unsafe_buffer_pointer(), one.unsafe_buffer_pointer() + one.nbytes) for one in shards]
    return len(set(itertools.chain(*ranges)))


def test_weights_and_rows_are_what_is_in_memory(session, monkeypatch):
    """On all devices of the mesh together, for they have equal shares."""
    needs, devices = needed_memory.needs_of_session(session, 32, models=3), session.mesh.size
    assert needs.weights * devices == bytes_of((session.params, session.layers)) == session.memory_bytes()
    assert needs.rows * devices == 3 * Engine(session, longest=32).memory_bytes()
    monkeypatch.setattr(needed_memory, "is_one_cpu", lambda mesh: False)
    twice = needed_memory.needs_of_session(session, 32).weights * devices
    assert twice == bytes_of(session.params) + bytes_of(session.params["layers"])


def test_the_arrays_of_reading_are_those_of_the_compiled_program(shapes):
    """By XLA's own account; it may need less, since it decides which arrays share their place."""
    mesh = shapes.mesh
    with jax.set_mesh(mesh):
        empty = lambda size: empty_block(shapes.architecture, row_parts(mesh), size, shapes.dtype)  # noqa: E731
        kinds = shapes.architecture.config.kinds_by_layer
        part = slice(0, 1)
        slots = tuple(jax.eval_shape(lambda size=size: empty(size)).of(part) for size in row_block_sizes(1024))
        layers = jax.eval_shape(lambda params: shapes.architecture.model(params).unstacked(), shapes.params)[part]
        width = shapes.architecture.config.width
        given, places = (
            jax.ShapeDtypeStruct((PIECES[-1], *shape), dtype, sharding=named_sharding(mesh, "batch", *split))
            for shape, dtype, split in (((SIZE, width), shapes.dtype, ("time", None)), ((4,), np.int32, (None,)))
        )
        arguments = shapes.architecture, shapes.params, layers, slots, given, places
        program = read_layers.lower(*arguments, kinds=kinds[part]).compile()
        taken = program.memory_analysis().temp_size_in_bytes
    estimate = needed_memory.needs_of_session(shapes, 1024).programs
    assert 1 < estimate / taken < 2, (estimate, taken)


def test_a_machine_that_lacks_memory_is_told_the_longest_text_that_fits(shapes, monkeypatch):
    found = Found(shapes.tokenizer, shapes.architecture.config, None, False)
    monkeypatch.setattr(needed_memory, "dtype_in_use", lambda exact: shapes.dtype)
    less, much = (sum(needed_memory.needs_of_session(shapes, length, 2)) for length in (256, 1024))
    monkeypatch.setattr(needed_memory, "_free_device_bytes", lambda: much)
    needed_memory.check_memory(found, 1024, 2)
    for free, told in ((much - 1, "use --longest 512"), (less, "use --longest 256"), (9, "use a smaller model or a")):
        monkeypatch.setattr(needed_memory, "_free_device_bytes", lambda free=free: free)
        with pytest.raises(UserError, match=rf"^serve: needs [\d.]+ GiB of memory \(weights .*{told}") as raised:
            needed_memory.check_memory(found, 1024, 2)
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(needed_memory, "_free_device_bytes", lambda: None)  # nobody says
    needed_memory.check_memory(found, 1024, 2)


def test_a_base_has_rows_and_weights_of_its_own_and_comes_along_if_it_is_small(shapes, monkeypatch):
    found = Found(shapes.tokenizer, shapes.architecture.config, None, False)
    monkeypatch.setattr(needed_memory, "dtype_in_use", lambda exact: shapes.dtype)
    one, longer = (needed_memory.needs_of_session(shapes, length) for length in (256, 1024))
    base = found._replace(config=dataclasses.replace(found.config, context_length=256))
    both = sum(longer) + one.weights + one.rows
    for free, fits in ((both, True), (both - 1, False), (None, True)):
        monkeypatch.setattr(needed_memory, "_free_device_bytes", lambda free=free: free)
        assert needed_memory.is_small_beside(base, found, 1024, 1) is fits
        if not fits:
            needed_memory.check_memory(found, 1024)
            with pytest.raises(UserError, match="more than"):
                needed_memory.check_memory(found, 1024, 1, base)
    monkeypatch.setattr(needed_memory, "SMALL", one.weights + one.rows - 1)
    assert not needed_memory.is_small_beside(base, found, 1024, 1)
