"""Hashes depend on content alone."""

import hashlib

from tpullm import storage


def test_hashes_do_not_depend_on_the_order_of_keys(folder):
    assert storage.hash_json({"a": 1, "b": "あ"}) == storage.hash_json({"b": "あ", "a": 1})
    assert storage.hash_json({"a": 1}) != storage.hash_json({"a": 2})
    storage.write_text(folder / "a", "あ" * 100_000)
    assert storage.hash_file(folder / "a") == hashlib.sha256(("あ" * 100_000).encode()).hexdigest()
