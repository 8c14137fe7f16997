"""The site that `make docs` makes, as a reader has it in headless Chromium: its search finds Japanese."""

import functools
import http.server
import importlib.util
import json
import subprocess
import sys
import threading
import types

import pytest

from tests.pages import ROOT
from tests.serving.chromium import PROGRAM, browser, shown

pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(not PROGRAM, reason="there is no Chromium on this machine"),
    pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="the extra `docs` is not installed"),
]
TITLES = {page.stem: page.read_text("utf-8").split("\n")[0].removeprefix("# ") for page in ROOT.glob("docs/ja/*.md")}
TITLES = {name: title for name, title in TITLES.items() if name != "index"}  # its title is tpullm, which all pages name
WORDS = {"量子化": "tuning", "学習率": "tuning", "事前学習": "five-steps", "用語": "", "まず動かす": ""}


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """What the Japanese site finds: the address of each page, the best first."""
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


@pytest.mark.parametrize(("name", "title"), sorted(TITLES.items()))
def test_a_page_is_the_first_that_its_title_finds(search, name, title):
    assert search(title).pages[0] == f"/ja/{name}/"


@pytest.mark.parametrize(("word", "name"), WORDS.items())
def test_a_word_is_found_inside_of_sentences(search, word, name):
    result = search(word)
    assert f"/ja/{name}/".replace("//", "/") in result.pages
    assert all(mark.startswith(word) or word.startswith(mark) for mark in result.marks), "no other word is found"


def test_english_is_found_word_by_word(search):
    result = search("learning rate")
    assert {"learning", "rate"} <= {mark.lower() for mark in result.marks}
