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

from tests.formats.huggingface.small import MODELS, V, as_ours, published, rows
from tests.formats.huggingface.small import batch as batch_of_rows
from tests.formats.huggingface.test_exchange import write
from tests.training.small import mesh
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
    model_type, keys = MODELS[name]
    architecture, family, found = published({"model_type": model_type, **keys})
    return architecture, as_ours(architecture, family, found)


def gradients(model):
    """Their gradients, named and shaped as the tensors in files; the model is lost."""
    with torch.no_grad(), TemporaryDirectory() as folder:
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        for buffer in model.buffers():  # of the router: a bias that no gradient moves
            buffer.zero_()
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_gradients(name):
    model = theirs(name)
    architecture, params = ours(name)
    batch = batch_of_rows()
    out = model(input_ids=torch.from_numpy(batch.inputs).long())
    targets = torch.from_numpy(batch.targets).long().reshape(-1)
    loss = torch.nn.functional.cross_entropy(out.logits.reshape(-1, V), targets)
    loss.backward()

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
    for their_name, our_names, place in tensors.pieces(family, flat):
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
    room = 64
    if architecture.config.positions == "learned":
        room = min(room, architecture.config.context_length - 8)
    else:  # nothing but a limit depends on the context that it was made for
        context = max(room + 8, architecture.config.context_length)
        architecture = Architecture(dataclasses.replace(architecture.config, context_length=context))
    session = Session(tokenizer, architecture, placed, m, jnp.dtype("float32"))
    for length in (5, 8):
        prompt = rows()[0, :length].tolist()
        found = decode_batch(session, [prompt], room, stop_ids=())[0]
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "min_new_tokens": room, "max_new_tokens": room, "eos_token_id": None}
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)[0, length:]
        assert found == wanted.tolist()


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
