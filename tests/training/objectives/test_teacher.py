"""A teacher: what it says is kept once, and a stage learns from that as from the model itself."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from tests.conftest import copy_tokens
from tests.training.objectives import answers as tiny
from tests.training.small import ARCHITECTURE, CONFIG, batch, mesh, params
from tpullm.cli.main import main
from tpullm.data.batch import TaughtBatch
from tpullm.data.conversations import Conversations
from tpullm.data.stream import EvaluationBatches
from tpullm.data.taught_rows import Kept, TaughtEvaluation, TaughtStream
from tpullm.model.architecture import Architecture
from tpullm.model.rows import put_rows
from tpullm.recipe import parsing
from tpullm.recipe.schema import TeacherConfig
from tpullm.run import manifest, stages
from tpullm.system import storage
from tpullm.training.metrics import read_rows
from tpullm.training.objectives.distillation import DIVERGENCES, Teacher, fill_from_teacher

V = CONFIG.vocabulary_size
# Another model than the student, and a larger one, with some rows of the table that stand for no token.
LARGER = Architecture(dataclasses.replace(CONFIG, layers=2, width=48, mlp_width=80, vocabulary_size=V + 32))


def teacher(**settings):
    load = lambda: params(1, LARGER)  # noqa: E731
    return Teacher(TeacherConfig("larger", **settings), LARGER, load, mesh(), tiny.F32, V)


def some_documents(count=9, seed=0):
    """Documents of which some are longer than a row, with weight 0 here and there."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 50, count)
    tokens = random.integers(0, V, lengths.sum()).astype(np.int32)
    return Conversations(
        tokens, (random.random(len(tokens)) > 0.3).astype(np.float32), np.cumsum([0, *lengths]), np.arange(count)
    )


@pytest.mark.parametrize("cut_off", [pytest.param(False, marks=pytest.mark.ci), True])
def test_what_is_kept_is_what_the_teacher_says_of_the_rows_that_are_read(tmp_path, cut_off):
    """What is kept belongs to its rows: in each epoch, of both sources, after a roll-back, and after a kill."""
    who = teacher(top=5)
    sources = {"one": some_documents(), "other": some_documents(6, seed=1)}
    options = {"settings": who.settings, "folder": tmp_path}
    stream = TaughtStream(sources, {"one": 0.7, "other": 0.3}, 4, tiny.T, 0, **options)
    own = np.arange(2)
    if cut_off:
        fill_from_teacher(who, [stream.keep(1, 2, own)])
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert len(before) == 2
    steps = 2 + max(packed.rows for packed in stream.packings.values())
    kept, of_file = stream.keep(steps, 2, own)
    fill_from_teacher(who, [(kept, of_file)])
    if cut_off:
        assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    assert not kept.missing() and kept.rows == sum(packed.rows for packed in stream.packings.values())
    fill_from_teacher(dataclasses.replace(who, load=None), [(kept, of_file)])  # nothing is computed
    with jax.set_mesh(mesh()):
        tree = params(1, LARGER)
        left_out = stream.without([[1, 1]])
        for found in (stream.batch_at(0), stream.batch_at(steps - 1), left_out.batch_at(1)):
            _check(found, np.asarray(tiny.log_softmax(LARGER, tree, put_rows(mesh(), found.plain))))
    assert max(stream.epoch_at(steps).values()) > 1
    np.testing.assert_array_equal(left_out.batch_at(1).ids, stream.batch_at(2).ids)


def _check(found, wanted):
    """Sums of 48 products in float32, in another order: 1e-5."""
    real = found.segment_ids > 0
    order = np.argsort(-wanted, axis=-1)[..., :5]
    known = order[real] < V
    np.testing.assert_array_equal(found.ids[real], np.where(known, order[real], 0))
    best = np.take_along_axis(wanted, order, axis=-1)[real]
    np.testing.assert_allclose(found.logps[real], np.where(known, best, -np.inf), atol=1e-5)
    assert real.sum() > 60 and not known.all(), "the larger table has rows among the likeliest"


def test_held_out_batches_have_what_was_said_of_their_rows(tmp_path):
    """Kept in micro-batches, and read in batches, of which the last one has padding."""
    who, documents = teacher(top=5), some_documents()
    files = list(EvaluationBatches(documents, 2, tiny.T))
    kept = Kept(tmp_path, len(files) * 2, 2)
    fill_from_teacher(who, [(kept, files.__getitem__)])
    batches = TaughtEvaluation(EvaluationBatches(documents, 4, tiny.T), kept, 4, np.arange(4), who.settings)
    found = list(batches)
    with jax.set_mesh(mesh()):
        again = [who.says(params(1, LARGER), each.plain) for each in found]
    for each, (ids, logps) in zip(found, again, strict=True):
        real = each.segment_ids > 0
        np.testing.assert_array_equal(each.ids[real], ids[real])
        np.testing.assert_allclose(each.logps[real], logps[real], atol=1e-6)
    assert len(found) == 2 and len(files) == 3, "the last batch has a file less"


@pytest.mark.parametrize(
    ("kind", "top", "temperature"),
    [
        ("forward_kl", V, 1.0),
        pytest.param("reverse_kl", V, 2.0, marks=pytest.mark.slow),
        pytest.param("jsd", 7, 1.0, marks=pytest.mark.slow),
    ],
)
def test_the_loss_is_that_of_the_definition(kind, top, temperature):
    """All tokens are the whole vocabulary; of fewer, all others are one outcome more. `test_trl.py` has gradients."""
    rows, beta = batch(), DIVERGENCES[kind]
    with jax.set_mesh(mesh()):
        of = [np.asarray(tiny.log_softmax(ARCHITECTURE, params(seed), rows), np.float64) for seed in (0, 1)]
    scaled = [np.exp(logp / temperature) for logp in of]
    student, other = (of / of.sum(axis=-1, keepdims=True) for of in scaled)
    ids = np.argsort(-other, axis=-1)[..., :top].astype(np.int32)
    q, p = (np.take_along_axis(of, ids, axis=-1) for of in (student, other))
    logps = np.log(p).astype(np.float32)
    taught = TaughtBatch(**vars(rows), ids=ids, logps=logps, settings=TeacherConfig("larger", kind, top, temperature))
    if top < V:
        q, p = (np.concatenate([of, 1 - of.sum(axis=-1, keepdims=True)], axis=-1) for of in (q, p))
    kl = lambda a, b: np.sum(a * np.log(a / b), axis=-1)  # noqa: E731
    mixed = beta * p + (1 - beta) * q
    each = {0: kl(p, q), 1: kl(q, p)}.get(beta, beta * kl(p, mixed) + (1 - beta) * kl(q, mixed))
    expected = np.sum(rows.weights * each) / np.sum(rows.weights)
    assert tiny.sums_of(put_rows(mesh(), taught))[0] == pytest.approx(expected, rel=1e-4)


def recipe_of(folder, tiny_run, **sizes):
    """A model that the tiny run's teaches on text and then on its own answers."""
    by = {"teacher": {"model": str(tiny_run / "talk"), "top": 8}}
    text = {"conversations": ["tenki"], "documents": {"python-docs": 0.3}, "train": {"accumulation": 2}} | by
    own = {"prompts": ["tenki"], "policy": {"prompts": 4, "answers": 2, "tokens": 12}, "train": {"steps": 6}}
    stages = {"text": text, "own": own | {"teacher": by["teacher"] | {"kind": "reverse_kl"}}}
    options = {"evaluate_rows": 8, "evaluate_every": 2, "checkpoint": {"every_steps": 2, "keep": 9}}
    return tiny.recipe(folder, stages, 8, **options, **sizes)


@pytest.fixture(scope="module")
def taught(tiny_run, tmp_path_factory):
    """The recipe of a smaller model, and its run with both stages made."""
    folder = tmp_path_factory.mktemp("taught")
    sizes = {"model": {"layers": 1, "width": 16}, "pretrain": {"steps": 2, "evaluate_every": 0}}
    recipe, run = recipe_of(folder, tiny_run, **sizes), copy_tokens(tiny_run, folder / "run")
    for verb in ("pretrain", "finetune"):
        assert main([verb, str(recipe), "--run", str(run)]) == 0
    return recipe, run


@pytest.mark.ci
def test_a_student_gets_nearer_to_its_teacher_on_text_that_it_does_not_learn(taught):
    _, run = taught
    for stage, sources in (("text", {"conversations", "python-docs"}), ("own", {"prompts"})):
        rows = [row["eval_divergence"] for row in read_rows(run / stage / "metrics.jsonl") if "eval_divergence" in row]
        assert rows[0].keys() == sources
        for source in sources:
            assert rows[-1][source] < 0.9 * rows[0][source]
    told = [row for row in read_rows(run / "own" / "metrics.jsonl") if "eval_answers" in row][-1]
    assert len(told["eval_answers"]) == 8 and told["eval_answers"][0].keys() == {"prompt", "answer"}
    assert main(["report", "--run", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(f"{stage}: divergence from the teacher, nats a token" in page for stage in ("text", "own"))
    losses = read_rows(run / "text" / "metrics.jsonl")
    assert all(0 < row["kept"] < 1 for row in losses if "kept" in row) and any("kept" in row for row in losses)


@pytest.mark.ci
def test_resumed_it_ends_with_the_same_bits(taught, tmp_path):
    recipe, made = taught
    run = tmp_path / "run"
    shutil.copytree(made, run)
    kept = run / "text" / "teacher" / "read"
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    gone = sorted(before)[1]
    (kept / gone).unlink()
    tiny.assert_resumed_has_the_same_bits(run, text=(4, 8), own=(2, 6))
    assert (kept / gone).read_bytes() == before[gone]


@pytest.mark.ci
def test_a_stage_stands_without_its_teacher_whose_identity_it_has_noted(taught, monkeypatch):
    recipe, run = taught
    path, identity = stages.teacher(parsing.load(recipe), run, "text")
    assert storage.read_json(run / "text" / stages.TEACHER) == {"model": str(path), "identity": identity}
    monkeypatch.setattr(type(path), "is_dir", lambda self: False)
    assert stages.teacher(parsing.load(recipe), run, "text")[1] == identity


def test_a_teacher_is_known_by_its_identity(tiny_run, tmp_path):
    settings, run = parsing.load(recipe_of(tmp_path, tiny_run)), tmp_path / "run"
    path, identity = stages.teacher(settings, run, "text")
    assert path == tiny_run / "talk" and identity == manifest.finished_identity(path)
    ids = []
    (checkpoint,) = (tiny_run / "talk" / "checkpoints").glob("[0-9]*")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    for folder in (tiny_run, tiny_run / "pretrain", checkpoint, tmp_path):
        other = dataclasses.replace(settings.finetune["text"], teacher=TeacherConfig(str(folder)))
        ids.append(stages.teacher(dataclasses.replace(settings, finetune={"new": other}), run, "new"))
    assert ids[0] == (path, identity), "of a run it is the last stage"
    assert len({found for _, found in ids}) == 4
    (tmp_path / "model.safetensors").write_text("other")
    assert stages.teacher(dataclasses.replace(settings, finetune={"new": other}), run, "new")[1] != ids[-1][1]


def test_mistakes_are_one_line(tiny_run, tmp_path, capsys):
    recipe, run, other = recipe_of(tmp_path, tiny_run), tiny.pretrained(tiny_run, tmp_path), tmp_path / "other"
    shutil.copytree(tiny_run / "talk", other)
    told = ModelProto.FromString((other / "tokenizer" / "tokenizer.model").read_bytes())
    told.pieces[300].piece += "ん"
    (other / "tokenizer" / "tokenizer.model").write_bytes(told.SerializeToString())
    for model, said in [
        (run, "is the model that is to be taught; give a larger one"),
        (run / "text", "is the model that is to be taught; give a larger one"),
        (tmp_path, "is no finished stage of a run, no checkpoint, no GGUF file, and no folder"),
        (other, f"finetune.text.teacher.model: {other} has other tokens (token 300 is "),
    ]:
        assert main(["finetune", str(recipe), "--run", str(run), f"--finetune.text.teacher.model={model}"]) == 2
        assert said in capsys.readouterr().err.strip().splitlines()[-1]
