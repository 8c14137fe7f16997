"""Scores in words that a newcomer understands, and texts as they grew."""

import re

import pytest

from tests.report.test_page import FIGURES, RESULTS, SCORE, TRAINING, Outline, full
from tpullm.report.language import named
from tpullm.report.page import page


def row(step, share, text="晴れ"):
    tasks, samples = {"little": FIGURES | {"written": SCORE | {"share": share}}}, [{"prompt": "今日は", "text": text}]
    return {"step": step, "tokens": step * 10, "measured": {}, "tasks": tasks, "samples": samples}


def shown(language="en", **changes):
    return Outline(page(full(language=named(language), **changes))).text


@pytest.mark.parametrize(
    "said",
    [
        "little the model how it answers right of 100 such questions",
        "after talk by choosing 95.0% 76 to 100",
        "after talk by writing 50.0% 29 to 71",
        "by guessing by choosing 25.0%",
        "tpullm evaluate RUN/talk --tasks little.jsonl --shots 2 --seed 1 --chat",
        "version of the questions abc",
    ],
)
def test_a_task_has_its_scores_in_words_and_what_repeats_them(said):
    assert said in shown()


def test_a_stage_that_measured_on_the_way_has_its_scores_before_and_a_curve():
    text = shown(tuned={"talk": [*TRAINING, row(0, 0.1), row(1, 0.3), row(2, 0.45)]}, measured={})
    assert "before talk by choosing 95.0%" in text and "before talk by writing 10.0%" in text
    assert "after talk by writing 45.0%" in text and "30.0%" not in text
    assert "Right answers during talk by choosing 95.0% by writing 45.0%" in text
    text = shown(tuned={"talk": [*TRAINING, row(0, 0.1), row(2, 0.45)]})
    assert "after talk by writing 50.0%" in text, "what was measured afterwards stands before that"


def test_the_questions_of_the_recipe_have_an_interval_and_the_commonest_answer():
    results = RESULTS | {name: RESULTS[name] | {"interval": [0.0, 0.991]} for name in ("base", "tuned")}
    text = shown(results=results)
    assert "before tuning by writing 1.0% 0 to 100" in text
    guess = (0.41 * 172 + 0.08 * 1510) / (172 + 1510)
    assert f"without a model {guess:.1%}" in text


def test_a_metric_that_is_no_share_has_no_words():
    metrics = {"perplexity": {"value": 12.5, "count": 5, "interval": None}, "acc": {"value": 0.5, "count": 5}}
    metrics["acc"]["interval"] = [0.2, 1.0]
    metrics["words"] = {"value": 0.9, "count": 5, "interval": [0.7, 1.5]}
    text = shown(measured={"talk": {"lambada": {"version": "1", "settings": {}, "metrics": metrics}}})
    assert "after talk perplexity 12.5 after talk acc 50.0% 20 to 100 after talk words 0.9" in text


def test_texts_grow_from_the_first_step_to_the_last_and_six_at_most_are_shown():
    rows = [*TRAINING, *(row(step, 0.1, f"文{step}。") for step in range(0, 101, 5))]
    text = shown(pretrain=rows)
    assert "今日は step 0 文0。 step 5 文5。 step 10 文10。 step 25 文25。 step 50 文50。 step 100 文100。" in text
    assert "its parameters are random" in text
    assert "its parameters are random" not in shown(pretrain=rows, manifests={"base": {"folder": "a-model"}})
    assert "How its writing grew" not in shown()


def test_the_bars_of_a_blank_keep_their_places_while_they_approach_the_truth():
    """Four steps at most, most of them early; the words in the order of the truth, on one scale."""

    def blank(step, likely):
        words = [{"word": "いい", "model": likely, "truth": 0.6}, {"word": "悪い", "model": 0.1, "truth": 0.4}]
        return {"text": "とても【?】天気", "total_variation": 0.9 - likely, "words": words}

    rows = [{"step": s, "tokens": 10 * s, "blanks": [blank(s, s / 100)]} for s in range(0, 81, 5)]
    made = page(full(pretrain=[*TRAINING, *rows]))
    text = Outline(made).text
    assert "How the blank approaches the truth" in text and "How the blank approaches" not in shown()
    grid = made.split('<div class="steps">')[1].split("<figure>")[0]
    assert [int(step) for step in re.findall(r">step (\d+)<", grid)] == [0, 5, 20, 80]
    assert re.findall(r'lang="ja">(..)<', grid) == ["いい", "悪い"] * 4
    assert re.findall(r'class="bar model" style="width:([\d.]+)%', grid)[::2] == ["0.00", "6.25", "25.00", "100.00"]
    assert "Total variation from the truth" in text and "other words 0.90 0.00" in text
