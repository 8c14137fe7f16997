"""Files of tokens that other programs wrote: where their tokens stand and their documents end, and how they are read.

`.ds` with `.ds.index` (and `.ds.loss`) is datatrove's. `.bin` with `.idx` is Megatron's, of which RWKV, GPT-NeoX and
datatrove write the same. `.bin` with a header is that of llm.c. `.npy` is an array of numpy. Of the last two a document
ends with each end token. Nothing here reads more than headers and the asked part of an index, and every number is
compared with the sizes of the files before it is used. The tokens are read where they are, through memory maps.
"""

import functools
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.storage.foreign import check_file

MEGATRON, MEGATRON_HEADER = b"MMIDIDX\x00\x00", 34  # bytes: magic, version, type, sequences, documents
# The types of Megatron's DType that hold token ids.
MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
LLM_C_BYTES = 1024  # of the header, 256 numbers: magic, version, tokens
LLM_C_TYPES = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
INDEX_DOCUMENTS = 1 << 20  # documents of an index that are read at once
SCAN_TOKENS = 1 << 24  # tokens that are searched for ends at once
MOST_MAPS = 512  # each map takes one of the 1,024 files that a process may have open


@dataclass(frozen=True)
class TokenFile:
    """One file of tokens.

    Args:
        path: the file.
        dtype: of a token, as numpy writes it; little-endian.
        first_byte: where the tokens begin.
        tokens: how many there are.
        file_bytes: the size of the file.
        documents: how many the index has; -1 if there is none, and a document ends with each end token.
        index: the file that says where documents end.
        loss: the file with a byte for each token: whether it is learned.
        tokenizer: its name, as the file says it.
    """

    path: Path
    dtype: str
    first_byte: int
    tokens: int
    file_bytes: int
    documents: int = -1
    index: Path | None = None
    loss: Path | None = None
    tokenizer: str = ""

    @property
    def bytes(self) -> int:
        """The bytes of its tokens."""
        return self.tokens * np.dtype(self.dtype).itemsize

    def read(self, first: int, count: int) -> np.ndarray:
        """`count` tokens from `first` on, in their type; `UserError` if the file has become shorter."""
        place = self.first_byte + first * np.dtype(self.dtype).itemsize
        found = np.fromfile(self.path, self.dtype, count, offset=place)
        if len(found) != count:
            raise UserError(f"{self.path}: has become shorter while it was read; fetch it again")
        return found


def to_json(file: TokenFile) -> dict[str, Any]:
    """What is kept of a file for reading its tokens."""
    kept = {name: getattr(file, name) for name in ("dtype", "first_byte", "tokens", "file_bytes")}
    return kept | {"path": str(file.path.absolute()), "loss": str(file.loss.absolute()) if file.loss else ""}


def of_json(kept: dict[str, Any]) -> TokenFile:
    """The file that `to_json` described."""
    return TokenFile(**kept | {"path": Path(kept["path"]), "loss": Path(kept["loss"]) if kept["loss"] else None})


def find(location: str) -> list[TokenFile]:
    """The files of tokens at a path, by name; a folder is searched with all its folders.

    Raises:
        UserError: there is none, it is on `gs://`, or one is not as its program writes it.
    """
    if storage.is_remote(location):
        raise UserError(f"{location}: tokens of others are read from a disk; copy them to one that every host has")
    path, found = storage.path(location), []
    readers = {".ds": _datatrove_file, ".bin": _llm_c_file, ".npy": _numpy_file}
    files = [file for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.suffix in readers]
    if not files:
        raise UserError(f"{path}: no tokens there; .ds (datatrove), .bin (Megatron, llm.c) and .npy (numpy) are read")
    for file in files:
        is_megatron = file.suffix == ".bin" and file.with_suffix(".idx").exists()
        try:
            found.append((_megatron_file if is_megatron else readers[file.suffix])(file, check_file(file)))
        except FileNotFoundError as error:
            raise UserError(f"{error.filename or file}: no such file; fetch it again") from error
    return found


def _datatrove_file(path: Path, size: int) -> TokenFile:
    """Tokens of 2 or 4 bytes. The index has the end of each document in tokens, so the last one tells the type."""
    index, loss, metadata = (path.with_name(f"{path.name}.{suffix}") for suffix in ("index", "loss", "metadata"))
    index_size = check_file(index)
    documents, rest = divmod(index_size, 8)
    tokens = int(np.fromfile(index, "<u8", 1, offset=index_size - 8)[0]) if documents and not rest else 0
    width = size // tokens if tokens else 2
    if rest or width not in (2, 4) or tokens * width != size:
        raise UserError(
            f"{path}: has {size:,} bytes, and {index.name} ends at token {tokens:,} of 2 or 4 bytes each; one of them "
            "is cut short, fetch both again"
        )
    if loss.exists() and check_file(loss) != tokens:
        raise UserError(f"{loss}: has another length than the {tokens:,} tokens of {path.name}; fetch both again")
    named = metadata.open("rb").read(1000).split(b"\n")[0].decode(errors="replace") if metadata.is_file() else ""
    kept = loss if loss.exists() else None
    return TokenFile(path, f"<u{width}", 0, tokens, size, documents, index, kept, named.rpartition("|")[0])


def _megatron_file(path: Path, size: int) -> TokenFile:
    """`.idx` has the length (int32) and place (int64, bytes) of each sequence, and where documents begin (int64)."""
    index = path.with_suffix(".idx")
    index_size = check_file(index)
    with index.open("rb") as file:
        head = file.read(MEGATRON_HEADER)
    if len(head) < MEGATRON_HEADER or head[:9] != MEGATRON or struct.unpack_from("<Q", head, 9) != (1,):
        raise UserError(f"{index}: no index of Megatron (MMIDIDX, version 1); fetch it again")
    code, sequences, documents = struct.unpack_from("<BQQ", head, 17)
    if code not in MEGATRON_TYPES:
        raise UserError(f"{index}: its type {code} is none of token ids; write the data again with integers")
    if MEGATRON_HEADER + 12 * sequences + 8 * documents != index_size or not documents:
        raise UserError(
            f"{index}: {sequences:,} sequences and {documents:,} documents do not fill its {index_size:,} bytes; fetch "
            "it again (data of several modes are not read)"
        )
    tokens, rest = divmod(size, np.dtype(MEGATRON_TYPES[code]).itemsize)
    if rest:
        raise UserError(f"{path}: {size:,} bytes are no whole tokens of {MEGATRON_TYPES[code]}; fetch it again")
    last = int(np.fromfile(index, "<i8", 1, offset=index_size - 8)[0])
    # Megatron ends the list with the number of sequences, RWKV does not.
    return TokenFile(path, MEGATRON_TYPES[code], 0, tokens, size, documents - (last == sequences), index)


def _llm_c_file(path: Path, size: int) -> TokenFile:
    """A header of 256 numbers (int32), then the tokens (Karpathy's llm.c, modded-nanogpt)."""
    magic, version, tokens = np.fromfile(path, "<i4", 3).tolist() if size >= LLM_C_BYTES else (0, 0, 0)
    dtype = LLM_C_TYPES.get((magic, version))
    if dtype is None:
        raise UserError(
            f"{path}: has neither {path.stem}.idx beside it (Megatron) nor the header of llm.c; if it is tokens alone, "
            "save them with numpy as .npy"
        )
    if LLM_C_BYTES + tokens * np.dtype(dtype).itemsize != size:
        raise UserError(f"{path}: its header says {tokens:,} tokens, and it has {size:,} bytes; fetch it again")
    return TokenFile(path, dtype, LLM_C_BYTES, tokens, size)


def _numpy_file(path: Path, size: int) -> TokenFile:
    """One dimension of integers. The header is read within numpy's bound of 10,000 characters."""
    try:
        array = np.lib.format.open_memmap(path, "r")
    except Exception as error:  # what a broken header raises is numpy's, struct's or the parser's
        raise UserError(f"{path}: no whole array of numpy ({type(error).__name__}); fetch it again") from error
    if array.ndim != 1 or array.dtype.str[:2] not in ("|u", "|i", "<u", "<i"):
        told = "save one dimension of little-endian integers"
        raise UserError(f"{path}: has the shape {array.shape} and the type {array.dtype}; {told}")
    if array.offset + array.nbytes != size:
        raise UserError(f"{path}: its header says {len(array):,} tokens, and it has {size:,} bytes; fetch it again")
    return TokenFile(path, array.dtype.str, array.offset, len(array), size)


def document_ends(file: TokenFile, first: int, last: int, end_token: int) -> Iterator[np.ndarray]:
    """Where the documents from `first` to `last - 1` end, in tokens of the file; int64, some at a time.

    Of a file without an index it is all documents, whatever `first` and `last` are. Each part of them ascends, and none
    is beyond the tokens of the file.

    Raises:
        UserError: the index says something else.
    """
    if file.documents < 0:
        before = 0
        for begin in range(0, file.tokens, SCAN_TOKENS):
            found = np.flatnonzero(file.read(begin, min(SCAN_TOKENS, file.tokens - begin)) == end_token) + begin + 1
            before = int(found[-1]) if len(found) else before
            yield found
        if before < file.tokens:
            yield np.array([file.tokens])
        return
    read = _datatrove_ends if file.path.suffix == ".ds" else _megatron_ends
    before = int(read(file, first - 1, first)[0]) if first else 0
    for begin in range(first, last, INDEX_DOCUMENTS):
        found = read(file, begin, min(begin + INDEX_DOCUMENTS, last))
        if before > found[0] or (np.diff(found) < 0).any() or found[-1] > file.tokens:
            raise UserError(f"{file.index}: its documents overlap or lie beyond the tokens; fetch it again")
        before = int(found[-1])
        yield found
    if last == file.documents and before != file.tokens:
        raise UserError(f"{file.index}: ends at token {before:,} of {file.tokens:,}; fetch it and the tokens again")


def _datatrove_ends(file: TokenFile, first: int, last: int) -> np.ndarray:
    found = np.fromfile(file.index, "<u8", last - first, offset=8 * first)
    return np.minimum(found, np.uint64(2**62)).astype(np.int64)


def _megatron_ends(file: TokenFile, first: int, last: int) -> np.ndarray:
    """The ends of documents, each of some sequences in a row. A document ends where the next one begins."""
    with file.index.open("rb") as opened:
        sequences, listed = struct.unpack_from("<QQ", opened.read(MEGATRON_HEADER), 18)
    lists = MEGATRON_HEADER + 12 * sequences
    bounds = np.fromfile(file.index, "<i8", min(last + 1, listed) - first, offset=lists + 8 * first)
    bounds = np.append(bounds, np.full(last + 1 - first - len(bounds), sequences))
    if bounds[0] < 0 or (np.diff(bounds) < 0).any() or bounds[-1] > sequences or (first == 0 and bounds[0] > 0):
        raise UserError(f"{file.index}: its documents are no ranges of its {sequences:,} sequences; fetch it again")
    of_places, itemsize = MEGATRON_HEADER + 4 * sequences, np.dtype(file.dtype).itemsize
    for begin in range(int(bounds[0]), int(bounds[-1]), INDEX_DOCUMENTS):  # each sequence ends where the next begins
        end = min(begin + INDEX_DOCUMENTS, int(bounds[-1]))
        lengths = np.fromfile(file.index, "<i4", end - begin, offset=MEGATRON_HEADER + 4 * begin).astype(np.int64)
        places = np.fromfile(file.index, "<i8", min(end + 1, sequences) - begin, offset=of_places + 8 * begin)
        begins, rest = np.divmod(places, itemsize)
        begins = np.append(begins, np.full(int(end == sequences), file.tokens))
        wrong = (lengths < 0).any() or rest.any() or (begins[:-1] + lengths != begins[1:]).any()
        if wrong or (begin == 0 and begins[0] != 0):
            raise UserError(
                f"{file.index}: its sequences do not stand side by side in {file.path.name}; write both again"
            )
    found, within = np.full(last - first, file.tokens), bounds[1:] < sequences
    if within.any():
        found[within] = np.memmap(file.index, "<i8", "r", of_places, (sequences,))[bounds[1:][within]] // itemsize
    return found


class MappedFiles:
    """Reads files of tokens, side by side as one flat array, through memory maps. No range crosses two files."""

    def __init__(self, files: Sequence[TokenFile], most: int):
        """Check that each file is there and as long as it was; ids above `most` are an error when they are read.

        Raises:
            UserError: a file is missing, or has another size.
        """
        self._files, self._most = files, most
        self._starts = np.cumsum([0, *(file.tokens for file in files)])
        for file in files:
            size = os.stat(file.path).st_size if os.path.isfile(file.path) else -1
            if size != file.file_bytes:
                there = f"has {size:,} bytes now, and not {file.file_bytes:,}" if size >= 0 else "is not there now"
                raise UserError(f"{file.path}: {there} as when `tpullm tokenize` read it; put it back on every host")

    def read(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """`[begin, end)` of each pair, concatenated; int32."""
        pieces = self._pieces(begins, ends, [(file.path, file.dtype, file.first_byte) for file in self._files])
        tokens = np.concatenate([*pieces, np.zeros(0, np.uint8)])
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() <= self._most:
            raise UserError(f"{self._files[0].path.parent}: a file there has changed; run `tpullm tokenize` again")
        return tokens.astype(np.int32)

    def weights(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The weight of each token: 0 where its file says that it is not learned, else 1; float32."""
        if not any(file.loss for file in self._files):
            return np.ones(int((ends - begins).sum()), np.float32)
        pieces = self._pieces(begins, ends, [(file.loss, "u1", 0) for file in self._files])
        return (np.concatenate([*pieces, np.zeros(0, np.uint8)]) != 0).astype(np.float32)

    def _pieces(self, begins: np.ndarray, ends: np.ndarray, places: list[tuple]) -> list[np.ndarray]:
        """The values of all ranges in order, some ranges to an array; ones where there is no file."""
        numbers = np.minimum(np.searchsorted(self._starts, begins, side="right") - 1, len(self._files) - 1)
        starts, found = self._starts[numbers], []
        ranges = np.stack([numbers, begins - starts, ends - starts], axis=1).tolist()
        # A view keeps the map of its file open, whatever the cache lets go.
        for first in range(0, len(ranges), MOST_MAPS // 2):
            views = []
            for number, low, high in ranges[first : first + MOST_MAPS // 2]:
                path, dtype, first_byte = places[number]
                if path is None or low == high:
                    views.append(np.ones(high - low, np.uint8))
                    continue
                mapped, values = _mapped_file(path, dtype, first_byte, self._files[number].tokens)
                begin = (first_byte + low * values.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
                mapped.madvise(mmap.MADV_WILLNEED, begin, first_byte + high * values.itemsize - begin)
                views.append(values[low:high])
            found.append(np.concatenate(views))
        return found


@functools.lru_cache(MOST_MAPS)
def _mapped_file(path: Path, dtype: str, first_byte: int, count: int) -> tuple[mmap.mmap, np.ndarray]:
    """The map of a file, and the values in it."""
    with open(path, "rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return mapped, np.frombuffer(mapped, dtype, count, first_byte)
