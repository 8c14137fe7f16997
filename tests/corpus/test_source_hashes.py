"""What the documents depend on is known by its content, and a source is collected again when that changes."""

import os
import platform
from pathlib import Path

from tests.corpus.test_source_files import _write
from tpullm.corpus import sources, tenki
from tpullm.recipe.schema import Source


def test_the_fingerprint_follows_the_content(tmp_path):
    source = Source("s", "text", str(_write(tmp_path, "a.txt", "b.txt")))
    before = sources.upstream([source])
    Path(tmp_path, "a.txt").touch()
    assert sources.upstream([source]) == before
    Path(tmp_path, "a.txt").write_text("changed")
    assert sources.upstream([source]) != before


def test_what_is_not_a_file_is_known_by_its_version_or_its_address():
    url = "https://example.com/a.txt"
    found = [Source("t", "tenki", documents=9), Source("p", "python"), Source("u", "text", url, url)]
    expected = {"tenki": tenki.VERSION, "python": platform.python_version(), "u": [url, url]}
    assert sources.upstream(found) == expected


def test_a_large_file_is_known_by_its_size_and_time(tmp_path, monkeypatch):
    """Hashing it takes seconds, at each start."""
    monkeypatch.setattr(sources, "HASHED_BYTES", 10)
    for size, is_hashed in ((10, True), (11, False)):
        path = tmp_path / f"{size}.txt"
        path.write_text("x" * size)
        os.utime(path, ns=(5, 7))
        ((identity,),) = (found.values() for found in sources.upstream([Source("s", "text", str(path))])["s"])
        assert identity == f"{size} bytes at 7" if not is_hashed else len(identity) == 64


def test_held_out_files_are_hashed_too(tmp_path):
    _write(tmp_path, "a.txt", "b.txt")
    source = Source("s", "text", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    before = sources.upstream([source])
    (tmp_path / "b.txt").write_text("other")
    assert len(before["s"]) == 2 and sources.upstream([source]) != before
