"""The site that `make docs` makes: its paragraphs, and its search as a reader has it in headless Chromium."""

import functools
import http.server
import json
import re
import runpy
import subprocess
import sys
import threading
import types

import pytest

from tests.pages import ROOT, name_of
from tests.serving.chromium import PROGRAM, browser, shown

TITLES = {page.stem: page.read_text("utf-8").split("\n")[0].removeprefix("# ") for page in ROOT.glob("docs/ja/*.md")}
TITLES = {name: title for name, title in TITLES.items() if name != "index"}  # its title is tpullm, which all pages name
WORDS = {"量子化": "tuning", "学習率": "tuning", "事前学習": "five-steps", "用語": "", "まず動かす": ""}


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """What the Japanese site finds: the address of each page, the best first."""
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    if not PROGRAM:
        pytest.skip("there is no Chromium on this machine")
    site = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-f", str(ROOT / "mkdocs.yml")]
    subprocess.run([*build, "-d", str(site)], check=True, env={"NO_MKDOCS_2_WARNING": "1"})
    quiet = {"log_message": lambda *_: None}
    handler = functools.partial(type("Quiet", (http.server.SimpleHTTPRequestHandler,), quiet), directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with browser(tmp_path_factory.mktemp("browser")) as page:
            page.open(f"http://127.0.0.1:{server.server_port}/ja/", language="ja")
            page.value("document.querySelector('[data-md-toggle=search]').click()")
            yield functools.partial(found, page)
        server.shutdown()


def found(page, text: str) -> types.SimpleNamespace:
    """`pages` that are found if a reader types this, and the `marks` in them."""
    typed = "document.querySelector('.md-search__input')"
    for one, waits in (("qqqqqq", "何も見つかりませんでした"), (text, "件見つかりました")):  # what stood there is gone
        page.value(f"{typed}.value = {json.dumps(one)}; {typed}.dispatchEvent(new Event('keyup'))")
        page.wait(f"document.querySelector('.md-search-result__meta').textContent.includes('{waits}')")
    page.wait("document.querySelector('.md-search-result__item mark')")
    links = "[...document.querySelectorAll('.md-search-result__item')].map((one) => one.querySelector('a').pathname)"
    return types.SimpleNamespace(pages=page.value(links), marks=shown(page, ".md-search-result__item mark"))


@pytest.mark.ci
@pytest.mark.parametrize(("name", "title"), sorted(TITLES.items()))
def test_a_page_is_found_by_its_title(search, name, title):
    """First, but for a page whose title begins alike (公開モデルで試す), and for English ones (Google Cloud)."""
    pages = [page for page in search(title).pages if page.startswith("/ja/")]
    assert f"/ja/{name}/" in pages[: sum(other.startswith(title) for other in TITLES.values())]


@pytest.mark.ci
@pytest.mark.parametrize(("word", "name"), WORDS.items())
def test_a_word_is_found_inside_of_sentences(search, word, name):
    result = search(word)
    assert f"/ja/{name}/".replace("//", "/") in result.pages
    assert all(mark.startswith(word) or word.startswith(mark) for mark in result.marks), "no other word is found"


@pytest.mark.ci
def test_english_is_found_word_by_word(search):
    result = search("learning rate")
    assert {"learning", "rate"} <= {mark.lower() for mark in result.marks}


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/ja/*.md")), ids=name_of)
def test_japanese_paragraphs_have_no_ends_of_lines_and_the_rest_is_as_it_was(page):
    text = page.read_text("utf-8")
    joined = runpy.run_path(str(ROOT / "docs" / "japanese_lines.py"))["joined"](text)
    letters = "[ぁ-ヿ一-鿿、。]"
    prose = re.sub(r"^ *```.*?^ *```$", "", joined, flags=re.DOTALL | re.MULTILINE)
    assert re.search(rf"{letters}\n{letters}", text) and not re.search(rf"{letters}\n *{letters}", prose)
    assert "".join(joined.split()) == "".join(text.split())
    for block in (r"^\|.*", r"^ *[-*] ", r"^ *\d+\. ", r"^#+ .*", r"^ *```.*", r"\n\n"):
        assert re.findall(block, joined, re.MULTILINE) == re.findall(block, text, re.MULTILINE)
