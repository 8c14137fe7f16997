"""Models whose answers are planted, on one task."""

import numpy as np
import pytest

from tpullm.evaluation.comparison import EXAMPLES, compare_task
from tpullm.evaluation.likelihoods import Likelihood
from tpullm.evaluation.measured_model import MeasuredModel
from tpullm.evaluation.question_files import Item, QuestionFile
from tpullm.evaluation.question_task import measure_questions
from tpullm.evaluation.statistics import ALIKE, BETTER
from tpullm.evaluation.tasks import Asking

ITEMS = tuple(Item(f"{n}番はどれ？", ("い",), ("い", "ろ")) for n in range(40))
LABELS = ["one", "two"]


class Planted(MeasuredModel):
    """A model that is right on the first `right` questions, by what it writes and by its likelihoods."""

    def written(self, requests):
        return ["い" if number < self.right else "ろ" for number in range(len(requests))]

    def likelihoods(self, requests):
        """Of each choice after the question, and alone; the right choice has the probability 3/4, or 1/4."""
        found = []
        for number in range(len(requests) // 4):
            sure = np.log([0.75, 0.25] if number < self.right else [0.25, 0.75])
            found += [Likelihood(sure[0], True), Likelihood(0, True), Likelihood(sure[1], True), Likelihood(0, True)]
        return found


def planted(wide, right):
    model = Planted(wide, parameters="x")
    model.right = right
    return measure_questions(model, QuestionFile("own", "v", ITEMS), Asking()) | {"read_before": {"looked_for": False}}


@pytest.fixture(scope="module")
def found(wide):
    return compare_task([planted(wide, 10), planted(wide, 30)], LABELS, seed=0)


@pytest.mark.parametrize("measure", ["likelihood", "per byte", "pmi", "written", "f1"])
def test_the_difference_is_the_planted_one(found, measure):
    figure = found["figures"][measure]
    assert [score["value"] for score in figure["scores"]] == [10 / 40, 30 / 40]
    (delta,) = figure["deltas"]
    assert delta["value"] == 20 / 40 and delta["word"] == BETTER and delta["interval"][0] > 0.3
    if measure != "f1":
        assert figure["agreement"] == [{"both": 10, "only_first": 0, "only_other": 20, "neither": 10}]


def test_examples_are_of_the_questions_that_differ_and_drawn_by_the_seed(wide, found):
    kinds = {(group["measure"], group["kind"]): group for group in found["examples"]}
    none = kinds["written", "only_first"]
    assert len(kinds) == 4 and (none["count"], none["shown"]) == (0, [])
    group = kinds["written", "only_other"]
    assert group["count"] == 20 and len(group["shown"]) == EXAMPLES and group["model"] == "two"
    for shown in group["shown"]:
        assert shown["said"] == ["ろ", "い"] and shown["answers"] == ["い"]
        assert 10 <= int(shown["question"].removesuffix("番はどれ？")) < 30
    given = [planted(wide, 10), planted(wide, 30)]
    assert compare_task(given, LABELS, seed=0) == found
    assert compare_task(given, LABELS, seed=1)["examples"] != found["examples"]


def test_calibration_is_of_the_probabilities_among_the_choices(found):
    one, two = found["calibration"]
    assert one["count"] == two["count"] == 40
    assert one["error"] == pytest.approx(0.75 - 10 / 40) and two["error"] == pytest.approx(0.0)


def test_the_same_answers_differ_by_exactly_0(wide):
    found = compare_task([planted(wide, 7)] * 3, ["one", "two", "three"], seed=0)
    for figure in found["figures"].values():
        assert figure["deltas"] == [{"value": 0.0, "interval": [0.0, 0.0], "differ": 0, "word": ALIKE}] * 2
        assert figure["scores"] == [figure["scores"][0]] * 3 and figure["count"] == 40
    assert all(group["count"] == 0 for group in found["examples"])


def of_harness(right, loss):
    metrics = {"acc": {"value": sum(right) / 20, "count": 20}, "perplexity": {"value": loss, "count": 20}}
    own = {"version": "1", "settings": {}, "prompt": "q", "better": {"acc": True, "perplexity": False}}
    return own | {"metrics": metrics, "scores": {"acc": dict(enumerate(right))}}


def test_a_task_of_the_harness():
    """A metric that is no mean over questions has a difference without an interval, and no word."""
    found = compare_task([of_harness([0.0] * 20, 9.0), of_harness([0.0] * 8 + [1.0] * 12, 7.0)], LABELS, seed=0)
    acc, perplexity = found["figures"]["acc"], found["figures"]["perplexity"]
    assert acc["deltas"][0]["value"] == pytest.approx(0.6) and acc["deltas"][0]["word"] == BETTER
    assert acc["agreement"] == [{"both": 0, "only_first": 0, "only_other": 12, "neither": 8}]
    assert perplexity["better"] == "lower" and perplexity["scores"][1] == {"value": 7.0, "interval": None}
    assert perplexity["deltas"] == [{"value": -2.0, "interval": None, "word": ""}]
    assert "examples" not in found and "calibration" not in found


def of_problems(passed):
    rows = [{"problem": f"p{n}", "verdict": "passed" if k < passed[n] else "error"} for n in range(20) for k in (0, 1)]
    return {"version": "1", "settings": {}, "prompt": "def f():", "pass_at_k": {}, "questions": rows}


def test_programs_are_compared_by_problem():
    found = compare_task([of_problems([0] * 20), of_problems([2] * 6 + [1] * 4 + [0] * 10)], LABELS, seed=0)
    figure = found["figures"]["pass@1"]
    assert [score["value"] for score in figure["scores"]] == [0.0, 0.4] and figure["count"] == 20
    assert (figure["deltas"][0]["differ"], figure["deltas"][0]["word"]) == (10, BETTER)
    assert "agreement" not in figure and "examples" not in found
