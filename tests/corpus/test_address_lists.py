"""Lists of domains, addresses and hashes: what is listed is found however it is written, and nothing else."""

import io
import os
import tarfile
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.corpus.document import Raw
from tpullm.corpus.filters import address_lists, verdicts
from tpullm.recipe.schema import CorpusConfig, Source
from tpullm.system.errors import UserError

LIST = """# people who asked
example.org          # and all below it
*.wild.example
日本語.jp
https://www.news.example/2024/story.html
http://blog.example/anna/*
shop.example/list?page=2
"""


ADDRESSES = {
    "opted out by domain": """
        https://example.org/ http://user@A.B.Example.ORG.:8080/x https://wild.example/a https://www.日本語.jp/
    """,
    "opted out by URL": """
        http://news.example/2024/story.html#part http://news.example/2024/story.html/ https://blog.example/%61nna/b
        https://blog.example/anna/2020/a.html https://shop.example/list?page=2
    """,
    "": """
        https://example.org.evil.example/ http://news.example/2024/story.html?x https://blog.example/annabel/a.html
        https://shop.example/list?page=20 org http://[::1/\ud800%
    """,
}


def test_an_address_is_looked_up(tmp_path):
    (tmp_path / "out.txt").write_text(LIST, encoding="utf-8")
    lists = address_lists.load((str(tmp_path / "out.txt"),))
    for reason, urls in ADDRESSES.items():
        assert {url: lists.address(url) for url in urls.split()} == dict.fromkeys(urls.split(), reason)
    assert [lists.address(url) for url in ("", "." * 10_000, "/" * 10_000)] == [""] * 3


@pytest.mark.parametrize("line", ["hello world", "nothing", "https://", "http://a b.example/", "g" * 64])
def test_a_line_that_is_nothing_is_refused_and_a_file_that_is_not_there_is_named(tmp_path, line):
    path = tmp_path / "out.txt"
    path.write_text(f"example.org\n{line}\n")
    with pytest.raises(UserError, match="out.txt: line 2: .* is no domain, address or SHA-256 hash; correct"):
        address_lists.load((str(path),))
    with pytest.raises(UserError, match="corpus.opted_out: .*none.txt: cannot be read"):
        address_lists.load((str(tmp_path / "none.txt"),))


def test_a_list_of_many_dots_or_without_an_end_takes_no_time(tmp_path):
    (tmp_path / "out.txt").write_text("a." * 28 + "/b\n")
    begin = time.thread_time()
    assert address_lists.load((str(tmp_path / "out.txt"),)).address("a." * 28 + "/b") == "opted out by URL"
    assert time.thread_time() - begin < 2  # 18 s, doubled by each two dots, where a part may hold a dot
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is no file"):
        address_lists.load((str(tmp_path / "pipe"),))


@settings(max_examples=30)
@given(st.sets(st.from_regex(r"[a-z0-9]{1,9}\.(com|jp)", fullmatch=True), min_size=1, max_size=6), st.data())
def test_exactly_what_is_listed_is_found(tmp_path_factory, names, data):
    path = tmp_path_factory.mktemp("lists") / "out.txt"
    listed = data.draw(st.sets(st.sampled_from(sorted(names))))
    path.write_text("\n".join(listed))
    found = address_lists.load((str(path),))
    assert {name for name in names if found.address(f"https://www.{name}/x")} == listed


def clear():
    address_lists._hashes_of_list.cache_clear()
    address_lists._listed_address_words.cache_clear()


@pytest.fixture
def datatrove_lists(tmp_path, monkeypatch):
    """Small lists in the place of datatrove's."""
    contents = {"domains": "# a comment\nbad.example\nsub.mixed.example\n", "urls": "http://good.example/bad.html\n"}
    with tarfile.open(tmp_path / address_lists.LISTS, "w:gz") as archive:
        for name, text in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    (tmp_path / "banned_words.txt").write_text("casino\n#comment\n")
    (tmp_path / "soft_banned_words.txt").write_text("hot\nfree\n")
    (tmp_path / "banned_subwords.txt").write_text("big jackpot\n")
    monkeypatch.setattr(address_lists, "_address_list_folder", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clear()
    yield
    clear()


LISTED = "http://bad.example/ https://www.a.BAD.example:80/x http://sub.mixed.example/ http://good.example/bad.html"
LISTED += " http://x.example/casino/1 http://x.example/free-hot http://x.example/the-Big-Jackpot"
OTHERS = "http://notbad.example/ http://mixed.example/ http://good.example/good.html http://x.example/casinos"
OTHERS += " http://x.example/free-free http://x.example/jackpot"


def test_an_address_is_looked_up_in_the_lists_of_datatrove_whose_keys_are_made_once(datatrove_lists, monkeypatch):
    assert all(map(address_lists.is_listed, LISTED.split()))
    assert not any(map(address_lists.is_listed, ["", *OTHERS.split()]))
    clear()
    monkeypatch.setattr(address_lists, "LISTS", "gone")
    assert address_lists.is_listed("http://bad.example/") and not address_lists.is_listed("http://other.example/")
    source = Source("s", "text", licence="x", rules=["address"])
    text = "A page with enough characters to be kept by all of the other rules."
    for url, reason in (("http://bad.example/", "listed address"), ("", "")):
        assert verdicts.judge(Raw(text, url=url), source, CorpusConfig()).reason == reason


@given(st.lists(st.sampled_from(["http://", "a", "-", "/", "porn", "free", "x.com", "?q=", "teen"]), max_size=9))
def test_words_are_those_of_datatrove(parts):
    """Without its package for automata: a part of a word is looked for in the address without marks."""
    from datatrove.pipeline.filters import url_filter
    from datatrove.utils._import_utils import ASSETS_PATH

    url = "".join(parts)
    names = ("banned_words.txt", "soft_banned_words.txt", "banned_subwords.txt")
    banned, soft, within = (url_filter.get_list(ASSETS_PATH, name, set()) for name in names)
    found, joined = set(url_filter.normalizer.split(url)), url_filter.normalize(url)
    expected = bool(banned & found) or len(soft & found) >= 2 or any(word in joined for word in within)
    assert address_lists.has_listed_words(url) == expected
