"""What is compared is the same model, trained in the same way, and what is timed is the project's own step."""

import data
import jax
import numpy as np
import ours
import pytest
from sizes import SIZES

from tpullm.model.architecture import Architecture, parameter_count
from tpullm.model.mesh import make_mesh
from tpullm.model.rows import put_rows
from tpullm.recipe.schema import ModelConfig, TrainConfig
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import initial_state, make_step

# Parameters, in millions, as the names say.
MILLIONS = {"0.8M": 0.86, "12M": 12.2, "50M": 50.1}


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_the_parameters_that_its_name_says(size):
    parameters = parameter_count(Architecture(SIZES[size].model).shapes)
    assert round(parameters / 1e6, 2 if size == "0.8M" else 1) == MILLIONS[size]


@pytest.mark.ci
def test_our_training_learns(tiny, monkeypatch):
    one_batch = ours.random_batches(tiny, count=1)
    monkeypatch.setattr(ours, "random_batches", lambda size: one_batch)
    made = ours.training(tiny)
    assert made.run(80)["loss"] < 0.9 * np.log(SIZES[tiny].model.vocabulary_size)
    assert made.facts["parameters"] == parameter_count(Architecture(SIZES[tiny].model).shapes)


@pytest.mark.slow
def test_our_decoding_makes_all_tokens(tiny, monkeypatch):
    monkeypatch.setattr(ours, "DECODED", tiny)
    monkeypatch.setattr(ours, "PROMPT_TOKENS", 8)
    monkeypatch.setattr(ours, "NEW_TOKENS", 8)
    ours.decoding().run(3)


def test_with_the_same_parameters_the_peer_has_the_same_loss_and_gradient(tiny):
    """Within float32: the two sum in another order. `embed` multiplies by the root of the width, Llama doesn't."""
    peers = pytest.importorskip("peers")
    import torch

    (batch,) = ours.random_batches(tiny, count=1)
    params, metrics = one_step(SIZES[tiny].model, batch)
    model = peers.llama(SIZES[tiny].model)
    model.load_state_dict(llama_state(params), strict=False)
    model.tie_weights()
    inputs, targets = (torch.from_numpy(tokens.astype(np.int64)) for tokens in (batch.inputs, batch.targets))
    vectors = model.get_input_embeddings()(inputs) * SIZES[tiny].model.width ** 0.5
    loss = model(inputs_embeds=vectors, labels=targets, shift_labels=targets, use_cache=False).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def one_step(model: ModelConfig, batch) -> tuple[dict, dict[str, float]]:
    """The parameters before a step in float32, as numpy arrays, and its metrics."""
    config, architecture, mesh = TrainConfig(compute="float32"), Architecture(model), make_mesh({"fsdp": -1})
    optimizer = make_optimizer(config.optimizer, config.steps, architecture.axes)
    with jax.set_mesh(mesh):
        state = jax.jit(lambda key: initial_state(architecture, optimizer, key))(jax.random.key(0))
        params = jax.tree.map(np.array, state["params"])
        step = make_step(architecture, optimizer, config, np.dtype("float32"), seed=0)
        _, metrics = step(state, put_rows(mesh, batch))
    return params, {name: float(value) for name, value in metrics.items()}


def llama_state(params: dict) -> dict:
    """tpullm's parameters under Llama's names: stacked layers taken apart, matrices as `[out, in]`."""
    import torch

    state = {"embed_tokens.weight": params["embedding"], "norm.weight": params["norm"]["scale"]}
    layers = params["layers"]
    for number in range(len(layers["attention_norm"]["scale"])):
        one = jax.tree.map(lambda leaf: leaf[number], layers)  # noqa: B023 (used at once)
        attention, mlp = one["attention"], one["mlp"]
        width = attention["query"]["weight"].shape[0]
        theirs = {"self_attn.o_proj": attention["out"]["weight"].reshape(-1, width).T}
        for name in ("query", "key", "value"):
            theirs[f"self_attn.{name[0]}_proj"] = attention[name]["weight"].reshape(width, -1).T
        theirs |= {f"mlp.{name}_proj": mlp[name]["weight"].T for name in ("gate", "up", "down")}
        theirs["input_layernorm"] = one["attention_norm"]["scale"]
        theirs["post_attention_layernorm"] = one["mlp_norm"]["scale"]
        state |= {f"layers.{number}.{name}.weight": value for name, value in theirs.items()}
    return {f"model.{name}": torch.from_numpy(np.array(value)) for name, value in state.items()}


@pytest.mark.parametrize("way", data.WAYS)
def test_reading_counts_the_tokens_that_it_read(way, tmp_path, monkeypatch):
    monkeypatch.setitem(data.STORES, "small", (400_000, 40))
    made, config = data.reading(str(data.write("small", tmp_path / "small")), way), TrainConfig()
    positions = 8 * config.batch_size * config.sequence_length
    assert 0.9 < made.run(8)["tokens"] / positions <= 1  # rows are packed almost full
