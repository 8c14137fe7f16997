"""The pages of the documentation as tests read them: blocks of code, commands, headings, links."""

import re
import textwrap
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
# A new page is here as soon as its file is.
PAGES = [page for pages in ("README*.md", "docs/en/*.md", "docs/ja/*.md") for page in sorted(ROOT.glob(pages))]
_FENCE = re.compile(r"^([ ]*)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code in a language, without the indentation of a list."""
    found = _FENCE.findall(page.read_text("utf-8"))
    return [textwrap.dedent(text) for _, kind, text in found if kind == language]


def commands(page: Path) -> list[str]:
    """The lines of its `sh` blocks; one that ends in a backslash goes on in the next."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


def anchors(page: Path) -> set[str]:
    """What a link to a heading ends in, on the site and on GitHub."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", _prose(page)))
    return [unquote(target) for target in found if "://" not in target]


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text("utf-8"))
