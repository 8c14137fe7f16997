"""From what was timed to the line of JSON, the tables and the table in docs/en/speed.md."""

import json

import cpu
import figures
import pytest
import quickstart
import tables
import yaml

from tests.conftest import ROOT

RECORDED = sorted((ROOT / "benchmarks" / "results").glob("cpu-*.json"))


def of_rates(**rates: list[float]) -> dict:
    return figures.compare({name.replace("_", " "): values for name, values in rates.items()})


@pytest.fixture
def results() -> dict:
    training = of_rates(tpullm=[30.0, 32.0, 28.0], torch_bf16=[20.0, 16.0, 28.0], torch_f32=[10.0, 10.0, 10.0])
    facts = {"parameters": 1, "flops_per_token": 2.0, "compute": "bfloat16", "failed": {"torch compiled": "no g++"}}
    decoding = of_rates(tpullm=[50.0], torch_bf16=[10.0])
    decoding |= {"ratio_to_fastest": 2.5, "fastest_peer": "torch bf16 static cache compiled"}
    found = {
        "train": {"peak": {"flops": 120.0}, "sizes": {"12M": {"mfu": 0.5, **training, **facts}}},
        "decode": {"size": "12M", "compute": "bfloat16", "batches": {"1": decoding, "8": decoding}, "failed": {}},
        "data": {"tokens_per_second": {"short": {"batches": figures.summary([2e7])}}, "wait_share": 0.002},
        "start": {"first": 9.0, "second": figures.summary([4.0]), "resumed": figures.summary([3.0])},
    }
    return {**cpu.ratios(found), **found, "versions": figures.versions(), "machine": figures.machine(), "settings": {}}


def test_the_ratio_is_of_medians_and_the_best_peer(results):
    training = results["train"]["sizes"]["12M"]
    assert training["best_peer"] == "torch bf16"
    assert results["ratio"] == {"12M": 1.5} and results["decode_ratio"] == {"1": 5.0, "8": 5.0}
    by_round = training["ratio_by_round"]
    assert (by_round["min"], by_round["median"], by_round["max"]) == (1.0, 1.5, 2.0)


def test_the_last_line_is_the_result(results, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "measure", lambda parts, sizes, rounds: results)
    assert cpu.main(["--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    printed = json.loads(line)
    assert {"ratio", "mfu", "decode_ratio", "versions", "machine", "settings"} <= set(printed)


def test_without_torch_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda name: None)
    assert cpu.main(["--only", "train"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "torch is not installed" in line and "make benchmark" in line


def test_the_quickstart_in_short_reads_all_of_its_sources():
    sources = yaml.safe_load(quickstart.RECIPE.read_text(encoding="utf-8"))["corpus"]["sources"]
    assert set(quickstart.DOCUMENTS) == {source["name"] for source in sources}


@pytest.mark.skipif(not RECORDED, reason="nothing is recorded yet")
def test_the_readme_shows_what_is_recorded():
    recorded = [json.loads(path.read_text(encoding="utf-8")) for path in RECORDED]
    assert tables.markdown(recorded) in (ROOT / "docs" / "en" / "speed.md").read_text(encoding="utf-8")
