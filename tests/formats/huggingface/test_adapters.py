"""Adapters of every family against PEFT in float32: logits, loss and gradients; PEFT's in ours, ours in PEFT.

Also beside a quantized base, whose numbers are then the weights of theirs. That the codes of a matrix are those of
bitsandbytes is in `tests/model/test_quantized.py`.
"""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.formats.huggingface.small import LENGTH, MODELS, OF_FAMILIES, V, rows
from tests.formats.huggingface.test_exchange import tensors_in, write
from tests.training.small import mesh
from tpullm.data.batch import Batch
from tpullm.formats.huggingface import adapters, configs, tensors
from tpullm.model import quantized
from tpullm.model.adapter import with_lengths
from tpullm.model.architecture import Architecture
from tpullm.recipe.schema import AdapterConfig
from tpullm.system.errors import UserError
from tpullm.training.step import batch_loss

torch = pytest.importorskip("torch", reason="the extra `hf` is not installed")
peft = pytest.importorskip("peft", reason="the extra `hf` is not installed")
pytest.importorskip("transformers", reason="the extra `hf` is not installed")

KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
QUANTIZED = {"nf4": "lora", "int8": "lora", "fp8": "lora", "nf4 dora": "dora"}


def both(name):
    """Their model, our architecture and parameters, our shapes by flat name, and the family."""
    from tests.formats.huggingface.test_parity import ours, theirs

    architecture, params = ours(name)
    return theirs(name), architecture, params, tensors.flat(architecture.shapes), configs.FAMILIES[MODELS[name][0]]


def their_adapter(model, family, architecture, kind, folder):
    """A PEFT model with random matrices, and the folder that it was saved in."""
    names = sorted({module.last for module in adapters.modules(family, tensors.flat(architecture.shapes), 1)})
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


def batch():
    tokens = rows()
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), inputs.shape)
    return Batch(inputs, targets, np.ones_like(inputs), positions, np.ones(inputs.shape, np.float32))


def computed(architecture, frozen, adapter):
    """Our logits, loss, and gradient of the adapter."""
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
    model, architecture, params, shapes, family = both(name)
    adapted = their_adapter(model, family, architecture, kind, tmp_path / "theirs")
    compare(adapted, tmp_path / "theirs", architecture, params, family, kind)


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("name", OF_FAMILIES)
def test_theirs_beside_a_quantized_base(name, kind, tmp_path):
    _, architecture, params, _, family = both(name)
    with jax.set_mesh(mesh()):
        codes = jax.jit(quantize, static_argnums=1)(params, kind.split()[0])
        numbers = jax.device_get(jax.jit(quantized.rounded, static_argnums=1)(params, kind.split()[0]))
    write(tmp_path / "base", architecture, numbers, preferred=MODELS[name][0])
    model = from_files(name, tensors_in(tmp_path / "base"))
    adapted = their_adapter(model, family, architecture, QUANTIZED[kind], tmp_path / "theirs")
    compare(adapted, tmp_path / "theirs", architecture, codes, family, QUANTIZED[kind], kind.split()[0])


def quantize(params, kind):
    return quantized.each_matrix(params, lambda matrix, axis: quantized.quantized(matrix, kind, axis))


def from_files(name, weights):
    from tests.formats.huggingface.test_parity import theirs

    return theirs(name, weights)


def compare(adapted, folder, architecture, params, family, kind, quantize_base=""):
    """Logits, loss and gradients of their adapter, and of ours, read from `folder` and beside `params`.

    Reading and writing gives the same numbers.
    """
    shapes = tensors.flat(architecture.shapes)
    config, arrays = adapters.read(folder, shapes, architecture.config.layers)
    assert (config.rank, config.magnitude) == (3, kind == "dora")
    own = Architecture(architecture.config, dataclasses.replace(config, quantize_base=quantize_base))
    found_logits, found_loss, found = computed(own, params, tensors.nested(arrays))
    logits, loss = their_loss(adapted)
    loss.backward()
    # Sums in another order in float32: some roundings of 6e-8, through three layers.
    near(found_logits, logits.detach().numpy(), 1e-5)
    assert found_loss == pytest.approx(loss.item(), rel=1e-5)
    gradients = {
        key.replace(".default", ""): value.grad.numpy()
        for key, value in adapted.named_parameters()
        if value.requires_grad
    }
    gradients = {key.replace("magnitude_vector.weight", "magnitude_vector"): value for key, value in gradients.items()}
    for module in adapters.modules(family, shapes, architecture.config.layers):
        where, layer = f"{adapters.PREFIX}{module.name}.", module.layer
        a, b = gradients.pop(where + adapters.A), gradients.pop(where + adapters.B)
        near(sum(found[f"{part}.adapter.a"][layer].reshape(-1, 3).T for part in module.ours), a, 1e-4, where)
        seconds = [found[f"{part}.adapter.b"][layer].reshape(3, -1).T for part in module.ours]
        near(np.concatenate(seconds), b, 1e-4, where)
        if kind == "dora":
            lengths = [found[f"{part}.adapter.magnitude"][layer].reshape(-1) for part in module.ours]
            near(np.concatenate(lengths), gradients.pop(where + adapters.MAGNITUDE).reshape(-1), 1e-4, where)
    assert not gradients
    again = folder.with_name("again")
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
    model, architecture, params, shapes, family = both(name)
    wanted = {part.rpartition(".")[2] for module in adapters.modules(family, shapes, 1) for part in module.ours}
    config = AdapterConfig(
        rank=2, alpha=3.0, root_scale=kind == "rslora", magnitude=kind == "dora", targets=tuple(sorted(wanted))
    )
    own, random = Architecture(architecture.config, config), np.random.default_rng(1)
    noise = jax.tree.map(lambda leaf: random.normal(0, 0.2, leaf.shape).astype(np.float32), own.trained(own.shapes))
    with jax.set_mesh(mesh()):
        fresh = jax.device_get(jax.jit(with_lengths)(params, jax.tree.map(jnp.asarray, noise)))
    adapter = jax.tree.map(lambda value, more: value if value is more else value * 1.1, fresh, noise)
    arrays = tensors.flat(adapter)
    logits, _, _ = computed(own, params, adapter)
    adapters.write(tmp_path, family, arrays, config, shapes, "base")
    near(their_loss(peft.PeftModel.from_pretrained(model, tmp_path).eval())[0].detach().numpy(), logits, 1e-5)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    model, architecture, _, _, family = both("llama-2")
    their_adapter(model, family, architecture, "lora", tmp_path)
    other = both("gpt-2")[1]
    with pytest.raises(UserError, match="is for a matrix of .* its base is another model"):
        adapters.read(tmp_path, tensors.flat(other.shapes), 3)
    (tmp_path / adapters.CONFIG).write_text('{"peft_type": "IA3"}')
    with pytest.raises(UserError, match="peft_type is IA3; only LORA is known here"):
        adapters.read(tmp_path, tensors.flat(architecture.shapes), 3)


def test_an_adapter_of_experts_has_no_form_in_peft(tmp_path):
    _, architecture, _, shapes, family = both("mixtral")
    own = Architecture(architecture.config, AdapterConfig(rank=2, targets=("query", "up")))
    arrays = {key: np.zeros(leaf.shape, np.float32) for key, leaf in tensors.flat(own.trained(own.shapes)).items()}
    with pytest.raises(UserError, match="PEFT has no form for an adapter of up of experts; use --merge"):
        adapters.write(tmp_path, family, arrays, own.adapter, shapes, "base")
