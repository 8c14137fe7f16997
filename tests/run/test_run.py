"""A run: all stages, each skipped when its inputs stand and made again when they changed."""

import json
import shutil

import pytest

from tests.conftest import TINY
from tpullm.cli.main import main


def stamps(run) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_all_that_others_rely_on_is_there(tiny_run):
    for name in (
        *("recipe.yaml", "documents/datacard.md", "tokenizer/tokenizer.model", "tokens", "evaluate/results.json"),
        *("pretrain/checkpoints", "pretrain/metrics.jsonl", "talk/checkpoints", "talk/metrics.jsonl"),
        *("report.html", "documents/manifest.json", "tokenizer/manifest.json", "tokens/manifest.json"),
        *("pretrain/manifest.json", "talk/manifest.json", "evaluate/manifest.json"),
    ):
        assert (tiny_run / name).exists(), name


def test_the_results_have_the_promised_figures(tiny_run):
    results = json.loads((tiny_run / "evaluate" / "results.json").read_text())
    assert results["tenki"]["loss_nats_per_token"] > results["tenki"]["entropy_nats_per_token"] > 0
    assert 0 <= results["blank"]["total_variation"] <= 1
    assert 0 <= results["tuned"]["accuracy"] <= 1 and 0 <= results["base"]["accuracy"] <= 1
    assert set(results["bits_per_byte"]) == {"tenki", "python-docs"}


def test_the_metrics_have_the_promised_fields(tiny_run):
    for stage in ("pretrain", "talk"):
        lines = [json.loads(line) for line in (tiny_run / stage / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        assert steps and all(
            {"step", "tokens", "loss", "grad_norm", "learning_rate", "tokens_per_second", "step_seconds"} <= line.keys()
            for line in steps
        )
        evaluations = [line for line in lines if "eval_loss" in line]
        assert evaluations and all(line["eval_bits_per_byte"] for line in evaluations)


def test_a_second_run_makes_nothing_again(tiny_run, capsys):
    before = stamps(tiny_run)
    assert main(["run", "--config", str(TINY), "--run", str(tiny_run)]) == 0
    assert stamps(tiny_run) == before
    assert capsys.readouterr().err.count("skipped") == 7


def test_another_language_makes_only_the_page_again(tiny_run, tmp_path):
    run = tmp_path / "tiny"
    shutil.copytree(tiny_run, run)
    before = stamps(run)
    assert main(["run", "--run", str(run), "--language=ja"]) == 0
    after = stamps(run)
    assert {name for name in after if after[name] != before.get(name)} == {"recipe.yaml", "report.html"}
    assert '<html lang="ja">' in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.ci
def test_a_changed_stage_is_made_again_with_what_depends_on_it_and_the_old_one_is_kept(tiny_run, tmp_path, capsys):
    run = tmp_path / "tiny"
    shutil.copytree(tiny_run, run)
    before = stamps(run)
    assert main(["run", "--run", str(run), "--finetune.talk.train.steps=4", "--evaluate.questions=2"]) == 0
    after = stamps(run)
    unchanged = ("documents", "tokenizer", "tokens", "pretrain")
    assert all(after[name] == before[name] for name in before if name.startswith(unchanged))
    assert "talk: its inputs changed, so it is made again" in capsys.readouterr().err
    kept = list((run / "replaced").iterdir())
    assert sorted(path.name.split("-")[0] for path in kept) == ["evaluate", "talk"]
    assert json.loads((run / "talk" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4
    # What changes no number makes nothing again.
    assert main(["run", "--run", str(run), "--pretrain.log_every=3", "--finetune.talk.train.checkpoint.keep=1"]) == 0
    assert capsys.readouterr().err.count("skipped") == 6  # all but the report, which shows the recipe
