"""Every request and every score of tasks from local files, beside those of the harness's own `hf` model."""

import json

import pytest

from tests.evaluation import local_tasks
from tests.formats.huggingface.published import END, START, directory, tokenizer
from tests.formats.huggingface.small import MODELS, published
from tpullm.cli import main
from tpullm.engine.session import load_session
from tpullm.evaluation.measured_model import MeasuredModel

pytest.importorskip("torch", reason="the extra `hf` is not installed")
pytest.importorskip("transformers", reason="the extra `hf` is not installed")
pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")

FAMILIES = ["llama-3.1", "qwen-2.5", "qwen-3", "gemma-2", "mistral", "phi-3", "gpt-2", "mixtral"]
# Sums of up to 60 log-probabilities in float32, of products that both add in another order.
TOLERANCE = 1e-4


def folder_of(name, folder):
    """A published model of a family, with the tokenizer of `published.py`."""
    from safetensors.numpy import save_file

    directory(folder)
    made = tokenizer(folder / "tokenizer.json")
    model_type, keys = MODELS[name]
    ids = {"eos_token_id": made.token_to_id(END), "bos_token_id": made.token_to_id(START)}
    config = {"model_type": model_type, "dtype": "float32", **keys, "vocab_size": made.get_vocab_size(), **ids}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(published(config)[2], folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return local_tasks.write(tmp_path_factory.mktemp("tasks"))


def results(model, files, **more):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    options = {"bootstrap_iters": 0, "torch_random_seed": None, "task_manager": TaskManager(include_defaults=False)}
    found = simple_evaluate(model, tasks=list(files.values()), **options, **more)
    responses = [(sample["arguments"], sample["resps"]) for samples in found["samples"].values() for sample in samples]
    return found["results"], responses


def chosen(files, chat):
    """In a conversation there is nothing to say of a whole text."""
    return {task: files[task] for task in (("choice", "written_after_an_example") if chat else files)}


def assert_the_same(ours, theirs, chat):
    assert len(ours[1]) == len(theirs[1]) > 10
    kinds = set()
    for (arguments, found), (same, expected) in zip(ours[1], theirs[1], strict=True):
        assert arguments == same
        for (one,), (other,) in zip(found, expected, strict=True):
            kinds.add(type(other))
            match one:
                case str():
                    assert one == other
                case float():
                    assert one == pytest.approx(other, abs=TOLERANCE)
                case _:
                    assert one[0] == pytest.approx(other[0], abs=TOLERANCE) and one[1] == other[1], arguments
    assert kinds == ({tuple, str} if chat else {tuple, str, float})
    for task, scores in theirs[0].items():
        for metric, score in scores.items():
            assert ours[0][task][metric] == (pytest.approx(score, rel=1e-5) if isinstance(score, float) else score)


def of_both(model, name, folder, files, chat):
    """The results of MODEL under ours, and of a folder in the format of Hugging Face under `hf`."""
    from lm_eval.models.huggingface import HFLM

    from tpullm.evaluation.harness import HarnessModel

    more = {"apply_chat_template": chat, "fewshot_as_multiturn": chat}
    ours = results(HarnessModel(MeasuredModel(load_session(model)), name), chosen(files, chat), **more)
    hf = HFLM(str(folder), dtype="float32", batch_size=1, device="cpu")
    return ours, results(hf, chosen(files, chat), **more)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", [FAMILIES[0], *(pytest.param(name, marks=pytest.mark.ci) for name in FAMILIES[1:])])
def test_every_request_and_score_is_that_of_hf(name, chat, files, tmp_path):
    folder = folder_of(name, tmp_path / "model")
    assert_the_same(*of_both(folder, name, folder, files, chat), chat)


@pytest.mark.ci
@pytest.mark.parametrize("stage, chat", [("pretrain", False), ("talk", True)])
def test_a_run_has_the_scores_of_its_export(tiny_run, stage, chat, files, tmp_path):
    """With our own tokenizer, and with the names of special tokens in the text of a conversation."""
    assert main.main(["export", str(tiny_run / stage), str(tmp_path / "exported")]) == 0
    assert_the_same(*of_both(tiny_run / stage, stage, tmp_path / "exported", files, chat), chat)
