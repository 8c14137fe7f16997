"""Judged answers (KTO): each in a row with its prompt and with an answer to another prompt."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.objectives import answers as tiny
from tests.training.small import job, mesh, params
from tpullm.cli.main import main
from tpullm.data.answer_rows import MISMATCHED, judged, mismatched_examples
from tpullm.data.batch import BRANCH
from tpullm.data.stream import Stream
from tpullm.model.rows import put_rows
from tpullm.recipe.schema import PreferenceConfig
from tpullm.training.metrics import read_rows
from tpullm.training.objectives.preferences import fill_references

SETTINGS = PreferenceConfig("kto", beta=0.3, desirable_weight=1.5)


def made(count=8, rows=2, length=tiny.T):
    """The answers, what they are made of, and their stream; with references."""
    found = tiny.some_judged(count)
    pairs = judged(found, SETTINGS, length, "finetune.a")
    for number in range(count):
        sorts = np.unique(pairs.branches[pairs.offsets[number] : pairs.offsets[number + 1]])
        for sort in sorts[sorts > 0]:
            pairs.references[number, sort - 1] = np.random.default_rng([number, sort]).normal(-22, 3)
    return found, pairs, Stream({"judged": pairs}, {"judged": 1.0}, rows, length, 0)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_a_mismatched_answer_is_one_to_another_prompt(prompts):
    found = mismatched_examples(prompts).tolist()
    assert sorted(found) == list(range(len(prompts)))
    if 2 * max(map(prompts.count, prompts)) <= len(prompts):
        assert all(prompts[n] != prompts[other] for n, other in enumerate(found))


@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(0, 1000))
def test_every_answer_is_in_an_epoch_once_beside_the_beginning_of_its_mismatched_one(count, seed):
    found = tiny.some_judged(count, seed)
    pairs = judged(found, SETTINGS, 20, "finetune.a")
    stream = Stream({"judged": pairs}, {"judged": 1.0}, 1, 20, seed)
    seen = []
    for step in range(stream.packings["judged"].rows):
        batch = stream.batch_at(step)
        for number in range(1, batch.sequences + 1):
            own = [batch.targets[0][batch.segment_ids[0] == number + BRANCH * b].tolist() for b in range(4)]
            seen += [own] if own[MISMATCHED] else []
    wanted = []
    for (_, prompt, answer, good), other in zip(
        found, mismatched_examples([number for number, *_ in found]), strict=True
    ):
        room = 20 - len(prompt) + 1 - len(answer)
        wanted.append([prompt[1:], answer if good else [], [] if good else answer, found[other][2][:room]])
    assert sorted(seen) == sorted(wanted) and all(part[MISMATCHED] for part in seen)


def by_hand(found, pairs, numbers):
    """The mean loss, the divergence, and the share that is judged right, of answers that stand alone."""
    other = mismatched_examples([number for number, *_ in found])
    good, texts, references = np.array([found[n][3] for n in numbers]), [], []
    for n in numbers:
        _, prompt, answer, liked = found[n]
        room = tiny.T - len(prompt) + 1 - len(answer)
        texts += [(prompt, answer), (prompt, found[other[n]][2][:room])]
        references += [pairs.references[n, 0 if liked else 1], pairs.references[n, MISMATCHED - 1]]
    alone = np.array([of.sum() for of in tiny.of_answers_alone(texts)])
    own, wrong = (alone - np.array(references)).reshape(-1, 2).T
    kl = max(np.mean(wrong), 0)
    gains = 0.3 * np.where(good, 1, -1) * (own - kl)
    return np.mean(np.where(good, 1.5, 1.0) / (1 + np.exp(gains))), kl, np.mean(gains > 0)


def test_the_loss_is_that_of_answers_that_stand_alone():
    """`test_old_text.py` has gradients, and a batch that is cut; `test_trl_model.py` has those of trl."""
    found, pairs, stream = made()
    numbers = [piece.document for piece in stream.documents_at(0)]
    loss, kl, right = by_hand(found, pairs, numbers)
    ours, sums = tiny.sums_of(put_rows(mesh(), stream.batch_at(0)))
    assert ours == pytest.approx(loss, rel=1e-4)
    assert float(sums.told["kl"].total / sums.told["kl"].weight) == pytest.approx(kl, abs=2e-4)
    assert float(sums.correct / sums.weight) == pytest.approx(right)
    assert len(numbers) >= 3 and kl > 0 and 0 < right < 1


def test_references_are_those_of_the_start(tmp_path):
    found, pairs, _ = made()
    fill_references(job(tmp_path, params, tiny.T), [pairs])
    expected = tiny.of_answers_alone([(prompt, answer) for _, prompt, answer, _ in found])
    for values, (*_, good), wanted in zip(pairs.references, found, expected, strict=True):
        assert values[0 if good else 1] == pytest.approx(wanted.sum(), abs=2e-4) and values[1 if good else 0] == 0


def written(folder, rows, name="judged.jsonl"):
    (folder / name).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return str(folder / name)


def some_rows():
    for n in range(10, 80):
        good = n % 2 == 0
        yield {"prompt": f"{n}は？", "completion": f"{n}です。" if good else f"{n}だよ。", "label": good}


@pytest.fixture
def prepared(tiny_run, tmp_path):
    """A recipe whose one stage learns from judged answers beside old text, and its run up to that stage."""
    stage = {
        "judged": [written(tmp_path, some_rows())],
        "preference": {"kind": "kto"},
        "documents": {"tenki": 0.25},
        "adapter": {"rank": 4, "targets": ["query", "up"]},
    }
    recipe = tiny.recipe(tmp_path, {"polite": stage}, accumulation=2, evaluate_rows=8)
    return recipe, tiny.pretrained(tiny_run, tmp_path)


@pytest.mark.slow  # `test_pairs.py` has a stage of preferences, which goes the same way
def test_a_stage_learns_what_is_good(prepared):
    recipe, run = prepared
    assert main(["finetune", str(recipe), "--run", str(run)]) == 0
    rows = read_rows(run / "polite" / "metrics.jsonl")
    told = [row for row in rows if "loss" in row]
    # The adapter is fresh. The step computes in bfloat16 what the references were computed with, in other rows.
    assert told[0]["loss"] == pytest.approx(0.5, abs=1e-3) and told[0]["kl"] == pytest.approx(0, abs=1e-2)
    assert all(row["text_loss"] > 0 for row in told)
    last = [row for row in rows if "eval_accuracy" in row][-1]
    assert told[-1]["loss"] < 0.48 and told[-1]["reward_desirable"] > told[-1]["reward_undesirable"]
    assert last["eval_accuracy"]["judged"] > 0.8 and "judged" not in last["eval_bits_per_byte"]
    assert main(["report", "--run", str(run)]) == 0
    assert "polite: loss of a judged answer" in (run / "report.html").read_text(encoding="utf-8")


def test_mistakes_are_one_line(prepared, tmp_path, capsys):
    recipe, run = prepared
    for rows, said in [
        ([{**row, "label": True} for row in some_rows()], "finetune.polite.judged: all answers to learn from are "),
        ([], "has no judged answers in it"),
    ]:
        named = f"--finetune.polite.judged=[{written(tmp_path, rows, 'wrong.jsonl')}]"
        assert main(["finetune", str(recipe), "--run", str(run), named]) == 2
        assert said in capsys.readouterr().err.strip().splitlines()[-1]
