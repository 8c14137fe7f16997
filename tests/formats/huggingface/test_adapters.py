"""Adapters of every family against PEFT in float32: logits, loss and gradients; PEFT's in ours, ours in PEFT."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.formats.huggingface.small import MODELS, V, as_ours, batch, logits, published, rows
from tests.formats.huggingface.test_recorded_adapters import made
from tests.training.small import mesh
from tpullm.formats.huggingface import adapters, tensors
from tpullm.model.architecture import Architecture
from tpullm.training.step import batch_loss

torch = pytest.importorskip("torch", reason="the extra `hf` is not installed")
peft = pytest.importorskip("peft", reason="the extra `hf` is not installed")
theirs = pytest.importorskip("tests.formats.huggingface.test_parity", reason="needs transformers").theirs

KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


def their_adapter(model, family, architecture, kind, folder):
    """A PEFT model with random matrices, and the folder that it was saved in."""
    modules = adapters.modules_with_adapters(family, tensors.flat(architecture.shapes))
    names = sorted({".".join(module.name.split(".")[-2:]) for module in modules})
    torch.manual_seed(0)
    settings = dict(r=3, lora_alpha=5, target_modules=names, init_lora_weights=False, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, peft.LoraConfig(**settings, **KINDS[kind])).eval()
    if kind == "dora":
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "magnitude" in key:
                    parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    adapted.save_pretrained(folder)
    return adapted


def computed(architecture, frozen, adapter):
    rows_of = batch()

    @jax.jit
    def run(adapter, frozen):
        def mean_loss(adapter):
            params = architecture.whole(adapter, frozen)
            total, sums = batch_loss(architecture, params, rows_of, dtype=jnp.dtype("float32"))
            return total / sums.weight

        model = architecture.model(architecture.whole(adapter, frozen))
        hidden = model(rows_of.inputs, rows_of.segment_ids, rows_of.positions, dtype=jnp.float32).hidden
        return model.logits(hidden), *jax.value_and_grad(mean_loss)(adapter)

    with jax.set_mesh(mesh()):
        logits, loss, gradient = jax.device_get(run(adapter, frozen))
    return logits, loss, tensors.flat(gradient)


def their_loss(model):
    rows_of = batch()
    logits = model(input_ids=torch.from_numpy(rows_of.inputs).long()).logits
    targets = torch.from_numpy(rows_of.targets).long().reshape(-1)
    return logits, torch.nn.functional.cross_entropy(logits.reshape(-1, V), targets)


def near(found, wanted, share, what=""):
    np.testing.assert_allclose(found, wanted, atol=share * max(np.abs(wanted).max(), 1e-6), err_msg=what)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_theirs_in_ours(name, kind, tmp_path):
    """Logits, loss and gradients; reading and writing gives the same numbers."""
    model_type, keys = MODELS[name]
    architecture, family, found = published({"model_type": model_type, **keys})
    params, shapes = as_ours(architecture, family, found), tensors.flat(architecture.shapes)
    folder, again = tmp_path / "theirs", tmp_path / "again"
    adapted = their_adapter(theirs(name), family, architecture, kind, folder)
    config, arrays = adapters.read(folder, shapes)
    assert (config.rank, config.magnitude) == (3, kind == "dora")
    own = Architecture(architecture.config, config)
    found_logits, found_loss, found = computed(own, params, tensors.nested(arrays))
    their_logits, loss = their_loss(adapted)
    loss.backward()
    # Sums in another order in float32: some roundings of 6e-8, through three layers.
    near(found_logits, their_logits.detach().numpy(), 1e-5)
    assert found_loss == pytest.approx(loss.item(), rel=1e-5)
    learned = {key: value for key, value in adapted.named_parameters() if value.requires_grad}
    plain = lambda key: key.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")  # noqa: E731
    gradients = {plain(key): value.grad.numpy() for key, value in learned.items()}
    for module in adapters.modules_with_adapters(family, shapes):
        where, layer = f"{adapters.PREFIX}{module.name}.", module.layer
        a, b = gradients.pop(where + adapters.A), gradients.pop(where + adapters.B)
        near(sum(found[f"{part}.adapter.a"][layer].reshape(-1, 3).T for part in module.ours), a, 1e-4, where)
        seconds = [found[f"{part}.adapter.b"][layer].reshape(3, -1).T for part in module.ours]
        near(np.concatenate(seconds), b, 1e-4, where)
        if kind == "dora":
            lengths = [found[f"{part}.adapter.magnitude"][layer].reshape(-1) for part in module.ours]
            near(np.concatenate(lengths), gradients.pop(where + adapters.MAGNITUDE).reshape(-1), 1e-4, where)
    assert not gradients
    again.mkdir()
    adapters.write(again, family, arrays, config, shapes, "base")
    before, after = (load_file(written / adapters.WEIGHTS) for written in (folder, again))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        np.testing.assert_array_equal(after[key].reshape(tensor.shape), tensor, err_msg=key)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_ours_in_theirs(name, kind, tmp_path):
    """An adapter that was made here, each of whose matrices has its own: in fused modules they stand side by side."""
    architecture, family, params, flat = made(name, kind == "dora", kind == "rslora")
    adapters.write(tmp_path, family, flat, architecture.adapter, tensors.flat(architecture.shapes), "base")
    found = their_loss(peft.PeftModel.from_pretrained(theirs(name), tmp_path).eval())[0]
    near(found.detach().numpy(), logits(architecture, params, rows()[:, :-1]), 1e-5)
