"""What is made of the harness's results; `tests/cli/test_evaluate_tasks.py` runs it."""

import logging

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")

from tpullm.evaluation import harness, harness_tasks, measured_model
from tpullm.evaluation.harness import figures_of_group, metric_figures
from tpullm.evaluation.statistics import wilson
from tpullm.evaluation.tasks import Asking
from tpullm.system.errors import UserError


def sample(number=0, **values):
    return {"filter": "none", "doc_id": number, **values}


def test_a_share_has_the_interval_of_wilson_and_a_mean_that_of_the_bootstrap():
    samples = [sample(9 - n, acc=float(n < 3), f1=n / 10) for n in range(10)] + [sample(acc=0.0) | {"filter": "strict"}]
    given = {"acc,none": 0.3, "f1,none": 0.45, "acc,strict": 0.0, "acc_stderr,none": "N/A", "alias": "x"}
    found, scores = metric_figures(given, samples)
    assert list(scores["acc"].items()) == [(n, float(n > 6)) for n in range(10)], "by the numbers of documents"
    means = {"acc": (0.3, 10), "f1": (0.45, 10), "acc (strict)": (0.0, 1)}
    assert {name: (of["value"], of["count"]) for name, of in found.items()} == means
    assert found["acc"]["interval"] == wilson(3, 10)
    low, high = found["f1"]["interval"]
    assert low == pytest.approx(0.45 - 0.178, abs=0.02) and high == pytest.approx(0.45 + 0.178, abs=0.02)


@pytest.mark.parametrize(("value", "values"), [(float(np.exp(1.5)), [-1.0, -2.0]), (0.5, [(1, 2), (3, 4)]), (0.0, [])])
def test_what_is_no_mean_has_no_interval(value, values):
    """A perplexity is e to the mean; a metric of whole sets gets pairs."""
    metrics, scores = metric_figures({"m,none": value}, [sample(n, m=each) for n, each in enumerate(values)])
    assert metrics == {"m": {"value": value, "count": len(values), "interval": None}} and scores == {}


def test_a_group_is_of_all_its_tasks():
    """Weighted by size, it is the mean of all questions; the mean of two tasks of other sizes is not."""
    results = {
        "group_subtasks": {"all": ["some", "c"], "some": ["a", "b"]},
        "samples": {"a": [sample(acc=1.0)] * 3, "b": [sample(acc=0.0)], "c": [sample(acc=1.0), sample(acc=0.0)]},
        "groups": {"all": {"acc,none": 4 / 6, "alias": "all"}, "some": {"acc,none": 0.5}},
        "versions": {"all": 1, "some": 2},
    }
    whole, some = figures_of_group(results, "all", Asking(shots=5)), figures_of_group(results, "some", Asking())
    assert whole["settings"]["tasks"] == ["a", "b", "c"] and whole["version"] == "1"
    assert (whole["settings"]["shots"], some["settings"]["shots"]) == (5, "")
    assert whole["metrics"]["acc"] == {"value": 4 / 6, "count": 6, "interval": wilson(4, 6)}
    assert some["metrics"]["acc"] == {"value": 0.5, "count": 4, "interval": None}


def test_a_failure_of_the_model_is_no_mistake_in_a_task(wide):
    """The one stays what it is, and the other is one line."""

    def run(task):
        with harness_tasks.harness_failures(["own.yaml"], ours=harness.is_model_error):
            task()

    with pytest.raises(AttributeError):
        run(lambda: measured_model.MeasuredModel(wide, parameters="x").likelihoods([None]))
    with pytest.raises(UserError, match="--tasks: own.yaml: the harness can't load or run them .ZeroDivisionError"):
        run(lambda: 1 / 0)


def test_quiet_leaves_logging_as_it_was():
    before = logging.root.manager.disable, logging.getLogger("lm_eval").level
    with harness_tasks.quiet_harness():
        assert not logging.getLogger("lm_eval").isEnabledFor(logging.WARNING)
    assert (logging.root.manager.disable, logging.getLogger("lm_eval").level) == before
