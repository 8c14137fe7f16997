"""Measured figures in README and the manual are those of their records: a file of results, a page of design, a recipe.

`benchmarks/test_cpu.py` and `benchmarks/test_beside_maxtext.py` compare the tables of `docs/en/speed.md`.
"""

import json
import re
import shlex
import statistics
from decimal import Decimal

import plan_all
import pytest
import quickstart_pages

from tests.conftest import ROOT
from tests.planning.test_economics import published_errors, sizes
from tests.planning.test_memory import ON_GPUS, PROGRAMS, error
from tpullm.cli import main

RESULTS = ROOT / "benchmarks" / "results"
PROVEN = plan_all.recorded(RESULTS / "plan.json")
NUMBER = re.compile(r"(?<![A-Za-z0-9.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
# Pages, the record, and figures that stand together in a paragraph of each page and, not rounded, in a section of it.
QUOTED = [
    ("docs/*/measuring.md", "docs/design/judged-programs.md", "164 2.6"),
    ("docs/*/measuring.md", "docs/design/judged-programs.md", "1,211"),
    ("docs/en/inside.md", "docs/design/nothing-is-lost.md", "384 0.01 4.8 4.5"),
    ("docs/*/inside.md", "docs/design/nothing-is-lost.md", "0.99 1.01"),
    ("docs/en/your-text.md", "benchmarks/results/languages.md", "99.9 0.5 0.01"),
    ("docs/en/your-text.md", "benchmarks/results/languages.md", "98 99.98"),
    ("docs/*/your-text.md", "docs/design/vocabulary.md", "200 1.90 2.11"),
    ("docs/*/your-text.md", "docs/design/corpus.md", "1,800 12,000 10,200"),
    ("docs/*/your-text.md", "configs/pretrain/characters.yaml", "72 1.60"),
    ("docs/*/your-text.md", "configs/pretrain/novels.yaml", "12 1.72"),
    ("docs/*/serving.md", "docs/design/bits.md", "0.00 0.28"),
    ("docs/*/serving.md", "docs/design/bits.md", "32 19 12"),
    ("docs/*/tuning.md", "configs/tune/licences.yaml", "1.627 1.106 2.191 2.182 48.0 600 64.0 62.0 58.2"),
    ("docs/*/tuning.md", "configs/tune/medicine.yaml", "1.458 1.119 1.602 1.230 2.246 2.541 25.8 600 94.5 56.9"),
    ("docs/*/tuning.md", "configs/tune/programming.yaml", "1.757 1.687 0.251 0.237 24.9 511 93.1"),
    ("docs/*/tuning.md", "configs/tune/law-ja.yaml", "0.710 0.714 0.246 0.220 35.0 600 50.9 44.9"),
    ("docs/*/tuning.md", "configs/tune/law-ja.yaml", "5.2 3.1"),
    ("docs/*/tuning.md", "configs/tune/medicine-ja.yaml", "1.078 0.870 0.269 0.237 42.3 600 98.8 83.8"),
    ("docs/*/speed.md", "docs/design/tuning-beside-others.md", "3,350 1.89 0.56 531 2.00 0.72"),
    ("docs/*/speed.md", "docs/design/tuning-beside-others.md", "29.0 3.27 0.53 4.4 2.80 0.61"),
    ("docs/*/speed.md", "docs/design/tuning-beside-others.md", "1,460 2.19 0.60 269 2.51 0.46"),
]


PLAN = re.compile(r"```sh\ntpullm (plan [^\n]*)\n```\n\n```text\n(.*?)```", re.DOTALL)


def numbers(text: str) -> set[str]:
    return set(NUMBER.findall(text))


def rounds_to(recorded: str, figure: str) -> bool:
    """670 s is said of 669 s: a figure that ends in 0 without a point may be rounded to tens."""
    value, said = (Decimal(text.replace(",", "")) for text in (recorded, figure))
    step = Decimal(1).scaleb(said.as_tuple().exponent) * (10 if said % 10 == 0 and "." not in figure else 1)
    return abs(value - said) <= step / 2


@pytest.mark.parametrize(("pages", "record", "figures"), QUOTED)
def test_figures_are_recorded(pages, record, figures):
    text = (ROOT / record).read_text("utf-8")
    sections = map(numbers, re.split(r"^#+ ", text, flags=re.MULTILINE) if record.endswith(".md") else [text])
    assert any(all(any(rounds_to(one, said) for one in section) for said in figures.split()) for section in sections)
    assert_in_one_paragraph(pages, figures.split())


def assert_in_one_paragraph(pages: str, figures: list[str]):
    """Of each page."""
    assert (found := list(ROOT.glob(pages)))
    for page in found:
        paragraphs = map(numbers, page.read_text("utf-8").split("\n\n"))
        assert any(set(figures) <= paragraph for paragraph in paragraphs), page


@pytest.mark.parametrize("page", sorted(page.name for page in ROOT.glob("docs/ja/*.md")))
def test_a_page_has_the_same_figures_in_both_languages(page):
    """Those with a point: the others are written otherwise (4 million, 400万). A Japanese page may have fewer."""
    english, japanese = (
        {figure for figure in numbers((ROOT / "docs" / language / page).read_text("utf-8")) if "." in figure}
        for language in ("en", "ja")
    )
    assert japanese - english == set()
    if page in ("planning.md", "published-models.md", "speed.md"):
        assert english - japanese == set()


def texts(pages: str) -> list[str]:
    """The text of each page, its lines joined."""
    return [" ".join(path.read_text("utf-8").split()) for path in ROOT.glob(pages)]


def test_readme_has_the_ratios_of_the_cpu():
    recorded = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("cpu-*.json"))]
    for text in texts("README*.md"):
        for kind in ("ratio", "decode_ratio"):
            cells = [" / ".join(f"{ratio:.2f}" for ratio in of[kind].values()) for of in recorded]
            assert re.search(rf"\|[^|]*{cells[0]}[^|]*\|[^|]*{cells[1]}[^|]*\|", text), (kind, cells)
    (speed,), peak = texts("docs/en/speed.md"), recorded[-1]["train"]["peak"]["flops"]
    old, new = (of["versions"]["torch"].rpartition(".")[0] for of in recorded)
    assert f"peak in bfloat16 is {peak / 1e9:.0f} GFLOP/s" in speed
    assert f"torch is {new} on Python 3.13 and {old} on Python 3.11" in speed


def test_pages_show_a_run_that_was_recorded():
    """Some lines are shortened (`...`). What is said in sentences is held too, where it stands in a line of the run."""
    recorded = quickstart_pages.RECORD.read_text("utf-8").splitlines()
    for page in quickstart_pages.PAGES:
        text = page.read_text("utf-8")
        lines = [line for block in quickstart_pages.BLOCK.findall(text) for line in block.splitlines()]
        printed = [line for line in lines if any(map(quickstart_pages.like(line).fullmatch, recorded))]
        assert len(printed) > 8
        assert [line for line in printed if not quickstart_pages.shows(line, recorded)] == []
        sentences = quickstart_pages.BLOCK.sub("", text)
        for shown in re.findall(r"entropy +│ .* = ([\d.]+)", "\n".join(printed)):
            assert f"{float(shown):.3f}" in sentences
        for shown in re.findall(r"tuned / base +│ ([\d.]+%)", "\n".join(printed)) if "five-steps" in page.name else ():
            assert shown in sentences


def test_pages_show_the_blank_of_the_run_that_was_recorded():
    recorded = quickstart_pages.RECORD.read_text("utf-8").splitlines()
    blank = recorded[recorded.index(quickstart_pages.BLANK) :]
    shares = dict(line.split()[:2] for line in blank[1:])
    for page in quickstart_pages.WITH_BLANK:
        text = page.read_text("utf-8")
        blocks = [block.splitlines() for block in quickstart_pages.BLOCK.findall(text)]
        assert [block for block in blocks if block[0] == quickstart_pages.BLANK] == [blank]
        for head, row in re.findall(r"^\| \S+ (\| いい.*)\n.*\n\| \S+ (\| .*)$", text, re.MULTILINE):
            words = [cell.split()[0] for cell in head.strip("| ").split(" | ")]
            assert [shares[word] for word in words] == row.strip("| ").split(" | ")


def test_the_five_steps_say_how_much_the_recipes_read():
    shown = [plan_all.load(name).pretrain for name in ("quickstart", "1t")]
    small, large = (of.steps * of.batch_size * of.sequence_length for of in shown)
    times = round(large / small / 1e4)
    english, japanese = ((ROOT / "docs" / language / "five-steps.md").read_text("utf-8") for language in ("en", "ja"))
    assert english.count(f"{small / 1e6:.2f} million") == 2 and f"about {times}0,000 times" in english
    assert japanese.count(f"{small / 1e4:.0f}万") == 2 and f"約{times}万倍" in japanese


def test_the_notebook_says_what_the_whole_quickstart_came_to():
    recorded = quickstart_pages.RECORD.read_text("utf-8")
    (said,) = re.findall(
        r"The whole quickstart pretrains.*?this blank",
        (ROOT / "docs" / "five_steps.ipynb").read_text("utf-8"),
        re.DOTALL,
    )
    found = [
        r"finished after ([\d.]+) s",
        r"true entropy +│ .* = ([\d.]+)",
        r"total variation from the truth (\S+)   │",
    ]
    seconds, gap, variation = (float(re.search(pattern, recorded)[1]) for pattern in found)
    assert numbers(said) == {f"{seconds:.0f}", f"{gap:.3f}", f"{variation:.3f}"}


def test_a_line_of_a_page_is_renewed_by_the_line_that_says_the_same():
    before = [
        "step     10/480  loss 6.7  grad norm 1.3",
        "step    250/480  loss 1.6  grad norm 0.2",
        "step    480/480  loss 1.5  grad norm 0.2",
    ]
    before += [
        "step     10/200  loss 1.6  grad norm 2.6",
        "│ right answers │ 97.5% of 325 │",
        "tokens: a: 1,234 for training",
    ]
    log = [f"step {n:6}/44  loss {50 - n}.5  grad norm 0.1" for n in (10, 20, 30, 40, 44)]
    log += [
        "step     10/68  loss 9.9  grad norm 1e-08",
        "│ right answers │ 100.0% of 47  │",
        "tokens: a: 9 for training",
    ]
    renewed = [quickstart_pages.renewed(line, before, log) for line in before]
    assert renewed == [log[0], log[2], log[4], log[5], log[6], log[7]]
    assert (
        quickstart_pages.renewed("step    250/480  ... grad norm 0.2", before, log)
        == "step    30/44  ... grad norm 0.1"
    )
    with pytest.raises(SystemExit, match="no line of the log is like it"):
        quickstart_pages.renewed("tokens: b: 1 for training", before, log)


def planned(name: str):
    return plan_all.estimated(plan_all.load(plan_all.RECIPES[name]))


def slower(name: str) -> float:
    """By how much the estimated step is slower than the compiled one."""
    return planned(name).estimate.step_seconds / PROVEN[name].step_seconds - 1


def test_a_base_in_few_bits_needs_what_the_compiler_says():
    steps, off = [], []
    for name in ("8b-lora", "8b-lora-gpu", "8b-qlora", "8b-qlora-gpu", "70b-qlora"):
        proof, estimated = PROVEN[name], planned(name)
        memory = f"| {estimated.memory.peak / 2**30:.1f} | {proof.peak_bytes / 2**30:.1f} |"
        steps.append(f"{proof.step_seconds:.1f}")
        off.append(f"{100 * abs(slower(name)):.0f}")
        for text in texts("docs/*/tuning.md"):
            assert re.search(rf"\| `{name}` \|[^|]*{re.escape(memory)}", text), (name, memory)
    assert_in_one_paragraph("docs/*/tuning.md", steps + off[::2])


def test_planning_says_how_far_the_estimates_are():
    (text,) = texts("docs/en/planning.md")
    held, on_gpus, tpu7x = (sizes(published_errors("held", table)) for table in ("TPUs", "GPUs", "tpu7x"))
    assert f"of {len(held)} held-out runs" in text
    assert f"| {statistics.mean(held):.1%} in the mean, {max(held):.1%} at most |" in text
    assert_in_one_paragraph("docs/*/planning.md", [f"{100 * of(tpu7x):.1f}" for of in (statistics.mean, max)])
    assert f"The error on these is {statistics.mean(on_gpus):.1%} in the mean and {max(on_gpus):.1%} at most" in text
    for programs, worst in ((PROGRAMS, "at most"), (ON_GPUS, "at worst")):
        off = [abs(error(program)) for program in programs if program["peak_bytes"]]
        assert f"{statistics.median(off):.1%} in the median, {max(off):.1%} {worst}" in text
        assert re.search(rf"\b{len(off)} (compiled )?programs", text)


def test_planning_says_how_far_the_estimates_are_from_the_compiled_steps():
    (text,) = texts("docs/en/planning.md")
    for names, said in (
        ("1b 8b 8x7b", "{:.0f} to {:.0f}% off for"),
        ("70b 175b", "{1:.0f}% too slow for"),
        ("125m 350m 1t", "{:.0f} to {:.0f}% too fast for"),
    ):
        off = sorted(100 * abs(slower(name)) for name in names.split())
        assert said.format(off[0], off[-1]) in text


PLANS = {found for page in ROOT.glob("docs/*/*.md") for found in PLAN.findall(page.read_text("utf-8"))}


@pytest.mark.parametrize(("command", "shown"), sorted(PLANS))
def test_a_page_shows_what_plan_prints(command, shown, capsys):
    assert main.main(shlex.split(command)) in (0, 1)
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in shown.splitlines() if line not in printed] == []
