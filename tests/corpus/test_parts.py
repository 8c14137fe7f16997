"""How the files of a source are divided: each byte once, and little changes where a file changes."""

import dataclasses
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.files import readers, source_files
from tpullm.corpus.files.source_files import File
from tpullm.recipe.schema import Source

FILES = st.lists(
    st.builds(
        File,
        st.integers(0, 10**9).map(lambda number: Path(f"{number}.txt")),
        st.sampled_from(["text", "html"]),
        st.integers(0, 100_000_000) | st.integers(0, 9_000),
        st.booleans(),
    ),
    max_size=40,
    unique_by=lambda file: file.path,
)


@given(FILES)
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


def many(count):
    return [File(Path(f"{number:05}.txt"), "text", 3_000 + number % 7_000) for number in range(count)]


def test_bundles_are_about_as_large_as_they_should_be():
    sizes = [size for _, size in source_files.parts(many(10_000))]
    assert 0.7 < sum(sizes) / len(sizes) / source_files.BUNDLE_BYTES < 1.3
    assert max(sizes) < 10 * source_files.BUNDLE_BYTES
    empty = [File(Path(f"{number}.txt"), "text", 0) for number in range(10_000)]
    assert 10 < len(list(source_files.parts(empty))) < 40


@pytest.mark.parametrize("place", range(0, 10_000, 997))
def test_one_file_added_to_ten_thousand_changes_one_bundle(place):
    files = many(10_000)
    before = set(source_files.parts(files))
    added = File(Path(f"{place:05}-new.txt"), "text", 3_000)
    after = set(source_files.parts([*files[:place], added, *files[place:]]))
    assert len(after - before) == 1  # by chance, one in 667 such files cuts its bundle in two


def test_what_is_appended_to_a_large_file_changes_its_last_range():
    file = File(Path("a.jsonl"), "jsonl", 10 * source_files.RANGE_BYTES + 1)
    before = source_files.ranges(file)
    after = source_files.ranges(dataclasses.replace(file, bytes=11 * source_files.RANGE_BYTES))
    assert len(before) == 10 and len(after) == 11 and before[:-1] == after[:9]
    for whole in (Path("a.jsonl.gz"), Path("a.jsonl.zst")):
        assert len(source_files.ranges(dataclasses.replace(file, path=whole))) == 1
    assert len(source_files.ranges(dataclasses.replace(file, is_part=True))) == 1


def read_in_ranges(path, kind, cuts):
    edges = [0, *sorted(set(cuts)), None]
    source = Source("s", kind, str(path))
    return [
        raw
        for start, stop in zip(edges, edges[1:], strict=False)
        for raw in readers.read(File(path, kind, 1, start=start, stop=stop), source)
    ]


LINE = st.text(st.sampled_from("aé本🙂\r "), max_size=12)


@given(lines=st.lists(LINE), cuts=st.lists(st.integers(1, 90)), end=st.booleans())
def test_ranges_of_json_lines_give_each_record_once(tmp_path_factory, lines, cuts, end):
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    data = "\n".join(json.dumps({"text": line}, ensure_ascii=False) for line in lines) + "\n" * end
    path.write_bytes(data.encode())
    whole = [raw.text for raw in readers.read(File(path, "jsonl", 1), Source("s", "jsonl", str(path)))]
    assert [raw.text for raw in read_in_ranges(path, "jsonl", cuts)] == whole == [x.replace("\r", "\n") for x in lines]


@given(
    text=st.text(st.sampled_from("aé本🙂\n"), max_size=90), cuts=st.lists(st.integers(1, 200)), piece=st.integers(4, 40)
)
def test_ranges_and_pieces_of_text_give_each_character_once(tmp_path_factory, text, cuts, piece):
    path = tmp_path_factory.mktemp("ranges") / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE_BYTES", piece)
        for found in (read_in_ranges(path, "text", cuts), read_in_ranges(path, "text", [])):
            assert "".join(raw.text for raw in found) == text
            assert all(len(raw.text.encode()) <= 3 * piece + 3 for raw in found)


@pytest.mark.parametrize("piece", [1 << 24, 20])
def test_ranges_of_utf_16_are_read_once(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(readers, "PIECE_BYTES", piece)
    path = tmp_path / "a.txt"
    path.write_text("吾輩は猫である。\n" * 9, encoding="utf-16")
    found = read_in_ranges(path, "text", [7, 50])
    assert "".join(raw.text for raw in found) == "吾輩は猫である。\n" * 9
    assert {raw.encoding for raw in found} == {"UTF-16"} and (len(found) == 1) == (piece > 200)


@given(cuts=st.lists(st.integers(1, 3000)))
def test_ranges_of_parquet_give_each_row_once(tmp_path_factory, cuts):
    path = tmp_path_factory.mktemp("ranges") / "a.parquet"
    texts = [f"row {number}" for number in range(50)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=7)
    found = read_in_ranges(path, "parquet", cuts)
    assert [raw.text for raw in found] == texts
    assert [raw.record for raw in found] == [f"row {number}" for number in range(1, 51)]
