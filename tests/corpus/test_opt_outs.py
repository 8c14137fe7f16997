"""Lists of domains, addresses and hashes: what is listed is found however it is written, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.filters import address_lists
from tpullm.system.errors import UserError

LIST = """# people who asked
example.org          # and all below it
*.wild.example
日本語.jp
https://www.news.example/2024/story.html
http://blog.example/anna/*
shop.example/list?page=2
"""


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    path = tmp_path_factory.mktemp("lists") / "out.txt"
    path.write_text(LIST, encoding="utf-8")
    return address_lists.load((str(path),))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://example.org/", "opted out by domain"),
        ("http://user@A.B.Example.ORG.:8080/x", "opted out by domain"),
        ("example.org", "opted out by domain"),
        ("https://notexample.org/example.org", ""),
        ("https://example.org.evil.example/", ""),
        ("https://wild.example/a", "opted out by domain"),
        ("https://xn--wgv71a119e.jp/", "opted out by domain"),
        ("https://www.日本語.jp/", "opted out by domain"),
        ("http://news.example/2024/story.html#part", "opted out by URL"),
        ("http://news.example/2024/story.html/", "opted out by URL"),
        ("http://news.example/2024/story.html?x", ""),
        ("http://news.example/2024/", ""),
        ("https://blog.example/anna/2020/a.html", "opted out by URL"),
        ("https://blog.example/annabel/a.html", ""),
        ("https://blog.example/%61nna/b", "opted out by URL"),
        ("https://shop.example/list?page=2", "opted out by URL"),
        ("https://www.shop.example/list?page=2", "opted out by URL"),
        ("https://shop.example/list?page=20", ""),
        ("", ""),
        ("org", ""),
        ("http://[::1/", ""),
        ("." * 10_000, ""),
        ("/" * 10_000, ""),
    ],
)
def test_an_address_is_looked_up(lists, url, reason):
    assert lists.address(url) == reason


@given(st.text())
def test_any_address_is_looked_up(lists, url):
    assert lists.address(url) in ("", "opted out by domain", "opted out by URL")


@pytest.mark.parametrize("line", ["hello world", "nothing", "https://", "http://a b.example/", "g" * 64])
def test_a_line_that_is_nothing_is_refused(tmp_path, line):
    path = tmp_path / "out.txt"
    path.write_text(f"example.org\n{line}\n")
    with pytest.raises(UserError, match="out.txt: line 2: .* is no domain, address or SHA-256 hash; correct"):
        address_lists.load((str(path),))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="corpus.opted_out: .*none.txt: cannot be read"):
        address_lists.load((str(tmp_path / "none.txt"),))


@given(st.sets(st.from_regex(r"[a-z0-9]{1,9}\.(com|jp)", fullmatch=True), min_size=1), st.data())
def test_exactly_what_is_listed_is_found(tmp_path_factory, names, data):
    path = tmp_path_factory.mktemp("lists") / "out.txt"
    listed = data.draw(st.sets(st.sampled_from(sorted(names))))
    path.write_text("\n".join(listed))
    found = address_lists.load((str(path),))
    assert {name for name in names if found.address(f"https://www.{name}/x")} == listed
