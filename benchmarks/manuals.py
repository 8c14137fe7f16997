"""The main text of manuals: how much of it is found, how much else, and how fast, beside trafilatura.

    python benchmarks/manuals.py --folder FOLDER

fetches Debian's packages of manuals into FOLDER (260 MB). What is text is said for each by hand, as XPath: the box of
the text without its navigation. Figures are of words, and of single characters of Japanese: F1, recall, precision.
"""

import argparse
import hashlib
import re
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from typing import NamedTuple

from lxml import html

from tpullm.corpus.files import pages

LEAST_CHARACTERS = 200
WORD = re.compile("[\u3041-\u30ff\u3400-\u9fff]|[^\\W\u3041-\u30ff\u3400-\u9fff]+")
BLOCKS = set("p div li td th dt dd pre br h1 h2 h3 h4 h5 h6 tr table ul ol dl section".split())
SPHINX = ("//div[@role='main']", "//a[@class='headerlink'] | //div[contains(@class, 'toctree-wrapper')] | //nav")


class Manual(NamedTuple):
    """A package, the folder of its pages, what of a page is text, and what of that is not."""

    package: str
    folder: str
    text: str
    left_out: str


PUBLICAN = ("//body", "//ul[contains(@class, 'docnav')] | //*[@id='banner'] | //p[@id='title'] | //div[@class='toc']")
MANUALS = {
    "Publican, Japanese": Manual("debian-handbook", "debian-handbook/html/ja-JP", *PUBLICAN),
    "Publican, German": Manual("debian-handbook", "debian-handbook/html/de-DE", *PUBLICAN),
    "Texinfo, Japanese": Manual(
        "lilypond-doc-html-ja", "lilypond/html/Documentation", "//div[@id='main']",
        "//table[@class='nav_table' or @class='menu'] | //*[@id='footer' or @class='footer' or @id='languages']",
    ),
    "AsciiDoc": Manual("git-doc", "git-doc", "//body", "//div[@id='footer' or @id='toc']"),
    "DocBook (PHP)": Manual("php-doc", "php-doc/html", "//body", "//div[@class='navheader' or @class='navfooter']"),
    "Sphinx (Linux)": Manual("linux-doc-6.12", "linux-doc-6.12/html", *SPHINX),
    "Sphinx (Python)": Manual("python3.13-doc", "python3.13/html", *SPHINX),
    "no generator (anarchism)": Manual("anarchism", "anarchism/html", "//body", "//nav"),
}  # fmt: skip


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the packages are, or are fetched to")
    parser.add_argument("--pages", type=int, default=30, help="of each manual, by the hash of their names")
    options = parser.parse_args()
    print("| manual | pages | reader | F1 | recall | precision | worst | MB/s |\n" + "| --- " * 8 + "|")
    for name, manual in MANUALS.items():
        found = list(_pages(_unpacked(options.folder, manual.package), manual, options.pages))
        for reader, read in READERS.items():
            if util.find_spec(reader):
                began = time.process_time()
                texts = [read(page) for page, _ in found]
                seconds, size = time.process_time() - began, sum(len(page.encode()) for page, _ in found)
                scores = [_scores(text, truth) for text, (_, truth) in zip(texts, found, strict=True)]
                means = " | ".join(f"{statistics.mean(side):.3f}" for side in zip(*scores, strict=True))
                worst = min(f1 for f1, _, _ in scores)
                print(f"| {name} | {len(found)} | {reader} | {means} | {worst:.2f} | {size / 1e6 / seconds:.1f} |")


def _unpacked(folder: Path, package: str) -> Path:
    """The folder of the documents of a package."""
    own = folder / package
    if not (own / "usr").is_dir():
        own.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "--quiet=2", package], cwd=own, check=True)
        subprocess.run(["dpkg-deb", "-x", next(own.glob("*.deb")), own], check=True)
    return own / "usr" / "share" / "doc"


def _pages(folder: Path, manual: Manual, count: int) -> Iterator[tuple[str, str]]:
    """Pages, and the text that they have."""
    files = [file for file in (folder / manual.folder).rglob("*.html") if not file.is_symlink()]
    for file in sorted(files, key=lambda file: hashlib.sha256(str(file.relative_to(folder)).encode()).digest()):
        page = file.read_text("utf-8", "replace")
        if count and len(truth := _truth(page, manual)) >= LEAST_CHARACTERS:
            count -= 1
            yield page, truth


def _truth(page: str, manual: Manual) -> str:
    tree = html.document_fromstring(page.encode(), parser=html.HTMLParser(encoding="utf-8"))
    for element in tree.xpath(f"//script | //style | //head | //comment() | {manual.left_out}"):
        if element.getparent() is not None:
            element.drop_tree()
    for element in tree.iter(*BLOCKS):
        element.text, element.tail = f" {element.text or ''}", f" {element.tail or ''}"
    return " ".join(element.text_content() for element in tree.xpath(manual.text))


def _scores(text: str, truth: str) -> tuple[float, float, float]:
    """F1, recall and precision of the words."""
    own, right = Counter(WORD.findall(text)), Counter(WORD.findall(truth))
    both = (own & right).total()
    return 2 * both / (own.total() + right.total()), both / right.total(), both / max(own.total(), 1)


def _trafilatura(page: str) -> str:
    from trafilatura import extract

    return extract(page, include_comments=False) or ""


READERS: dict[str, Callable[[str], str]] = {
    "tpullm": lambda page: pages.extract(page, [])[0],
    "trafilatura": _trafilatura,
}


if __name__ == "__main__":
    main()
