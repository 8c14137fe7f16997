"""A model that is opened with its matrices in 8 or 4 bits: it computes what the numbers of its codes compute."""

import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest

from tests.engine.chain import continued
from tests.engine.test_session import run  # noqa: F401
from tests.formats.huggingface.published import change, directory
from tpullm.cli.options import add_weights
from tpullm.engine.engine import Engine
from tpullm.engine.request import Request
from tpullm.engine.session import Found, load_session
from tpullm.evaluation import scoring
from tpullm.evaluation.measured_model import parameter_hash
from tpullm.formats.huggingface.tensors import flat
from tpullm.model import quantized
from tpullm.model.packed import is_packed
from tpullm.recipe.sampling import GREEDY
from tpullm.system.errors import UserError

PROMPT = (1, 300, 40, 77, 30, 21)


def is_of(session, given, kind):
    """Whether all that is quantized has the codes of the given parameters, and all else is as it was."""
    change = lambda matrix, axis: quantized.quantized(matrix, kind, axis)  # noqa: E731
    with jax.set_mesh(session.mesh):
        wanted = jax.jit(lambda of: quantized.change_each_matrix(of, change))(given)
    assert jax.tree.structure(session.params) == jax.tree.structure(wanted)
    for found, expected in zip(jax.tree.leaves(session.params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(found, expected)


KINDS = pytest.param("int4", marks=pytest.mark.ci), pytest.param("int8", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=KINDS)
def opened(request, run):  # noqa: F811
    return load_session(run, weights=request.param)


def test_a_checkpoint_is_quantized_as_it_is_read(opened, session):
    is_of(opened, session.params, opened.weights)
    names = {name for name, leaf in flat(opened.params).items() if quantized.is_quantized(leaf)}
    parts = ("attention.query", "attention.key", "attention.value", "attention.out", "mlp.gate", "mlp.up", "mlp.down")
    assert names == {f"layers.{part}.weight" for part in parts}
    assert opened.memory_bytes() < session.memory_bytes()


def test_it_computes_and_the_engine_writes_what_its_numbers_compute(opened):
    """The same numbers in another program: float32 sums in another order, of scores of about 30."""
    with jax.set_mesh(opened.mesh):
        change = jax.jit(lambda of: quantized.change_each_matrix(of, lambda matrix, _: quantized.dequantized(matrix)))
        numbers = dataclasses.replace(opened, params=change(opened.params), weights="")
    ids = np.array([[*PROMPT, *continued(Engine(opened, 2), [Request(PROMPT, 5, GREEDY)])[0]]], np.int32)
    wanted = scoring.logits(numbers, ids)
    np.testing.assert_allclose(scoring.logits(opened, ids), wanted, atol=1e-4)
    assert wanted[0, len(PROMPT) - 1 : -1].argmax(axis=-1).tolist() == ids[0, len(PROMPT) :].tolist()
    assert parameter_hash(opened) != parameter_hash(numbers)


def test_a_published_model_is_quantized_as_it_is_read(tmp_path):
    folder = directory(tmp_path / "published", layers=1)
    is_of(load_session(folder, weights="int4"), load_session(folder).params, "int4")


@pytest.mark.parametrize("weights", [pytest.param(kind, marks=pytest.mark.slow) for kind in ("", "int8", "int4")])
def test_a_cpu_writes_text_with_packed_matrices(run, weights):  # noqa: F811
    """Activations are in bfloat16 (8 bits), and beside integers in steps of 1/127 of the largest of each block: the
    scores are those of the same numbers in float32 but for a hundredth of their spread.
    """
    opened, exact = load_session(run, exact=False, weights=weights), load_session(run, weights=weights)
    found = {name for name, leaf in flat(opened.params).items() if is_packed(leaf)}
    parts = ("attention.query", "attention.key", "attention.value", "mlp.gate", "mlp.up", "mlp.down")
    out = set() if weights else {"layers.attention.out.weight"}  # a scale is of 16 inputs, those of a head
    assert found == {f"layers.{part}.weight" for part in parts} | {"embedding"} | out
    ids = np.array([[*PROMPT, *continued(Engine(opened, 2), [Request(PROMPT, 5, GREEDY)])[0]]], np.int32)
    scores, wanted = scoring.logits(opened, ids), scoring.logits(exact, ids)
    assert np.sqrt(np.mean(np.square(scores - wanted))) < 0.02 * wanted.std()
    at = scores[0, len(PROMPT) - 1 : -1]
    assert (at.max(axis=-1) - np.take_along_axis(at, ids[0, len(PROMPT) :, None], -1)[:, 0] < 0.05 * wanted.std()).all()


def test_an_open_model_is_quantized_once(run):  # noqa: F811
    model = load_session(run)
    assert model.quantized("") is model and model.quantized("int8") is model.quantized("int8")
    is_of(model.quantized("int8"), model.params, "int8")


def test_what_cannot_be_quantized_is_told_before_it_is_read(tmp_path, monkeypatch):
    folder = directory(tmp_path / "published", layers=1)
    change(folder / "config.json", intermediate_size=39)
    monkeypatch.setattr(Found, "params", None)
    with pytest.raises(UserError, match="--weights int4: int4 has two codes in a byte, and .* 39 inputs; use int8"):
        load_session(folder, weights="int4")


def test_the_option_has_the_kinds_of_use():
    parser = mock.Mock()
    add_weights(parser)
    assert parser.add_argument.call_args.kwargs["choices"] == quantized.IN_USE
