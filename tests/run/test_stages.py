"""A stage knows what it was made from."""

from tpullm import storage
from tpullm.run import manifest, stages


def test_a_finished_stage_is_skipped_only_while_its_inputs_stand(tmp_path):
    stage = tmp_path / "pretrain"
    inputs = manifest.inputs({"width": 1, "betas": (0.9, 0.95)}, {"tokens": "abc"}, {"steps": 9})
    assert not manifest.is_finished(stage, inputs)
    manifest.write(stage, inputs, seconds=1.0)
    assert manifest.is_finished(stage, inputs)
    for other in (
        {"config": {"width": 2, "betas": [0.9, 0.95]}},
        {"upstream": {"tokens": "abd"}},
        {"length": {"steps": 8}},
    ):
        assert not manifest.is_finished(stage, inputs | other)
        assert manifest.differ_in_length_alone(inputs, inputs | other) == ("length" in other)


def test_an_unfinished_stage_of_the_same_inputs_goes_on_where_it_is(tmp_path):
    stage, inputs = tmp_path / "pretrain", manifest.inputs({"width": 1}, {})
    stages.begin(stage, inputs)
    (stage / "half").write_text("done")
    stages.begin(stage, inputs)
    assert (stage / "half").exists()


def test_a_stage_of_other_inputs_is_kept_aside_and_never_deleted(tmp_path):
    stage = tmp_path / "pretrain"
    for steps in (1, 2, 3):
        stages.begin(stage, manifest.inputs({"width": steps}, {}))
        (stage / f"made {steps}").write_text("dear")
    assert [path.name for path in stage.glob("made*")] == ["made 3"]
    assert sorted(path.name for path in (tmp_path / "replaced").glob("*/made*")) == ["made 1", "made 2"]


def test_a_new_version_of_the_program_alone_makes_nothing_again(tmp_path, monkeypatch):
    inputs = manifest.inputs({"width": 1}, {})
    manifest.write(tmp_path, inputs)
    before = manifest.identity(tmp_path)
    monkeypatch.setattr(manifest, "__version__", "9.9")
    assert manifest.is_finished(tmp_path, manifest.inputs({"width": 1}, {}))
    manifest.write(tmp_path, inputs)
    assert manifest.identity(tmp_path) == before and storage.read_json(tmp_path / "manifest.json")["tpullm"] == "9.9"


def test_an_identity_changes_with_the_inputs_and_not_with_the_facts(tmp_path):
    found = []
    for steps, seconds in ((1, 1.0), (1, 2.0), (2, 1.0)):
        manifest.write(tmp_path, manifest.inputs({"width": steps}, {}), seconds=seconds)
        found.append(manifest.identity(tmp_path))
    assert found[0] == found[1] != found[2]
    assert storage.read_json(tmp_path / "manifest.json")["seconds"] == 1.0
