"""What README and the manual say of MaxText's program is what `benchmarks/results/maxtext.json` has."""

import json
import re

import beside_maxtext
import pytest

from tests.conftest import ROOT

FOUND = json.loads((ROOT / "benchmarks" / "results" / "maxtext.json").read_text())
RATIOS = {name: beside_maxtext.ratios(figures) for name, figures in FOUND.items()}
VERSIONS = {version for of in FOUND.values() for program in of.values() for version in program["versions"].values()}


def test_the_page_of_results_is_that_of_the_figures():
    assert (ROOT / "benchmarks" / "results" / "maxtext.md").read_text() == beside_maxtext.page(FOUND)


@pytest.mark.parametrize("page", ["README.md", "README.ja.md", "docs/en/speed.md"])
def test_pages_say_both_ratios_the_settings_and_the_versions(page):
    text = (ROOT / page).read_text("utf-8")
    ranges = [tuple(pair) for pair in re.findall(r"(0\.\d\d)(?: to\s|〜)(0\.\d\d)", text)]
    for values in zip(*RATIOS.values(), strict=True):
        assert (f"{min(values):.2f}", f"{max(values):.2f}") in ranges
    told = {version for version in VERSIONS if version in text} | {"0.12.0.1"}  # JAX's is that of both
    assert told == VERSIONS and "512" in text


def test_the_table_of_the_manual_is_that_of_the_figures():
    text = (ROOT / "docs" / "en" / "speed.md").read_text("utf-8")
    for name, figures in FOUND.items():
        seconds = [figures[program]["step_seconds"] for program in ("tpullm", "MaxText")]
        row = [f"{one:.3f} s" for one in seconds] + [f"{one:.3f}" for one in RATIOS[name]]
        assert " | ".join([name.replace("-", " "), beside_maxtext.CASES[name].topology, *row]) in text
