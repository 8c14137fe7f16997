"""Writes what a run of the quickstart printed into the pages that show it, so that all of them show the same run.

    { make quickstart; .venv/bin/tpullm blank runs/quickstart 今日はとても【?】天気ですね。; } 2>&1 | tee quickstart.log
    python benchmarks/quickstart_pages.py quickstart.log --where "2 cores of a Xeon with AMX"

`benchmarks/results/quickstart.txt` becomes the log; each line of it that README or a page shows (`PAGES`, in a block of
text) is replaced by the line of the new log that is like it: the same words with other numbers. Pages shorten lines
with `...`. The words of the blank, whose order may change, are replaced together. `tests/test_figures.py` compares the
pages with the record, also the figures in their sentences, which are corrected by hand.
"""

import argparse
import datetime
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "quickstart.txt"
PAGES = [ROOT / name for name in ("README.md", "README.ja.md", "docs/en/five-steps.md", "docs/ja/five-steps.md")]
WITH_BLANK = [*PAGES[2:], ROOT / "docs" / "en" / "inside.md", ROOT / "docs" / "ja" / "inside.md"]
BLANK = "今日はとても【?】天気ですね。"
NUMBER = re.compile(r"\d[\d,.:]*(?:e[-+]\d+)?%?")
STEP = re.compile(r"step +(\d+)")
BLOCK = re.compile(r"```text\n(.*?)```", re.DOTALL)
SHORT = "..."


def like(line: str) -> re.Pattern:
    """Matches the lines that say what `line` says with other numbers, which are its groups; columns may be wider."""
    words = [
        re.sub(r"(?:\\ )+|─+", lambda gap: "─+" if "─" in gap[0] else " +", re.escape(w)) for w in NUMBER.split(line)
    ]
    return re.compile(f"({NUMBER.pattern})".join(words).replace(re.escape(SHORT), ".*") + " *")


def shows(line: str, recorded: list[str]) -> bool:
    """Whether a line of a page is one of the record, which it may shorten."""
    shortened = re.compile(".*".join(map(re.escape, line.split(SHORT))))
    return any(shortened.fullmatch(one) for one in recorded)


def renewed(line: str, before: list[str], log: list[str]) -> str:
    """The line of `log` for one of `before`: of several steps, the one as far into its stage."""
    pattern = like(line)
    old, new = ([one for one in lines if pattern.fullmatch(one)] for lines in (before, log))
    if not new:
        raise SystemExit(f"{line!r}: no line of the log is like it; correct the page by hand")
    place = next(n for n, one in enumerate(old) if shows(line, [one]))
    if STEP.match(line):  # a line of the log of steps: both stages have such lines
        old_stages, new_stages = map(_stages, (old, new))
        stage, row = next(
            (s, r) for s, rows in enumerate(old_stages) for r, one in enumerate(rows) if one == old[place]
        )
        rows = new_stages[stage if len(new_stages) > stage else -1]
        last = len(old_stages[stage]) - 1
        found = rows[round(row * (len(rows) - 1) / last) if last else -1]
    else:
        found = new[min(place, len(new) - 1)]
    if SHORT not in line:
        return found
    numbers = iter(pattern.fullmatch(found).groups())
    return NUMBER.sub(lambda _: next(numbers), line)


def _stages(lines: list[str]) -> list[list[str]]:
    """Lines of steps by stage: where the number of the step falls, another stage begins."""
    stages: list[list[str]] = []
    last = None
    for line in lines:
        step = int(STEP.match(line)[1])
        if last is None or step < last:
            stages.append([])
        stages[-1].append(line)
        last = step
    return stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--where", required=True, help="the machine, in words")
    arguments = parser.parse_args()
    before = RECORD.read_text("utf-8").splitlines()
    text = arguments.log.read_text("utf-8")
    checkout = re.search(r"open (.*)runs/quickstart/report\.html", text)[1]
    text = re.sub(r"\S+/\.cache/", "~/.cache/", text.replace(checkout, ""))  # no paths of one machine
    log = text.splitlines()
    log = [line.removeprefix("tpullm: ").rstrip() for line in log if "\r" not in line]
    head = [
        f"Printed by `make quickstart` on {datetime.date.today()}, on {arguments.where}.",
        "The bits depend on the processor.",
        "",
    ]
    for page in dict.fromkeys([*PAGES, *WITH_BLANK]):
        written = page.read_text("utf-8")

        def block(found: re.Match) -> str:
            lines = found[1].splitlines()
            if lines[0] == BLANK:
                new = log[log.index(BLANK) :]
            else:
                new = [renewed(one, before, log) if shows(one, before) else one for one in lines]
            return "\n".join(["```text", *new, "```"])

        page.write_text(BLOCK.sub(block, written), "utf-8")
    RECORD.write_text("\n".join([*head, *log]) + "\n", "utf-8")


if __name__ == "__main__":
    main()
