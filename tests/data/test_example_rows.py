"""Files of examples, in every form, are the same rows; a broken one is named with its place."""

import datetime
import gzip
import json
import os
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from tests.data.test_conversations import CHATS, say, write
from tests.data.test_examples import GOOD, ROWS, TALKS, all_of, answered
from tpullm.data.examples import Prompt, example_rows
from tpullm.data.examples.example_rows import rows_of_file
from tpullm.system import storage
from tpullm.system.errors import UserError


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    for name in ("chats.jsonl", "chats.json"):
        (tmp_path / name).write_bytes('{"messages": "天気"}\n'.encode("cp932"))
        with pytest.raises(UserError, match=rf"{name}: (line 1: )?is not UTF-8"):
            all_of(tmp_path / name)


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"chats\.jsonl: no such file or folder of conversations; correct its name"):
        all_of(tmp_path / "chats.jsonl")
    for name, text in {"a.jsonl": "\n", "a.json": "[]", "b.json": "", "c.json": '{"data": []}'}.items():
        with pytest.raises(UserError, match=f"{name}: has no conversations in it"):
            all_of(write(tmp_path / name, text))
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty" / "a.txt", GOOD)
    with pytest.raises(UserError, match=r"empty: has no file of conversations; it may have \.jsonl \.ndjson \.json"):
        all_of(tmp_path / "empty")


FORMS = {
    "a.jsonl": lambda rows: "".join(f"{json.dumps(row)}\n\n" for row in rows),
    "bom.jsonl": lambda rows: "\ufeff" + "\n".join(map(json.dumps, rows)),
    "other.txt": lambda rows: "\n".join(map(json.dumps, rows)),
    "b.ndjson": lambda rows: "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
    "list.json": lambda rows: json.dumps(rows),
    "indented.json": lambda rows: "\ufeff\n " + json.dumps(rows, indent=2, ensure_ascii=False) + "\n\n",
    "object.json": lambda rows: json.dumps({"version": {"a": [1]}, "data": rows, "n": None}, indent=1),
    "one-line.json": lambda rows: json.dumps({"data": rows}),
    "lines.JSON": lambda rows: "\n".join(map(json.dumps, rows)),
    "spaces.json": lambda rows: f"[{',  '.join(' ' * 1100 + json.dumps(row) for row in rows)}]",
}


@pytest.mark.parametrize("name", [*FORMS, "list.json.gz"])
@pytest.mark.parametrize("small", [False, True])
def test_every_kind_of_file_has_the_same_rows(tmp_path, name, small, monkeypatch, capsys):
    path, rows = tmp_path / name, ROWS
    if small:  # than the text of the file, and than any row
        monkeypatch.setattr(example_rows, "MOST_ROW_BYTES", 400)
    content = FORMS[name.removesuffix(".gz")](rows).encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert all_of(path) == TALKS
    assert f"{path}: 60 conversations (messages)" in capsys.readouterr().err.replace("\n", "")


def parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)


def test_a_null_in_parquet_is_a_key_that_is_not_there(tmp_path):
    calls = [{"type": "function", "function": {"name": "f", "arguments": {key: 1}}} for key in ("a", "b")]
    rows = [{"messages": answered(tool_calls=[call])["messages"]} for call in calls]
    parquet(tmp_path / "a.parquet", [*rows, {"messages": say("c", "d"), "image": b"\xff", "prompt": "x"}])
    found = all_of(tmp_path / "a.parquet")
    assert [talk.messages[1].get("tool_calls") for talk in found] == [[calls[0]], [calls[1]], None]
    parquet(tmp_path / "wrong.parquet", [*ROWS[:18], {"messages": say("a", " ")}])
    with pytest.raises(UserError, match=r"wrong\.parquet: row 19, message 2: has no content"):  # of all groups of rows
        all_of(tmp_path / "wrong.parquet")
    day = datetime.date(2024, 1, 2)
    parquet(tmp_path / "b.parquet", [{"prompt": "a", "day": day, "image": b"\xff", "parts": [b"x", b"y"], "n": 1.5}])
    fields = {"day": "2024-01-02", "parts": [None, None], "n": 1.5}
    assert all_of(tmp_path / "b.parquet", kind=Prompt)[0].fields == fields


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    for place, name in enumerate(["b.jsonl", "a.json", "sub/c.ndjson", ".hidden.jsonl", "notes.txt"]):
        write(tmp_path / name, {"messages": CHATS[place]})
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    write(tmp_path / "a.json", json.dumps([{"messages": CHATS[1]}]))
    assert all_of(tmp_path) == [TALKS[1], TALKS[0], TALKS[2]]
    assert "1 other files are not read" in capsys.readouterr().err


def test_a_folder_on_a_bucket_is_read(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    parquet(tmp_path / "b.parquet", ROWS[:2])
    storage.copy(tmp_path / "b.parquet", bucket / "talks" / "b.parquet")
    storage.write_text(bucket / "talks" / "a.jsonl", json.dumps(ROWS[2]))
    assert all_of(bucket / "talks") == [TALKS[2], *TALKS[:2]]
    assert all_of(bucket / "talks" / "a.jsonl") == TALKS[2:3]
    with pytest.raises(UserError, match="no such file or folder of conversations"):
        all_of(bucket / "talk")


SMALL = {
    '[{"a": 1}, ': "row 2: is not JSON",
    '[{"messages": 1} {"a": 1}]': "row 1: is not JSON \\(',' is missing before '{'\\)",
    "[{}": "row 1: is not JSON \\(',' is missing before its end\\)",
    "[{},]": "row 1: has a comma before '\\]'; remove it",
    '{"data": [], }': "has a comma before '}'; remove it",
    "[{}] []": "row 1: has more after its end",
    "[1]": "row 1: is not an object",
    "5": "begins with '5' and is neither a list nor an object",
    '{"a": 1}': "is an object without a list; write a list of examples",
    '{"a": [], "b": []}': "has two lists, 'a' and 'b'",
    '{"a" [': "is not JSON \\(':' is missing before '\\['",
    "{5": "is not JSON \\(':' is missing before its end",
    "[nul": "row 1: is not JSON",
    '["': "row 1: is not JSON \\(Unterminated",
    '[{"a": "' + "x" * 5_000: "row 1: is longer than 0 MiB; split or remove it",
    '["' + "x" * 1_100 + '"]': "row 1: is longer than 0 MiB",
    '[{"a": ' + '"x", ' * 1_000: "row 1: is not JSON",
}


BROKEN = SMALL | {"[" * 10**6: "row 1: .*nested too deeply", "[1" + "0" * 5000: "row 1: .*is not JSON"}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20])
def test_broken_json_is_refused_with_its_row(tmp_path, text, monkeypatch):
    if text in SMALL:
        monkeypatch.setattr(example_rows, "MOST_ROW_BYTES", 1_000)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=rf"a\.json: {BROKEN[text]}"):
        list(rows_of_file(tmp_path / "a.json"))


def test_a_long_row_costs_no_more_than_its_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(example_rows, "MOST_ROW_BYTES", 1 << 16)
    for name, begin in {"a.jsonl.gz": "", "a.json.gz": "[", "b.json.gz": "[" + " " * 10**7}.items():
        (tmp_path / name).write_bytes(gzip.compress(f'{begin}{{"messages": "{"x" * 10**7}'.encode(), 1))
        tracemalloc.start()
        with pytest.raises(UserError, match=rf"{name}: (line|row) 1: is longer than 0 MiB; split or remove it"):
            list(rows_of_file(tmp_path / name))
        assert tracemalloc.get_traced_memory()[1] < 1e6
        tracemalloc.stop()


def test_a_row_of_just_the_bound_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(example_rows, "MOST_ROW_BYTES", len(json.dumps(GOOD)) + 1)  # and a line's end
    longer = {"messages": say("今日は?", "いい天気です。xx")}
    for name, text in {"a.jsonl": "{}", "a.json": "[{},{}]", "b.json": "{}\n{}"}.items():
        assert len(all_of(write(tmp_path / name, text.replace("{}", json.dumps(GOOD))))) in (1, 2)
        with pytest.raises(UserError, match=rf"{name}: (line|row) 1: is longer than"):
            all_of(write(tmp_path / name, text.replace("{}", json.dumps(longer))))


def test_what_is_no_file_or_no_parquet_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="no such file or folder"):
        all_of(tmp_path / "pipe.jsonl")
    with open(tmp_path / "hole.jsonl", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match="were never written"):
        all_of(tmp_path / "hole.jsonl")
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"x" * 100 + b"PAR1")
    with pytest.raises(UserError, match=r"a\.parquet: is not Parquet or is cut off .*; copy or download it again"):
        all_of(tmp_path / "a.parquet")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode() * 99)[:50])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz: cannot be read .*Copy or download it again"):
        all_of(tmp_path / "cut.jsonl.gz")
