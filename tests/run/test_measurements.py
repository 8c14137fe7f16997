"""What `evaluate --tasks` found of a run, and the command that repeats it."""

import shlex

from tpullm.run import manifest
from tpullm.system import storage


def test_the_figures_are_those_of_the_stage_as_it_is_now(tmp_path):
    stage = tmp_path / "talk"
    assert manifest.of_model(tmp_path, "talk", 5) == {"stage": "talk", "step": 5, "identity": ""}, "it is not finished"
    assert manifest.tasks(tmp_path, "talk") == {}
    manifest.write(stage, {"config": {"steps": 1}})
    for step, shots in ((5, 1), (10, 2)):
        model = manifest.of_model(tmp_path, "talk", step)
        results = {"model": model, "tasks": {"little": {"shots": shots}}}
        storage.write_json(tmp_path / "measured" / f"talk-{step}" / "results.json", results)
    assert manifest.tasks(tmp_path, "talk") == {"little": {"shots": 2}}, "of the last checkpoint"
    assert manifest.tasks(tmp_path, "talk", 5) == {"little": {"shots": 1}}
    assert manifest.tasks(tmp_path, "talk", 7) == manifest.tasks(tmp_path, "pretrain") == {}
    manifest.write(stage, {"config": {"steps": 2}})
    assert manifest.tasks(tmp_path, "talk") == {}, "it was made again since"


def test_the_command_has_what_was_asked_otherwise_than_by_default():
    figures = {"settings": {"shots": 0, "seed": 0, "limit": 0, "form": "japanese"}, "file": "my questions.jsonl"}
    words = shlex.split(manifest.command("my questions", figures, "RUN/talk"))
    assert words == ["tpullm", "evaluate", "RUN/talk", "--tasks", "my questions.jsonl", "--no-chat"]
    settings = {"shots": 2, "seed": 3, "limit": 9, "form": "chat"}
    asked = manifest.command("boolq", {"settings": settings}, "m")
    assert asked == "tpullm evaluate m --tasks boolq --shots 2 --seed 3 --limit 9 --chat"
