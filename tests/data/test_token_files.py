"""Tokens that other programs wrote come back unchanged. A broken file is one line."""

import functools
import os
import struct

import numpy as np
import pytest
from datatrove.pipeline.tokens.tokenizer import TokenizedFile
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.data import token_files
from tpullm.data.token_files import MappedFiles
from tpullm.system.errors import UserError

END = 7
DOCUMENTS = [[1, 2, END], [END], [3, 60_000, 4, END], [], [5, END]]
DOCUMENT = st.lists(st.integers(0, 60_000), max_size=9)


def datatrove(folder, documents, width=2, losses=None, name="00000_x.ds"):
    """A `.ds` of datatrove's own writer."""
    options = {"save_loss_metadata": losses is not None, "token_size": width, "save_final_metadata": True}
    file = TokenizedFile(str(folder), name, **options, tokenizer_name_or_path="some/tokenizer")
    for number, tokens in enumerate(documents):
        file.write(tokens, None if losses is None else np.array(losses[number], bool))
    file.close()
    return folder / name


def megatron(folder, documents, dtype="<u2", cuts=(), name="data", listed=None):
    """`.bin` and `.idx` by Megatron's format; documents at `cuts` are two sequences each."""
    sequences, firsts = [], [0]
    for number, tokens in enumerate(documents):
        sequences += [tokens[:1], tokens[1:]] if number in cuts else [tokens]
        firsts.append(len(sequences))
    code = {"u1": 1, "<i4": 4, "<i8": 5, "<u2": 8}[dtype]
    lengths = np.array([len(part) for part in sequences], "<i4")
    places = (np.cumsum(lengths, dtype="<i8") - lengths) * np.dtype(dtype).itemsize
    firsts = firsts if listed is None else firsts[:listed]
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(firsts))
    index = head + lengths.tobytes() + places.astype("<i8").tobytes() + np.array(firsts, "<i8").tobytes()
    (folder / f"{name}.idx").write_bytes(index)
    (folder / f"{name}.bin").write_bytes(np.array([token for part in sequences for token in part], dtype).tobytes())
    return folder / f"{name}.bin"


def llm_c(folder, documents, dtype="<u2", name="llm.bin"):
    tokens = np.array([token for document in documents for token in document], dtype)
    head = np.zeros(256, "<i4")
    head[:3] = (20240520, 1, len(tokens)) if dtype == "<u2" else (20240801, 7, len(tokens))
    (folder / name).write_bytes(head.tobytes() + tokens.tobytes())
    return folder / name


def array(folder, documents, dtype="<u2", name="part.npy"):
    np.save(folder / name, np.array([token for document in documents for token in document], dtype))
    return folder / name


def read_all(file, end_token=END, step=None):
    """The documents of a file, as `ends` says where they end; `step` documents at a time."""
    step = step or max(file.documents, 1)
    bounds = [0]
    for first in range(0, max(file.documents, 1), step):
        last = min(first + step, file.documents) if file.documents >= 0 else -1
        for found in token_files.document_ends(file, first, last, end_token):
            bounds += found.tolist()
    tokens = file.read(0, file.tokens).tolist()
    return [tokens[low:high] for low, high in zip(bounds[:-1], bounds[1:], strict=True)]


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("step", [None, 1, 2])
def test_documents_of_datatrove_come_back(tmp_path, width, step):
    (file,) = token_files.find(str(datatrove(tmp_path, DOCUMENTS, width)))
    assert read_all(file, step=step) == DOCUMENTS
    assert (file.dtype, file.tokenizer, file.loss) == (f"<u{width}", "some/tokenizer", None)
    assert file.bytes == file.file_bytes == width * 10


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<i8"])
@pytest.mark.parametrize("cuts", [(), (0, 2)])
@pytest.mark.parametrize("step", [None, 1, 2])
@pytest.mark.parametrize("listed", [None, -1])
def test_documents_of_megatron_come_back(tmp_path, dtype, cuts, step, listed, monkeypatch):
    """Of one sequence or of several, with the number of sequences at the end of the list or (RWKV) without."""
    monkeypatch.setattr(token_files, "INDEX_DOCUMENTS", 2)
    (file,) = token_files.find(str(megatron(tmp_path, DOCUMENTS, dtype, cuts, listed=listed)))
    assert read_all(file, step=step) == DOCUMENTS and file.dtype == dtype


def test_a_document_of_megatron_may_have_no_sequence(tmp_path):
    path = megatron(tmp_path, DOCUMENTS)
    put(beside(path), LISTS + 8, "<q", 0)
    (file,) = token_files.find(str(path))
    assert read_all(file) == [[], DOCUMENTS[0] + DOCUMENTS[1], *DOCUMENTS[2:]]


@pytest.mark.parametrize("write", [llm_c, array])
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("scan", [1, 3, 1 << 24])
def test_without_an_index_a_document_ends_with_each_end_token(tmp_path, write, dtype, scan, monkeypatch):
    monkeypatch.setattr(token_files, "SCAN_TOKENS", scan)
    documents = [[1, 2, END], [END], [3, 60_000, END], [4, 5]]
    (file,) = token_files.find(str(write(tmp_path, documents, dtype)))
    assert read_all(file) == documents and file.documents == -1


@pytest.mark.parametrize("write", [datatrove, megatron, llm_c, array])
def test_an_empty_file_has_no_documents(tmp_path, write):
    (file,) = token_files.find(str(write(tmp_path, [])))
    assert file.tokens == 0
    assert [found for found in token_files.document_ends(file, 0, file.documents, END) if len(found)] == []


def test_a_folder_gives_its_files_by_name(tmp_path):
    (tmp_path / "b").mkdir()
    wanted = [array(tmp_path, DOCUMENTS), datatrove(tmp_path / "b", DOCUMENTS), megatron(tmp_path, DOCUMENTS)]
    (tmp_path / "README.md").write_text("about them")
    assert [file.path for file in token_files.find(str(tmp_path))] == sorted(wanted)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(DOCUMENT, max_size=5), min_size=1, max_size=4), st.data())
def test_any_range_of_files_side_by_side_is_read(tmp_path_factory, files, data):
    folder = tmp_path_factory.mktemp("files")
    losses = [[[token % 2 == 0 for token in document] for document in part] for part in files]
    writers = [
        lambda part, number: datatrove(folder, part, 2, losses[number], f"{number}.ds"),
        lambda part, number: megatron(folder, part, "<i4", name=str(number)),
        lambda part, number: array(folder, part, "<u4", name=f"{number}.npy"),
    ]
    paths = [data.draw(st.sampled_from(writers))(part, number) for number, part in enumerate(files)]
    found = [token_files.find(str(path))[0] for path in paths]
    kept = [token_files.of_json(token_files.to_json(file)) for file in found]
    flat = [[token for document in part for token in document] for part in files]
    starts = np.cumsum([0, *map(len, flat)])
    ranges = []
    for number in data.draw(st.lists(st.integers(0, len(files) - 1), max_size=6)):
        low = data.draw(st.integers(0, len(flat[number])))
        ranges.append((number, low, data.draw(st.integers(low, len(flat[number])))))
    mapped = MappedFiles(kept, 60_000)
    begins, ends = (np.array([starts[each[0]] + each[side] for each in ranges], np.int64) for side in (1, 2))
    tokens, weights = mapped.read(begins, ends), mapped.weights(begins, ends)
    assert tokens.dtype == np.int32 and weights.dtype == np.float32
    wanted = [(token, number) for number, low, high in ranges for token in flat[number][low:high]]
    assert tokens.tolist() == [token for token, _ in wanted]
    assert weights.tolist() == [float(paths[number].suffix != ".ds" or token % 2 == 0) for token, number in wanted]


def cut(path, count):
    path.write_bytes(path.read_bytes()[:count])


def beside(path):
    return path.with_name(f"{path.name}.index") if path.suffix == ".ds" else path.with_suffix(".idx")


def put(path, at, kind, value):
    content = bytearray(path.read_bytes())
    struct.pack_into(kind, content, at, value)
    path.write_bytes(bytes(content))


PLACES = 34 + 4 * len(DOCUMENTS)  # of sequences in Megatron's index
LISTS = PLACES + 8 * len(DOCUMENTS)


@pytest.mark.parametrize(
    ("write", "damage", "line"),
    [
        (datatrove, lambda path: cut(path, 5), "one of them is cut short"),
        (datatrove, lambda path: cut(beside(path), 32), "one of them is cut short"),
        (datatrove, lambda path: beside(path).unlink(), ".ds.index: no such file"),
        (datatrove, lambda path: put(beside(path), 8, "<Q", 9), "overlap or lie beyond"),
        (datatrove, lambda path: put(beside(path), 32, "<Q", 2**63), "one of them is cut short"),
        (datatrove, lambda path: path.with_suffix(".ds.loss").write_bytes(b"1"), "has another length than the 10"),
        (megatron, lambda path: cut(beside(path), 20), "no index of Megatron"),
        (megatron, lambda path: put(beside(path), 9, "<Q", 2), "no index of Megatron (MMIDIDX, version 1)"),
        (megatron, lambda path: put(beside(path), 17, "<B", 7), "its type 7 is none of token ids"),
        (megatron, lambda path: put(beside(path), 18, "<Q", 2**62), "do not fill its"),
        (megatron, lambda path: put(beside(path), 26, "<Q", 0), "do not fill its"),
        (megatron, lambda path: cut(path, 5), "5 bytes are no whole tokens"),
        (megatron, lambda path: cut(path, 6), "do not stand side by side"),
        (megatron, lambda path: put(beside(path), 34, "<i", -3), "do not stand side by side"),
        (megatron, lambda path: put(beside(path), PLACES, "<q", 2), "do not stand side by side"),
        (megatron, lambda path: put(beside(path), PLACES + 8, "<q", 7), "do not stand side by side"),
        (megatron, lambda path: put(beside(path), LISTS, "<q", 1), "no ranges of its 5 sequences"),
        (megatron, lambda path: put(beside(path), LISTS + 8, "<q", 9), "no ranges of its 5 sequences"),
        (megatron, lambda path: beside(path).unlink(), "neither data.idx beside it (Megatron) nor the header"),
        (llm_c, lambda path: put(path, 0, "<i", 1), "nor the header of llm.c"),
        (llm_c, lambda path: cut(path, 1030), "its header says 10 tokens, and it has 1,030 bytes"),
        (llm_c, lambda path: cut(path, 100), "nor the header of llm.c"),
        (array, lambda path: cut(path, 140), "no whole array of numpy"),
        (array, lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\xff\x7f" + b"(" * 32767), "no whole array of numpy"),
        (array, lambda path: np.save(path, np.zeros((2, 5), np.uint16)), "save one dimension of"),
        (array, lambda path: np.save(path, np.zeros(5, np.float32)), "save one dimension of"),
        (array, lambda path: np.save(path, np.zeros(5, ">u2")), "little-endian integers"),
        (array, lambda path: path.write_bytes(path.read_bytes() + b"x"), "says 10 tokens, and it has 149 bytes"),
        (array, lambda path: np.save(path, np.array([{}]), allow_pickle=True), "no whole array of numpy"),
        (array, lambda path: (path.unlink(), path.mkdir()), "no tokens there"),
        (array, lambda path: path.unlink(), "no such file"),
    ],
)
def test_what_is_broken_is_one_line(tmp_path, write, damage, line):
    path = write(tmp_path, DOCUMENTS)
    damage(path)
    with pytest.raises(UserError) as found:
        for file in token_files.find(str(path)):
            list(token_files.document_ends(file, 0, file.documents, END))
    assert line in str(found.value) and str(tmp_path) in str(found.value) and "\n" not in str(found.value)


@settings(deadline=None, max_examples=120)
@given(st.sampled_from([datatrove, megatron, llm_c, array]), st.data())
def test_no_byte_that_is_changed_is_a_traceback(tmp_path_factory, write, data):
    """Either one line, or documents that lie within the file."""
    folder = tmp_path_factory.mktemp("fuzzed")
    path = write(folder, DOCUMENTS)
    files = sorted(folder.iterdir())
    for file in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=3)):
        if content := bytearray(file.read_bytes()):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at : at + 1] = data.draw(st.one_of(st.binary(max_size=9), st.just(bytes(8)), st.just(b"\xff" * 8)))
            file.write_bytes(content)
    try:
        (file,) = token_files.find(str(path))
        assert sum(map(len, read_all(file))) == file.tokens
    except UserError as error:
        assert "\n" not in str(error)

    with pytest.raises(UserError, match=r"read from a disk; copy them"):
        token_files.find("gs://bucket/tokens")


def test_a_file_that_has_changed_since_is_refused(tmp_path):
    path = array(tmp_path, DOCUMENTS)
    (file,) = token_files.find(str(path))
    array(tmp_path, [[1, 2]])
    with pytest.raises(UserError, match="part.npy: has 132 bytes now, and not 148 as when `tpullm tokenize` read it"):
        MappedFiles([file], 60_000)
    with pytest.raises(UserError, match=r"part.npy: has become shorter"):
        list(token_files.document_ends(file, 0, -1, END))
    path.unlink()
    with pytest.raises(UserError, match="part.npy: is not there now"):
        MappedFiles([file], 60_000)
    (file,) = token_files.find(str(array(tmp_path, DOCUMENTS)))  # then an id is beyond the vocabulary
    mapped = MappedFiles([file], 59_999)
    assert mapped.read(np.array([0]), np.array([4])).tolist() == [1, 2, END, END]
    with pytest.raises(UserError, match="a file there has changed"):
        mapped.read(np.array([0]), np.array([6]))


def test_one_read_of_many_files_has_few_of_them_open(tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "MOST_MAPS", 8)
    uncached = token_files._mapped_file.__wrapped__
    opened, counts = len(os.listdir("/proc/self/fd")), []

    def counted(*arguments):
        counts.append(len(os.listdir("/proc/self/fd")) - opened)
        return uncached(*arguments)

    monkeypatch.setattr(token_files, "_mapped_file", functools.lru_cache(8)(counted))
    paths = [array(tmp_path, [[number, END]], name=f"{number:02}.npy") for number in range(40)]
    mapped = MappedFiles([file for path in paths for file in token_files.find(str(path))], 60_000)
    order = np.random.default_rng(0).permutation(40)
    assert mapped.read(2 * order, 2 * order + 1).tolist() == order.tolist()
    assert len(counts) == 40 and max(counts) <= 8 + 2, "the maps that are kept, and the listing itself"
