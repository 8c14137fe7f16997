"""A PDF is its paragraphs, without the headers of its pages; a large one ends within its bounds."""

import subprocess
import sys

import pytest

from tests.corpus.desktop_files import pdf, read
from tpullm.corpus.document import NOT_READ

pytest.importorskip("pypdfium2")
WORDS = list(enumerate(("red", "blue", "green", "black"), 1))
LONG = "This line of a page is as long as all the others of its paragraph are, and"


def test_lines_are_joined_to_paragraphs_and_headers_are_left_out(tmp_path):
    pages = [
        ["My book", f"{word} {LONG}", f"ends {word}.", f"{word}: {LONG}", word * 3, f"page {n}"] for n, word in WORDS
    ]
    (raw,) = read(pdf(tmp_path / "a.pdf", pages))
    assert raw.text == "".join(f"{word} {LONG} ends {word}.\n{word}: {LONG} {word * 3}\n" for _, word in WORDS)


@pytest.mark.ci
def test_a_pdf_of_ten_thousand_pages_is_read_in_documents(tmp_path):
    raws = read(pdf(tmp_path / "a.pdf", [[f"{LONG} {word * 20}." for word in "abcdefghijkl"]] * 10_000))
    assert len(raws) > 5 and not any(raw.dropped for raw in raws)
    assert raws[0].record.startswith("pages 1 to ") and raws[-1].record.endswith(" to 10000")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"%PDF-1.4\nbroken", "is broken"),
        (None, "has no text (it is scanned); make one with text: ocrmypdf IN.pdf OUT.pdf"),
    ],
)
def test_what_can_t_be_read_says_what_to_do(tmp_path, data, told):
    path = pdf(tmp_path / "a.pdf", [[]])
    if data:
        path.write_bytes(data)
    (raw,) = read(path)
    assert raw.dropped == NOT_READ and raw.problem.startswith(told)


def test_collect_imports_no_library_of_the_extra():
    code = "import sys, tpullm.corpus.collect; print(*{'pypdfium2', 'python_calamine', 'striprtf'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
