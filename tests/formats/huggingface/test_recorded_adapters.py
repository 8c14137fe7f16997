"""An adapter of every family against what PEFT gave when it was recorded: the main suite has no PEFT.

python -m tests.formats.huggingface.test_recorded_adapters      records it; needs the extra `hf`
"""

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.formats.huggingface.published import change
from tests.formats.huggingface.small import MODELS, OF_FAMILIES, as_ours, logits, published, rows, weight
from tests.formats.huggingface.test_recorded import PLACES
from tests.training.small import mesh
from tpullm.data import batch
from tpullm.formats.huggingface import adapters, tensors
from tpullm.model.adapter import with_magnitudes
from tpullm.model.architecture import Architecture
from tpullm.model.attention import plain
from tpullm.recipe.schema import AdapterConfig
from tpullm.system.errors import UserError

FILE = Path(__file__).parent / "recorded_adapters.npz"
# Experts, biases, and modules that hold several of our matrices; the names of all are those of `test_recorded.py`.
QUICK = ("phi-3", "gpt-oss")


@functools.cache
def made(name, magnitude=True, root_scale=False):
    """Our architecture with an adapter (none of experts), its family, all parameters, the adapter's by flat name."""
    model_type, keys = MODELS[name]
    whole, family, found = published({"model_type": model_type, **keys})
    params, shapes = as_ours(whole, family, found), tensors.flat(whole.shapes)
    parts = {part.rpartition(".")[2] for one in adapters.modules_with_adapters(family, shapes) for part in one.ours}
    config = AdapterConfig(2, 3.0, root_scale, magnitude, targets=tuple(sorted(parts)))
    architecture = Architecture(whole.config, config)
    wanted = tensors.flat(architecture.trained(architecture.shapes))
    arrays = {key: weight(key, leaf.shape, 0.0) for key, leaf in wanted.items()}
    with jax.set_mesh(mesh()):
        noisy = jax.device_get(jax.jit(with_magnitudes)(params, jax.tree.map(jnp.asarray, tensors.nested(arrays))))
    flat = {key: array * 1.1 if key.endswith("magnitude") else array for key, array in tensors.flat(noisy).items()}
    assert not (whole.config.experts and any(".mlp." in key for key in flat))
    return architecture, family, architecture.whole(tensors.nested(flat), params), flat


def written(folder, name):
    architecture, family, _, flat = made(name)
    adapters.write(folder, family, flat, architecture.adapter, tensors.flat(architecture.shapes), "base")


def read(folder, name):
    architecture = made(name)[0]
    return adapters.read(folder, tensors.flat(architecture.shapes))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.ci if name in QUICK else pytest.mark.slow) for name in OF_FAMILIES]
)
def test_logits_are_those_recorded(name):
    """With DoRA, and each of our matrices with an adapter of its own."""
    architecture, _, params, _ = made(name)
    found = logits(architecture, params, rows(1)[:, :-1])[0, list(PLACES)]
    expected = np.load(FILE)[name]
    # Sums in another order in float32, through three layers.
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["llama-2", "gpt-2", "phi-3"])
def test_written_and_read_again_is_the_same(name, tmp_path):
    """Of modules that hold several of our matrices, one wider adapter is read for each, which computes the same."""
    architecture, _, _, flat = made(name)
    written(tmp_path, name)
    config, arrays = read(tmp_path, name)
    assert config.targets == architecture.adapter.targets and config.magnitude
    for key in [key.removesuffix(".a") for key in flat if key.endswith(".a")]:
        ours, theirs = ((tree[f"{key}.a"], tree[f"{key}.b"]) for tree in (flat, arrays))
        scales = architecture.adapter.scale, config.scale
        for layer in (0, -1):
            of_both = zip(scales, (ours, theirs), strict=True)
            products = [scale * np.tensordot(a[layer], b[layer], 1) for scale, (a, b) in of_both]
            np.testing.assert_allclose(products[1], products[0], atol=1e-5)
        np.testing.assert_array_equal(arrays[f"{key}.magnitude"], flat[f"{key}.magnitude"])


def test_an_adapter_of_experts_has_no_form_in_peft(tmp_path):
    architecture, family = made("mixtral")[:2]
    own = Architecture(architecture.config, AdapterConfig(rank=2, targets=("query", "up")))
    arrays = {key: np.zeros(leaf.shape, np.float32) for key, leaf in tensors.flat(own.trained(own.shapes)).items()}
    with pytest.raises(UserError, match="PEFT has no form for an adapter of up of experts; use --merge"):
        adapters.write(tmp_path, family, arrays, own.adapter, tensors.flat(architecture.shapes), "base")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "IA3", "peft_type is IA3; only LORA is known here"),
        ("init_lora_weights", "pissa", "init_lora_weights is pissa"),
        ("rank_pattern", ["q"], "rank_pattern is .*, and no object"),
        ("alpha_pattern", {"q_proj": True}, "alpha_pattern has q_proj: True"),
        ("r", "many", "r is many, and no number above 0"),
    ],
)
def test_what_is_not_computed_here_is_refused(key, value, message, tmp_path):
    written(tmp_path, "llama-2")
    change(tmp_path / adapters.CONFIG, **{key: value})
    with pytest.raises(UserError, match=message):
        read(tmp_path, "llama-2")


def test_an_adapter_of_another_model_and_dora_in_some_layers_alone_are_refused(tmp_path):
    """A layer without one would have lengths of 0."""
    written(tmp_path, "llama-2")
    with pytest.raises(UserError, match="is for a matrix of .* its base is another model"):
        read(tmp_path, "gpt-2")
    kept = {key: value for key, value in load_file(tmp_path / adapters.WEIGHTS).items() if ".layers.1." not in key}
    save_file(kept, tmp_path / adapters.WEIGHTS)
    with pytest.raises(UserError, match="has no DoRA in some layers"):
        read(tmp_path, "llama-2")


def test_the_two_places_that_know_of_branches_agree():
    assert batch.BRANCH == plain.BRANCH


def main() -> None:
    import peft
    import torch

    from tests.formats.huggingface.test_parity import theirs

    found = {}
    for name in OF_FAMILIES:
        with TemporaryDirectory() as folder, torch.no_grad():
            written(Path(folder), name)
            model = peft.PeftModel.from_pretrained(theirs(name), folder).eval()
            logits = model(input_ids=torch.from_numpy(rows(1)[:, :-1]).long()).logits
            found[name] = logits[0, list(PLACES)].numpy()
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
