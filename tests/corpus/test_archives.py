"""The files in a zip file are read as those of a folder, and no zip file costs more than its bounds."""

import time
import zipfile

import pytest

from tests.corpus.desktop_files import docx, package, paragraph, read
from tpullm.corpus import sources
from tpullm.corpus.document import NOT_READ
from tpullm.corpus.files import archives, opened, source_files
from tpullm.recipe.schema import Source
from tpullm.system.errors import UserError


def test_the_files_in_it_are_those_of_a_folder(tmp_path):
    document = docx(tmp_path / "in.docx", paragraph("Word.")).read_bytes()
    parts = {
        "b/a.txt": "Text.\n",
        "b/w.docx": document,
        "README": "Read me.\n",
        "p.png": b"x",
        "blob": bytes(range(99)),
    }
    parts |= {
        "__MACOSX/b/._a.txt": b"x",
        ".hidden/a.txt": "x",
        "node_modules/a.js": "x",
        "l.jsonl": '{"text": "Line."}\n',
    }
    parts |= {"日本.txt": "本。\n", "inner.zip": b"x"}
    folder = tmp_path / "folder"
    folder.mkdir()
    path = package(folder / "a.zip", parts)
    for where in (path, folder):
        source = Source("s", "files", str(where))
        found = source_files.find(source, tmp_path)
        names = [source_files.name_of(file, source) for file in found.files]
        assert names == [f"a.zip/{name}" for name in ("README", "b/a.txt", "b/w.docx", "l.jsonl", "日本.txt")]
        assert [raw.text for raw in read(where)] == ["Read me.\n", "Text.\n", "Word.\n", "Line.", "本。\n"]
        assert found.skipped == {
            "no text in it": ["a.zip/blob"],
            source_files.NESTED: ["a.zip/inner.zip"],
            "other people's code": ["a.zip/node_modules/a.js"],
            "unknown extension (.png)": ["a.zip/p.png"],
        }
    (key,) = {sources.part_key(source, [file], config(), 0) for file in found.files[:1]}
    package(folder / "a.zip", parts | {"README": "Another.\n"})
    sources._remembered_file_hash.cache_clear()
    assert sources.part_key(source, source_files.find(source, tmp_path).files[:1], config(), 0) != key


def config():
    from tpullm.recipe.schema import CorpusConfig

    return CorpusConfig()


def test_a_name_in_the_encoding_of_windows_in_japan_is_read(tmp_path):
    name = "議事録.txt".encode("cp932").decode("cp437")
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(zipfile.ZipInfo("x" * len("議事録.txt".encode("cp932"))), "本。\n")
    path.write_bytes(path.read_bytes().replace(b"x" * 10, "議事録.txt".encode("cp932")))
    assert archives.members(path) == [(name, 7)] and archives.name_of(name) == "議事録.txt"
    assert read(path)[0].text == "本。\n"


def bomb(path):
    """One that becomes 200 GB: many members of a gigabyte each, as their list says."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(200):
            file.writestr(f"{number}.txt", " " * (1 << 20))
    data = path.read_bytes()
    path.write_bytes(data.replace((1 << 20).to_bytes(4, "little"), (1 << 30).to_bytes(4, "little")))
    return path


def test_a_bomb_is_refused_as_a_whole_and_what_is_beside_it_is_read(tmp_path):
    bomb(tmp_path / "bomb.zip")
    (tmp_path / "a.txt").write_text("Text.\n")
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 broken")
    begin = time.thread_time()
    found = source_files.find(Source("s", "files", str(tmp_path)), tmp_path)
    assert [file.path.name for file in found.files] == ["a.txt"] and time.thread_time() - begin < 5
    told, broken = found.skipped[NOT_READ]
    assert told.startswith("bomb.zip: becomes 214,748,364,800 bytes, more than 200 times as large as its file; unpack")
    assert broken.startswith("broken.zip: is no zip file or is cut off (")
    with pytest.raises(UserError, match="bomb.zip: becomes .* unpack it yourself"):
        source_files.find(Source("s", "files", str(tmp_path / "bomb.zip")), tmp_path)


def test_more_than_its_list_says_is_never_unpacked(tmp_path):
    path = package(tmp_path / "a.zip", {"a.txt": "x" * 4096})
    data = path.read_bytes()
    path.write_bytes(data.replace((4096).to_bytes(4, "little"), (16).to_bytes(4, "little")))
    (raw,) = [raw for raw in read(path)]
    assert len(raw.text) <= 16


def test_what_is_protected_or_has_too_many_files_says_what_to_do(tmp_path, monkeypatch):
    path = package(tmp_path / "a.zip", {"a.txt": "Text.\n"})
    monkeypatch.setattr(archives, "MOST_MEMBERS", 0)
    with pytest.raises(UserError, match="holds 1 files, more than 0; unpack it yourself, and name the folder"):
        archives.listed(str(path))
    data = bytearray(path.read_bytes())
    for begin, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.index(begin) + flags] |= archives.ENCRYPTED
    path.write_bytes(data)
    with pytest.raises(opened.Unreadable, match="is protected by a password; unpack it"):
        archives.members(path)
