"""Every family against transformers in float32: logits, loss, the gradient of each parameter, greedy decoding."""

import dataclasses
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.formats.huggingface.small import LENGTH, MODELS, V, as_ours, published, rows
from tests.formats.huggingface.test_exchange import write
from tests.training.small import mesh
from tpullm.data.batch import Batch
from tpullm.engine.generation import decode_batch
from tpullm.engine.session import Session
from tpullm.formats.huggingface import configs, tensors
from tpullm.model.architecture import Architecture
from tpullm.training.step import batch_loss

torch = pytest.importorskip("torch", reason="the extra `hf` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")


def theirs(name):
    """Their model with our weights, from files: in memory, its tensors may be others than those that are published."""
    model_type, keys = MODELS[name]
    config = {"model_type": model_type, **keys}
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        save_file(published(config)[2], Path(folder) / "model.safetensors", {"format": "pt"})
        options = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
        model, found = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    assert not any(found.values()), found
    return model.eval()


def ours(name):
    """Our architecture, and our parameters."""
    model_type, keys = MODELS[name]
    architecture, family, found = published({"model_type": model_type, **keys})
    return architecture, as_ours(architecture, family, found)


def gradients(model):
    """Their gradients, named and shaped as the tensors in files; the model is lost."""
    with torch.no_grad(), TemporaryDirectory() as folder:
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_gradients(name):
    model = theirs(name)
    architecture, params = ours(name)
    tokens = rows()
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    out = model(input_ids=torch.from_numpy(inputs).long())
    loss = torch.nn.functional.cross_entropy(out.logits.reshape(-1, V), torch.from_numpy(targets).long().reshape(-1))
    loss.backward()
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), inputs.shape)
    batch = Batch(inputs, targets, np.ones_like(inputs), positions, np.ones(inputs.shape, np.float32))

    @jax.jit
    def run(params):
        def mean_loss(params):
            total, sums = batch_loss(architecture, params, batch, dtype=jnp.dtype("float32"))
            return total / sums.weight

        inputs = (batch.inputs, batch.segment_ids, batch.positions)
        hidden = architecture.model(params)(*inputs, dtype=jnp.float32).hidden
        return architecture.model(params).logits(hidden), *jax.value_and_grad(mean_loss)(params)

    with jax.set_mesh(mesh()):
        our_logits, our_loss, gradient = jax.device_get(run(params))
    expected = out.logits.detach().numpy()
    # Sums in another order in float32: some roundings of 6e-8, through three layers.
    np.testing.assert_allclose(our_logits, expected, atol=1e-5 * np.abs(expected).max())
    assert our_loss == pytest.approx(loss.item(), rel=1e-5)
    family = configs.FAMILIES[MODELS[name][0]]
    flat, axes = tensors.flat(gradient), tensors.flat(architecture.axes)
    of_theirs = gradients(model)
    for their_name, our_names, place in tensors.pieces(family, flat, architecture.config.layers):
        inputs = tensors.input_dimensions(our_names[0], axes[our_names[0]], place)
        found = tensors.joined(family, [flat[key][place] for key in our_names], inputs)
        wanted = of_theirs.pop(their_name)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max(), err_msg=their_name)
    assert not of_theirs


@pytest.mark.parametrize("name", MODELS)
def test_greedy_decoding_token_for_token(name):
    """64 tokens (GPT-2: to the end of its positions) after prompts of two lengths, from the cache of each."""
    model = theirs(name)
    architecture, params = ours(name)
    m = mesh()
    shardings = architecture.shardings(m)
    placed = jax.tree.map(jax.device_put, params, shardings)
    tokenizer = SimpleNamespace(pad_id=0, begin=[1], stop_ids=[], vocabulary_size=V)
    session = Session(tokenizer, architecture, placed, m, jnp.dtype("float32"))
    room = min(64, architecture.config.context_length - 8) if architecture.config.positions == "learned" else 64
    session_room = dataclasses.replace(session, architecture=_longer(architecture, room + 8))
    for length in (5, 8):
        prompt = rows()[0, :length].tolist()
        found = decode_batch(session_room, [prompt], room, stop_ids=())[0]
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "min_new_tokens": room, "max_new_tokens": room, "eos_token_id": None}
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)[0, length:]
        assert found == wanted.tolist()


def _longer(architecture, context):
    """The same model, used beyond the context that it was made for: nothing but a limit depends on it, except where
    positions are learned."""
    config = architecture.config
    if config.positions == "learned":
        return architecture
    return Architecture(dataclasses.replace(config, context_length=max(context, config.context_length)))


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_what_we_write(name, tmp_path):
    """Their model of our files gives the numbers of their own: no setting was lost, and none has another type."""
    architecture, params = ours(name)
    write(tmp_path / "out", architecture, params, preferred=MODELS[name][0])
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", **options).eval()
    tokens = torch.from_numpy(rows()[:, :-1]).long()
    with torch.no_grad():
        found, wanted = again(input_ids=tokens).logits, theirs(name)(input_ids=tokens).logits
    np.testing.assert_array_equal(found.numpy(), wanted.numpy())
