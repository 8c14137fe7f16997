"""Which files of a source are found, how each is read and how much of them, in which parts; and what is downloaded."""

import dataclasses
import errno
import http.server
import json
import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.corpus import sources
from tpullm.corpus.files import readers, source_files
from tpullm.corpus.files.source_files import File
from tpullm.recipe.schema import Source
from tpullm.system import storage
from tpullm.system.errors import UserError


def _names(found):
    return [(file.path.name, file.kind, file.held_out) for file in found]


def _write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}\n")
    return folder


def test_a_folder_is_read_sorted_without_hidden_files_and_what_is_left_out_is_counted(tmp_path):
    names = "b.txt a.MD c/d.jsonl.gz .hidden/e.txt .f.txt g.png node_modules/h.js node_modules/k.md i.py j c/a/l.txt"
    _write(tmp_path, *names.split())
    source = Source("s", "files", str(tmp_path))
    found = source_files.find(source, tmp_path / "downloads")
    kinds = {"a.MD": "markdown", "b.txt": "text", "i.py": "code", "c/d.jsonl.gz": "jsonl", "c/a/l.txt": "text"}
    kinds = dict([*kinds.items()][:3]) | {"j": "text"} | kinds | {"node_modules/k.md": "markdown"}
    # The files of a folder come before its subfolders. Without an extension the content says what a file is.
    assert [(source_files.name_of(file, source), file.kind) for file in found.files] == list(kinds.items())
    skipped = {"unknown extension (.png)": ["g.png"]}
    assert found.skipped == skipped | {"other people's code": ["node_modules/h.js"]} and not found.is_part


def test_a_folder_with_nothing_to_read_is_refused(tmp_path):
    _write(tmp_path, "a.png")
    told = r"holds no file of kind text \(.txt .text .rst\); there is: unknown extension \(.png\)"
    with pytest.raises(UserError, match=told):
        source_files.find(Source("s", "text", str(tmp_path)), tmp_path)
    with pytest.raises(UserError, match=r"holds no file of kind files \(.txt .text [a-z. ]* .wet …\); there is"):
        source_files.find(Source("s", "files", str(tmp_path)), tmp_path)
    with pytest.raises(UserError, match=r"unknown extension \(.png\); a picture has no text; tesseract"):
        source_files.find(Source("s", "files", str(tmp_path / "a.png")), tmp_path)
    _write(tmp_path, "README")
    (file,) = source_files.find(Source("s", "files", str(tmp_path / "README")), tmp_path).files
    assert file.kind == "text" and source_files.name_of(file, Source("s", "files", str(file.path))) == "README"


def test_what_is_no_file_or_may_not_be_read_is_named_and_left_out(tmp_path, monkeypatch):
    _write(tmp_path, "a.txt")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "itself.txt").symlink_to(tmp_path / "itself.txt")
    (tmp_path / "null.txt").symlink_to("/dev/zero")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")  # as Hugging Face downloads files
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket.txt"))
    _write(tmp_path, "secret/b.txt")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    source = Source("s", "files", str(tmp_path))
    found = source_files.find(source, tmp_path)
    assert _names(found.files) == [("a.txt", "text", False), ("link.txt", "text", False)]
    names = ["broken.txt", "itself.txt", "null.txt", "pipe.txt", "round", "socket.txt", "secret"]
    assert found.skipped == {"a broken link, or no file": names}
    assert list(sources.upstream([source])["s"][0]) == ["a.txt", "link.txt"]


def test_json_is_json_lines_only_where_the_source_says_so(tmp_path):
    _write(tmp_path, "a.json.gz", "b.json", "c.jsonl", "d.txt")
    found = source_files.find(Source("s", "jsonl", str(tmp_path)), tmp_path)
    assert _names(found.files) == [(name, "jsonl", False) for name in ("a.json.gz", "b.json", "c.jsonl")]
    found = source_files.find(Source("s", "files", str(tmp_path)), tmp_path)
    kinds = {"a.json.gz": "json", "b.json": "json", "c.jsonl": "jsonl", "d.txt": "text"}
    assert _names(found.files) == [(name, kind, False) for name, kind in kinds.items()]


ODD = [b"-rf.txt", b"a\nb.txt", b"\xff\xfe.txt", b"\x1b[31m.txt", b" .txt", b"a" * 251 + b".txt", "本.txt".encode()]


def test_a_name_may_hold_any_bytes(tmp_path):
    for name in ODD:
        (tmp_path / os.fsdecode(name)).write_text("本を読む。\n")
    (tmp_path / os.fsdecode(b"\xff.png")).write_text("")
    source = Source("s", "files", str(tmp_path), bytes=len(ODD) * 10)
    found = source_files.find(source, tmp_path)
    assert len(found.files) > 4
    names = [source_files.name_of(file, source) for file in found.files]
    assert all(name.isprintable() and name.encode() for name in names)
    assert found.skipped == {"unknown extension (.png)": ["\\xff.png"]}
    assert {len(list(readers.read(file, source))) for file in found.files} == {1}
    assert len(sources.upstream([source])["s"][0]) == len(ODD) + 1
    json.dumps(sources.upstream([source]), ensure_ascii=False).encode()


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), most=st.integers(1, 200))
def test_a_bound_takes_whole_files_and_the_beginning_of_one(tmp_path_factory, sizes, most):
    folder = tmp_path_factory.mktemp("texts")
    for number, size in enumerate(sizes):
        (folder / f"{number:02}.txt").write_text("x" * size)
    found = source_files.find(Source("s", "files", str(folder), bytes=most), folder)
    assert found.bytes_read == min(most, sum(sizes)) and found.bytes_there == sum(sizes)
    assert found.is_part == (most < sum(sizes)) and found.files_there == len(sizes)
    cut = [file for file in found.files if file.is_part]
    assert len(cut) <= 1
    assert all(file.bytes == file.path.stat().st_size for file in found.files if file not in cut)
    assert [file.path for file in found.files] == sorted(file.path for file in found.files)


def test_the_part_that_is_read_does_not_depend_on_where_the_folder_lies(tmp_path):
    parts, names = [], [f"{number}.txt" for number in range(9)]
    for place in ("here", "there/deep"):
        source = Source("s", "files", str(_write(tmp_path / place, *names)), bytes=50)
        parts.append([file.path.name for file in source_files.find(source, tmp_path).files])
    assert parts[0] == parts[1] and len(parts[0]) < 9 and parts[0] != names[: len(parts[0])]


def test_a_source_on_gs_is_the_folder_that_was_sent_there(tmp_path, bucket):
    """The same files in the same order with the same text; what they are is told without reading them, by content."""
    names = ["b.txt", "a/c.md", "a/.hidden", "__pycache__/d.txt", "e.bin", "held.txt"]
    folder = _write(tmp_path / "texts", *names)
    storage.remote().upload_all(folder, bucket / "texts", names)
    found = []
    for place in (folder, bucket / "texts"):
        source = Source("s", "files", str(place), str(place / "held.txt"), licence="CC0-1.0")
        sources.check([source])
        files = source_files.find(source, tmp_path)
        texts = [[raw.text for raw in readers.read(file, source)] for file in files.files]
        found.append((_names(files.files), [file.bytes for file in files.files], files.skipped, texts))
    assert found[0] == found[1] and len(found[0][0]) == 3
    before = sources.upstream([source])
    (bucket / "texts" / "b.txt").write_text("text of b.txt\n")
    assert sources.upstream([source]) == before
    (bucket / "texts" / "b.txt").write_text("other\n")
    assert sources.upstream([source]) != before


def test_the_files_of_the_python_library_are_code(tmp_path):
    source = Source("p", "python", "code", bytes=10_000_000_000)
    found = source_files.find(source, tmp_path)
    assert {file.kind for file in found.files} == {"python"} and found.bytes_there == found.bytes_read
    names = [source_files.name_of(file, source) for file in found.files]
    assert {"json/__init__.py", "ast.py"} <= set(names) and len(set(names)) == len(names)


def test_held_out_files_are_not_trained_on_and_may_lie_elsewhere(tmp_path):
    _write(tmp_path, "in/a.txt", "in/b.png", "in/f.txt", "out/c.txt", "out/d.png", "out/e.gif")
    found = source_files.find(Source("s", "text", str(tmp_path / "in"), str(tmp_path / "in/f.txt")), tmp_path)
    assert _names(found.files) == [("f.txt", "text", True), ("a.txt", "text", False)] and not found.is_part
    found = source_files.find(Source("s", "files", str(tmp_path / "in"), str(tmp_path / "out")), tmp_path)
    assert found.skipped == {"unknown extension (.png)": ["d.png", "b.png"], "unknown extension (.gif)": ["e.gif"]}
    assert [file.path.name for file in found.read] == ["a.txt", "f.txt"] and found.files_there == 2


PATHS = st.integers(0, 10**9).map(lambda number: Path(f"{number}.txt"))
SIZES = st.integers(0, 100_000_000) | st.integers(0, 9_000)
FILES = st.builds(File, PATHS, st.sampled_from(["text", "html"]), SIZES, st.booleans())


@given(st.lists(FILES, max_size=40, unique_by=lambda file: file.path))
def test_each_byte_is_in_one_part_and_the_parts_are_in_order(files):
    found = list(source_files.parts(files))
    assert [size for _, size in found] == [sum(file.bytes for file in group) for group, _ in found]
    flat = [file for group, _ in found for file in group]
    whole = [dataclasses.replace(file, start=0, stop=None, bytes=0) for file in flat]
    assert list(dict.fromkeys(whole)) == [dataclasses.replace(file, bytes=0) for file in files]
    for file in files:
        own = [part for part in flat if part.path == file.path]
        assert sum(part.bytes for part in own) == file.bytes
        assert [part.stop for part in own] == [*(part.start for part in own[1:]), None]
        assert file.kind == "text" or own == [file]
        assert all(part.bytes < 2 * source_files.RANGE_BYTES for part in own) or file.kind == "html"
    for group, _ in found:
        assert len({file.held_out for file in group}) == 1
        assert len(group) == 1 or all(file.bytes < source_files.BUNDLE_BYTES for file in group)


def test_bundles_are_of_about_one_size_and_a_file_that_is_added_changes_one_of_them():
    files = [File(Path(f"{number:05}.txt"), "text", 30_000 + number * 70) for number in range(1_000)]
    before = source_files.parts(files)
    sizes = [size for _, size in before]
    assert 0.7 < sum(sizes) / len(sizes) / source_files.BUNDLE_BYTES < 1.3
    assert max(sizes) < 10 * source_files.BUNDLE_BYTES
    for place in (0, 500):
        added = File(Path(f"{place:05}-new.txt"), "text", 3_000)  # by chance, one in 667 cuts its bundle in two
        assert len(set(source_files.parts([*files[:place], added, *files[place:]])) - set(before)) == 1
    empty = [File(Path(f"{number}.txt"), "text", 0) for number in range(2_000)]
    assert 2 < len(source_files.parts(empty)) < 9
    # What is appended to a large file changes its last range.
    file = File(Path("a.jsonl"), "jsonl", 10 * source_files.RANGE_BYTES + 1)
    before = source_files.ranges_of_file(file)
    after = source_files.ranges_of_file(dataclasses.replace(file, bytes=11 * source_files.RANGE_BYTES))
    assert len(before) == 10 and len(after) == 11 and before[:-1] == after[:9]
    for whole in (Path("a.jsonl.gz"), Path("a.jsonl.zst")):
        assert len(source_files.ranges_of_file(dataclasses.replace(file, path=whole))) == 1
    assert len(source_files.ranges_of_file(dataclasses.replace(file, is_part=True))) == 1


BODY = "今日はいい天気ですね。\n".encode() * 1000


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:100] if self.server.breaks_off else BODY)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as found:
        found.breaks_off = False
        found.url = f"http://127.0.0.1:{found.server_port}"
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def test_a_file_is_fetched_once_and_a_download_that_breaks_off_leaves_nothing(server, tmp_path):
    server.breaks_off = True
    with pytest.raises(UserError, match=f"broke off after 100 of {len(BODY)} bytes; run the same command again"):
        source_files.fetch(f"{server.url}/a.txt?x=1", tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.breaks_off = False
    path = source_files.fetch(f"{server.url}/a.txt?x=1", tmp_path)
    assert path.read_bytes() == BODY and path.name.endswith("-a.txt")
    with pytest.raises(UserError, match="the server answers 404"):
        source_files.fetch(f"{server.url}/missing", tmp_path)
    server.shutdown()
    server.server_close()
    assert source_files.fetch(f"{server.url}/a.txt?x=1", tmp_path) == path
    with pytest.raises(UserError, match="cannot be downloaded .*check the address and the network"):
        source_files.fetch(f"{server.url}/b.txt", tmp_path)
