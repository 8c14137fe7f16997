"""Questions to begin with are those that this very model answered rightly when it was evaluated."""

from types import SimpleNamespace

import pytest

from tpullm.run import manifest
from tpullm.serving.answered_questions import MOST, answered_questions
from tpullm.system import storage


@pytest.fixture
def run(tmp_path):
    """A run whose stage `talk` was evaluated."""
    (tmp_path / "recipe.yaml").write_text("name: mine\nfinetune:\n  first: {}\n  talk: {}\n")
    for stage in ("first", "talk"):
        manifest.write(tmp_path / stage, manifest.inputs({"stage": stage}, {}))
    upstream = {stage: manifest.finished_identity(tmp_path / stage) for stage in ("first", "talk")}
    manifest.write(tmp_path / "evaluate", manifest.inputs({}, upstream))
    rows = [(f"{kind} {n}?", kind, n % 2 == 0) for kind in ("short", "other") for n in range(20)]
    answers = [{"question": question, "kind": kind, "right": right} for question, kind, right in rows]
    answers += [{"question": "long" * 50, "kind": "long", "right": True}]
    storage.write_json(tmp_path / "evaluate" / manifest.RESULTS, {"answers": answers})
    return tmp_path


def of(run, stage="talk"):
    return answered_questions(SimpleNamespace(run=run, stage=stage))


def test_they_were_answered_rightly_and_are_short_and_of_all_kinds(run):
    found = of(run)
    assert len(set(found)) == MOST and all(int(one.split()[1][:-1]) % 2 == 0 for one in found)
    assert [one.split()[0] for one in found].count("other") == MOST // 2
    assert found == of(run)


def test_another_model_than_was_asked_has_none(run):
    assert of(run, "first") == []
    manifest.write(run / "talk", manifest.inputs({"stage": "made again"}, {}))
    assert of(run) == []


@pytest.mark.parametrize("lacks", ["evaluate/manifest.json", "evaluate/results.json", "talk/manifest.json"])
def test_a_run_that_was_not_evaluated_has_none(run, lacks):
    (run / lacks).unlink()
    assert of(run) == []


def test_a_run_that_asks_nothing_has_none(run):
    storage.write_json(run / "evaluate" / manifest.RESULTS, {"loss": 1.0})
    assert of(run) == []
