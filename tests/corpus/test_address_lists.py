"""Addresses fall that datatrove's URLFilter drops, for the same reasons."""

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.document import Raw
from tpullm.corpus.filters import address_lists, verdicts
from tpullm.recipe.schema import CorpusConfig, Source


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """Small lists in the place of datatrove's."""
    contents = {"domains": "# a comment\nbad.example\nsub.mixed.example\n", "urls": "http://good.example/bad.html\n"}
    with tarfile.open(tmp_path / address_lists.LISTS, "w:gz") as archive:
        for name, text in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    words = {
        "banned_words": "casino\n#comment\n",
        "soft_banned_words": "hot\nfree\n",
        "banned_subwords": "big jackpot\n",
    }
    for name, text in words.items():
        (tmp_path / f"{name}.txt").write_text(text)
    monkeypatch.setattr(address_lists, "_assets", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for cached in (address_lists._keys, address_lists._words):
        cached.cache_clear()
    yield
    for cached in (address_lists._keys, address_lists._words):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://bad.example/", True),
        ("https://www.a.BAD.example:80/x", True),
        ("http://notbad.example/", False),
        ("http://sub.mixed.example/", True),
        ("http://mixed.example/", False),
        ("http://good.example/bad.html", True),
        ("http://good.example/good.html", False),
        ("http://x.example/casino/1", True),
        ("http://x.example/casinos/1", False),
        ("http://x.example/free-hot", True),
        ("http://x.example/free", False),
        ("http://x.example/the-Big-Jackpot", True),
        ("", False),
    ],
)
def test_an_address_is_looked_up(lists, url, expected):
    assert address_lists.is_listed(url) == expected


def test_the_cache_holds_what_is_made(lists, tmp_path):
    address_lists.is_listed("http://bad.example/")
    [path] = (tmp_path / "cache" / "tpullm" / "address_lists").glob("domains-*.npy")
    assert np.array_equal(np.load(path), address_lists._made("domains"))
    address_lists._keys.cache_clear()
    assert isinstance(address_lists._keys("domains"), np.memmap)


def test_a_source_with_the_rule_drops_the_page(lists):
    source = Source("s", "text", licence="x", rules=["address"])
    text = "A page with enough characters to be kept by all of the other rules."
    assert verdicts.judge(Raw(text, url="http://bad.example/"), source, CorpusConfig()).reason == "listed address"
    assert verdicts.judge(Raw(text), source, CorpusConfig()).reason == ""


@given(st.lists(st.sampled_from(["http://", "a", "-", "/", "porn", "free", "x.com", "?q=", "teen"]), max_size=9))
def test_words_are_those_of_datatrove(parts):
    """Without its package for automata: a part of a word is looked for in the address without marks."""
    from datatrove.pipeline.filters import url_filter
    from datatrove.utils._import_utils import ASSETS_PATH

    url = "".join(parts)
    banned, soft, within = (
        url_filter.get_list(ASSETS_PATH, name, set())
        for name in ("banned_words.txt", "soft_banned_words.txt", "banned_subwords.txt")
    )
    found = set(url_filter.normalizer.split(url))
    joined = url_filter.normalize(url)
    expected = bool(banned & found) or len(soft & found) >= 2 or any(word in joined for word in within)
    assert address_lists._has_listed_words(url) == expected
