"""The benchmark of a GPU, tried without one: what is compared is right, and what fails is one line."""

import dataclasses
import json
import sys
import time
from types import SimpleNamespace
from unittest.mock import Mock

import gpu
import gpu_cases
import jax
import jax.numpy as jnp
import numpy as np
import ours
import pytest
from attention_truth import TOLERANCE, arrays, begins, error, visible_pairs
from attention_turns import Kernel, turns
from gpu_cases import Attention
from hypothesis import given, settings
from hypothesis import strategies as st
from turns import WorkerError

from tests.benchmarks.test_programs import one_step
from tests.conftest import ROOT
from tpullm.model.architecture import Architecture, parameter_count, training_flops_per_token
from tpullm.recipe.parsing import load

WHOLE, CUT = Attention(2, 64, 4, 2, 16, 1), Attention(2, 64, 4, 2, 16, 3)


@pytest.mark.parametrize("size", gpu_cases.TRAININGS)
def test_nanogpts_form_has_as_many_parameters_and_flops_as_our_model(size):
    training = gpu_cases.TRAININGS[size]
    recipe = load(ROOT / "configs" / "pretrain" / f"{training.recipe}.yaml", list(training.ours[0]))
    model, length = recipe.model.resolved(recipe.tokenizer.vocabulary_size), recipe.pretrain.sequence_length
    theirs = gpu_cases.nanogpt(model, training.layers, length)
    flops = [training_flops_per_token(of, length) for of in (model, theirs)]
    parameters = [parameter_count(Architecture(of).shapes) for of in (model, theirs)]
    assert flops[1] == pytest.approx(flops[0], rel=0.01) and parameters[1] == pytest.approx(parameters[0], rel=0.02)


def test_every_setting_is_of_a_recipe_that_loads():
    for training in (*gpu_cases.TRAININGS.values(), *gpu_cases.TINY_TRAININGS.values()):
        words, programs, given = zip(*gpu.settings_of(training, "tpullm"), strict=True)
        assert len(set(words)) == len(words) and set(programs) == {"gpu_ours:training"}
        (file,) = (ROOT / "configs").rglob(f"{training.recipe}.yaml")
        for arguments in given:
            config = load(file, arguments["changes"]).pretrain
            assert config.batch_size % config.accumulation == 0
        rows = [arguments["rows"] for *_, arguments in gpu.settings_of(training, "transformers")]
        assert rows == sorted(rows, reverse=True)  # what does not fit is followed by less


def attended(case: Attention, mask_BTT: np.ndarray) -> list[np.ndarray]:
    """Mixed values and gradients of the last row in float32, by JAX's own gradient of the plain formula."""

    def mixed(q, k, v):
        groups = case.heads // case.kv_heads
        k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) * case.width**-0.5
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(jnp.where(mask_BTT[:, None], scores, -1e30)), v)

    q, k, v, d = arrays(case)
    out, back = jax.vjp(mixed, q, k, v)
    return [np.asarray(x[-1]) for x in (out, *back(d))]


def mask_of(case: Attention) -> np.ndarray:
    index, first = np.arange(case.length), begins(case)
    return (index[None, None] <= index[:, None]) & (index >= first[:, :, None])


@pytest.mark.parametrize("case", [WHOLE, CUT], ids=str)
def test_the_truth_is_plain_attention(case):
    """Float32 against float64: some hundred roundings of 6e-8."""
    assert error(case, arrays(case), begins(case), attended(case, mask_of(case))) < 1e-5


def test_a_mask_that_is_wrong_by_one_token_is_found():
    right, first, index = mask_of(CUT), begins(CUT), np.arange(CUT.length)
    later = index[None, None] - index[:, None]  # how many tokens a key is after a query, [1, T, T]
    begins_there = (first == index)[:, :, None]
    wrong = {
        "the next token too": right | ((later == 1) & ~np.roll(begins_there, -1, axis=1)),
        "all but itself": right & ((later < 0) | begins_there),
        "one token of the document before": right | ((later < 0) & (index == first[:, :, None] - 1)),
        "seven tokens": right & (later > -7),
    }
    for name, mask in wrong.items():
        assert error(CUT, arrays(CUT), begins(CUT), attended(CUT, mask)) > 2 * TOLERANCE, name


@pytest.mark.parametrize("which", range(4), ids=("mixed", "dq", "dk", "dv"))
def test_each_wrong_result_is_found(which):
    found = attended(WHOLE, mask_of(WHOLE))
    found[which] = found[which] * 1.03
    assert error(WHOLE, arrays(WHOLE), begins(WHOLE), found) == pytest.approx(0.03, rel=0.01)
    found[which] = np.full_like(found[which], np.nan)
    assert error(WHOLE, arrays(WHOLE), begins(WHOLE), found) == np.inf


@settings(max_examples=30, deadline=None, derandomize=True)
@given(length=st.integers(8, 64), documents=st.integers(1, 8), rows=st.integers(1, 3))
def test_the_visible_pairs_are_those_of_the_mask(length, documents, rows):
    case = Attention(rows, length, 1, 1, 8, documents)
    first = begins(case)
    assert visible_pairs(first) == mask_of(case).sum()
    assert [len(np.unique(row)) for row in first] == [documents] * rows
    assert all(row[begin] == begin for row in first for begin in np.unique(row))


def test_a_kernel_that_is_refused_or_wrong_does_not_take_part():
    right = attended(WHOLE, mask_of(WHOLE))

    def kernel(results):
        return lambda given, begins_BT: Kernel(lambda: results[0], lambda: results)

    refused = Mock(side_effect=RuntimeError("no kernel\n  for this card"))
    made = {"right": kernel(right), "wrong": kernel([1.1 * x for x in right]), "refused": refused}
    program = turns(WHOLE, made, lambda x: x, lambda x: x, lambda x: None)
    wrong = "wrong by 10.0%, more than bfloat16 rounds"
    assert program.facts["failed"] == {"wrong": wrong, "refused": "RuntimeError: no kernel for this card"}
    assert {which: list(of) for which, of in program.run(1).items()} == {"forward": ["right"], "gradient": ["right"]}
    pairs = 2 * 64 * 65 / 2
    assert program.facts["flops"] == {"forward": 4 * 4 * 16 * pairs, "gradient": 14 * 4 * 16 * pairs}


FACTS = {"tokens": 100, "parameters": 7, "flops_per_token": 5.0, "peak_flops": 1e4, "topology": "h100:1"}
EXPECTED = {"expected": {"step_seconds": 0.2, "peak_bytes": 2**30}}


@pytest.fixture
def bench(tmp_path):
    """A benchmark whose programs answer from a table: what fails, or seconds of a turn of `steps`."""
    steps = gpu_cases.TRAININGS["1b"].steps
    found = {"card": "NVIDIA H100", "driver": "1.2", "machine": {"cores": 2, "cpu": "some"}}
    made = gpu.Bench(False, sys.executable, 1, tmp_path / "gpu-h100", found)

    def with_answers(answers: dict, tries: int = 1):
        def run(program, arguments, rounds, count, **variables):
            seconds = answers.get(arguments.get("rows") or arguments["changes"][0], 1.0)
            if isinstance(seconds, str):
                raise WorkerError(seconds)
            one = {"seconds": steps * seconds, "loss": 2.0, "peak_bytes": 3 * 2**30}
            return FACTS | EXPECTED, [one] * rounds

        changed = dataclasses.replace(made, tries=tries)
        object.__setattr__(changed, "run", run)
        return changed

    return with_answers


@pytest.mark.parametrize("message", ["OutOfMemoryError: CUDA out of memory.", "JaxRuntimeError: RESOURCE_EXHAUSTED: x"])
def test_after_a_setting_that_does_not_fit_comes_the_next(bench, message):
    made = bench({4: message, 2: 0.5})
    gpu.measure_training(made, "1b", "transformers")
    first, second = made.found["train"]["1b"]["transformers"]
    assert first == {"setting": "batch_size=4", "failed": message}
    assert second["setting"] == "batch_size=2" and second["tokens_per_second"]["median"] == 200


def test_a_loss_that_is_no_number_is_a_failure():
    answer = {"seconds": 1.0, "loss": float("nan"), "peak_bytes": 1}
    assert gpu.training_record(FACTS, [answer], 1) == {"failed": "the loss is nan"}


def test_the_table_has_our_ratio_the_share_of_the_peak_and_how_far_the_plan_is_off(bench):
    """Ours: 100 tokens of 5 FLOPs in 0.25 s are 2,000 FLOP/s of 10,000; the peer takes twice as long."""
    made = bench({"--pretrain.batch_size=4": 0.25, 4: 0.5})
    for name in ("tpullm", "transformers"):
        gpu.measure_training(made, "1b", name)
    record = made.found["train"]["1b"]["tpullm"][0]
    made.proofs[f"1b, {record['setting']}"] = {"step_seconds": 0.275, "peak_bytes": 3.3 * 2**30}
    made.found["train"]["125m"] = {"tpullm": []}
    made.found["dates"] = {"train": "2026-11-28"}
    gpu.memory(made)
    gpu.prediction(made)
    lines = made.file.with_suffix(".md").read_text().splitlines()
    assert any("(train 2026-11-28). Card: NVIDIA H100, driver 1.2; 2 cores of some." in line for line in lines)
    assert any(" 400 | 20.0% |  | 250.0 (250.0 to 250.0) | 3 |" in line for line in lines)
    assert any(" 200 | 10.0% | **2.00** | 500.0 (500.0 to 500.0) | 3 |" in line for line in lines)
    assert any("| 3 | 3.3 | +10.0% | 1 | -66.7% |" in line for line in lines)
    assert any("| 250 | 275 | +10.0% | 200 | -20.0% |" in line for line in lines)
    assert json.loads(made.file.with_suffix(".json").read_text()) == made.found


def test_when_the_minutes_are_over_what_was_measured_is_kept(monkeypatch, tmp_path, capsys):
    endless = lambda bench: (bench.found.update(train={}), bench.save(), time.sleep(60))  # noqa: E731
    monkeypatch.setitem(gpu.MEASURED, "train", endless)
    argv = ["--tiny", "--parts", "train", "--minutes", "0.001", "--output", str(tmp_path)]
    assert gpu.main(argv) == 1
    assert "0.001 minutes are over" in capsys.readouterr().err
    assert "train" in json.loads((tmp_path / "gpu-tiny.json").read_text())


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "may_have_gpu", lambda: False)
    assert gpu.main([]) == 2
    assert "no NVIDIA GPU is here" in (line := capsys.readouterr().err) and "--tiny" in line and line.count("\n") == 1


@pytest.mark.slow
def test_everything_runs_at_tiny_sizes_and_a_later_call_adds_a_part(tmp_path):
    """Also without torch: then the peers are a line each."""
    assert gpu.main(["--tiny", "--parts", "train", "kernel", "--output", str(tmp_path)]) == 0
    assert gpu.main(["--tiny", "--parts", "memory", "prediction", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu-tiny.json").read_text())
    (record,) = found["train"]["tiny"]["tpullm"]
    assert record["tokens_per_second"]["median"] > 0 and record["loss"] < 1.1 * np.log(512)
    for case in found["kernel"].values():
        assert case["errors"]["tpullm"] <= TOLERANCE and case["gradient"]["tpullm"]["flops_per_second"] > 0
    for part in ("memory", "prediction"):
        (of,) = found[part].values()
        assert of["formula"] > 0 and (of["failed"] or of["compiled"] > 0)
    assert set(found["dates"]) == {"train", "kernel", "memory", "prediction"}
    page = (tmp_path / "gpu-tiny.md").read_text()
    assert all(title in page for title in ("## Training", "## Attention", "## Peak memory", "## Time of our step"))


def test_nanogpts_form_has_the_loss_of_our_model_of_its_shape():
    """Within float32: the two sum in another order. Our norms have biases, which begin at 0."""
    torch = pytest.importorskip("torch")
    from nanogpt import NanoGPT

    config = gpu_cases.nanogpt(SimpleNamespace(width=32, head_width=16, vocabulary_size=64), layers=2, length=16)
    (batch,) = ours.random_rows(64, 3, 16, count=1)
    model, (params, metrics) = NanoGPT(config), one_step(config, batch)
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in nanogpt_state(params).items()})
    inputs, targets = (torch.from_numpy(tokens.astype(np.int64)) for tokens in (batch.inputs, batch.targets))
    assert metrics["loss"] == pytest.approx(model(inputs, targets).item(), rel=1e-5)
    # A shape of ours has norms with biases, 5 of them of width 32.
    assert sum(p.numel() for p in model.parameters()) == parameter_count(params) - 5 * 32


def nanogpt_state(params: dict) -> dict:
    """Our parameters under the names of `nanogpt.py`: stacked layers taken apart, matrices as `[out, in]`."""
    layers = params["layers"]
    state = {f"{name}.weight": params["embedding"] for name in ("tokens", "output")}
    state |= {"positions.weight": params["position_embedding"], "norm.weight": params["norm"]["scale"]}
    width = params["embedding"].shape[1]
    for number in range(len(layers["attention_norm"]["scale"])):
        one = jax.tree.map(lambda leaf: leaf[number], layers)  # noqa: B023 (used at once)
        attention, mlp = one["attention"], one["mlp"]
        qkv = [attention[name]["weight"].reshape(width, -1).T for name in ("query", "key", "value")]
        state |= {
            f"layers.{number}.attention_norm.weight": one["attention_norm"]["scale"],
            f"layers.{number}.mlp_norm.weight": one["mlp_norm"]["scale"],
            f"layers.{number}.qkv.weight": np.concatenate(qkv),
            f"layers.{number}.out.weight": attention["out"]["weight"].reshape(-1, width).T,
            f"layers.{number}.up.weight": mlp["gate"]["weight"].T,
            f"layers.{number}.down.weight": mlp["down"]["weight"].T,
        }
    return state


@pytest.mark.parametrize("case", [WHOLE, CUT], ids=str)
def test_flex_attention_is_right_within_documents(case):
    """A CPU has its forward pass alone; the gradients of plain attention stand in for its own."""
    torch = pytest.importorskip("torch")
    import gpu_peers

    q, k, v, _ = (torch.from_numpy(x).to(torch.bfloat16) for x in arrays(case))
    mixed = gpu_peers.flex(begins(case))(q, k, v)[-1].float().numpy()
    found = [mixed, *attended(case, mask_of(case))[1:]]
    assert error(case, arrays(case), begins(case), found) <= TOLERANCE


def test_torchs_attention_is_right_and_what_a_cpu_lacks_is_named():
    pytest.importorskip("torch")
    import gpu_peers

    made = gpu_peers.attention(**dataclasses.asdict(WHOLE))
    assert made.facts["errors"]["SDPA flash"] <= TOLERANCE
    assert list(made.run(1)["gradient"]) == ["SDPA flash"]
    assert set(made.facts["failed"]) == {"SDPA cuDNN", "FlexAttention"}
