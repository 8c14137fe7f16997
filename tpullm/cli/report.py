"""Write RUN/report.html, one self-contained page about a run."""

from pathlib import Path

from tpullm.recipe.schema import Recipe
from tpullm.report import run_data
from tpullm.report.language import named
from tpullm.report.page import page
from tpullm.system import language, storage
from tpullm.system.log import say


def main(recipe: Recipe, run: Path) -> None:
    """Write `RUN/report.html` from what the run has made so far, unless the page is the same."""
    path = run / "report.html"
    # To make the page and compare it is cheaper than hashing its inputs, and never out of date.
    text = page(run_data.read(recipe, run, named(recipe.language or language.chosen())))
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        say(f"report: unchanged, skipped; see {path}")
        return
    storage.write_text(path, text)
    say(f"report: {path} ({len(text.encode()) / 1024:,.0f} kB)")
