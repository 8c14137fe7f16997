"""Pages that break their reader cost a bounded time and no more than themselves."""

import time

import pytest

from tpullm.corpus.files import opened, pages
from tpullm.system.process import limited

PAGE = "<html><body><article><p>今日はいい天気ですね。私はリンゴを食べるのが好きです。</p></article>"


def hang(page, headers):
    while "hang" in page:
        pass
    if "memory" in page:
        return bytearray(1 << 40)
    if "crash" in page:
        import ctypes

        ctypes.string_at(0)
    return [page, "", "more than asked"][: 3 if "more" in page else 2]


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("hang", "takes more than 1 s of the processor"),
        ("memory", "needs more than 1 GiB of memory"),
        ("crash", "ends by signal 11"),
    ],
)
def test_a_page_that_breaks_its_reader_is_put_aside_and_the_next_is_read(monkeypatch, page, problem):
    monkeypatch.setattr(limited, "CPU_SECONDS", 1)
    monkeypatch.setattr(pages, "EXTRACT", "tests.corpus.test_pages:hang")
    raw = pages.read(page.encode())
    assert raw.dropped == "could not be read" and problem in raw.problem and "do not use" not in raw.problem
    assert pages.read(b"fine").text == "fine"


def test_nothing_is_started_before_the_first_page(monkeypatch):
    opened._child.cache_clear()
    pages.read(b"\xff\xfe\xff")  # in no encoding
    assert opened._child.cache_info().currsize == 0
    assert "リンゴ" in pages.read(PAGE.encode()).text
    assert opened._child.cache_info().currsize == 1


def test_the_child_can_be_ended_and_starts_again():
    for _ in range(2):
        assert "リンゴ" in pages.read(PAGE.encode()).text
        process = opened._child()._child._process
        opened.close_child()
        assert process.returncode is not None and opened._child()._child._process is None
    opened._child.cache_clear()
    opened.close_child()


@pytest.mark.parametrize("tag", ["div", "b", "span", "blockquote", "ul><li", "font"])
def test_text_a_thousand_deep_is_read(tag):
    page = f"<html><body>{f'<{tag}>' * 1000}{'今日はいい天気ですね。' * 9}</body></html>"
    assert "今日はいい天気ですね。" in pages.read(page.encode()).text


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 100_000 + "text",
        "<" * 1_000_000,
        "<!--" * 40_000,
        "<a href='" * 40_000,
        "&#x" * 300_000,
        "<p " + "a=b " * 100_000 + ">text",
        "<!DOCTYPE [" + "<!ENTITY a 'bbbb'>" * 1000 + "]>&a;",
        "\0" * 100_000,
        "",
        "<html/>",
        "<script>" * 10_000,
    ],
)
def test_hostile_pages_are_no_more_than_a_document_without_text(page):
    begin = time.monotonic()
    raw = pages.read(page.encode())
    assert raw.dropped in ("", "could not be read") and time.monotonic() - begin < 200


def test_a_page_that_is_too_large_is_not_sent(monkeypatch):
    monkeypatch.setattr(pages, "MOST_PAGE_BYTES", 10)
    assert pages.read(b"a" * 11).dropped == "too large" and pages.read(b"a" * 10).text == "a" * 10
