"""A run: all stages, each skipped when its inputs stand and made again when they changed."""

import json
import shutil

import pytest

from tests.conftest import TINY
from tpullm.cli.main import main
from tpullm.training.metrics import read_rows


def stamps(run) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_the_results_have_the_promised_figures(tiny_run):
    results = json.loads((tiny_run / "evaluate" / "results.json").read_text())
    assert results["tenki"]["loss_nats_per_token"] > results["tenki"]["entropy_nats_per_token"] > 0
    assert 0 <= results["blank"]["total_variation"] <= 1
    assert 0 <= results["tuned"]["accuracy"] <= 1 and 0 <= results["base"]["accuracy"] <= 1
    assert set(results["bits_per_byte"]) == {"tenki", "python-docs"}


def test_the_metrics_have_the_promised_fields(tiny_run):
    promised = {"step", "tokens", "loss", "grad_norm", "learning_rate", "tokens_per_second", "step_seconds"}
    for stage in ("pretrain", "talk"):
        rows = read_rows(tiny_run / stage / "metrics.jsonl")
        assert min(len(promised & row.keys()) for row in rows if "loss" in row) == len(promised)
        assert min(map(len, (row["eval_bits_per_byte"] for row in rows if "eval_loss" in row)))


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
    assert read_rows(run / "talk" / "metrics.jsonl")[-1]["step"] == 4
    # What changes no number makes nothing again.
    assert main(["run", "--run", str(run), "--pretrain.log_every=3", "--finetune.talk.train.checkpoint.keep=1"]) == 0
    assert capsys.readouterr().err.count("skipped") == 6  # all but the report, which shows the recipe
