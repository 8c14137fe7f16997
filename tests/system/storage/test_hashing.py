"""Hashes depend on content alone."""

import base64
import hashlib

from tpullm.system import storage


def test_hashes_do_not_depend_on_the_order_of_keys(folder):
    assert storage.hash_json({"a": 1, "b": "あ"}) == storage.hash_json({"b": "あ", "a": 1})
    assert storage.hash_json({"a": 1}) != storage.hash_json({"a": 2})
    storage.write_text(folder / "a", "あ" * 100_000)
    assert storage.hash_file(folder / "a") == hashlib.sha256(("あ" * 100_000).encode()).hexdigest()


def test_md5s_are_those_of_the_content(folder):
    for name in ("a", "b/c"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(folder / name, name * 1000)
    assert storage.sizes(folder) == {"a": 1000, "b/c": 3000}
    found = storage.md5s(folder, ["a", "b/c", "missing"])
    assert found == {
        name: base64.b64encode(hashlib.md5(name.encode() * 1000).digest()).decode() for name in ("a", "b/c")
    }
