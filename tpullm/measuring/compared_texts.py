"""The texts on which models are compared: the user's own, or the held-out text of the run that they come from."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tpullm import storage
from tpullm.corpus import document_files
from tpullm.corpus.cutting import cut
from tpullm.corpus.files.opened import open_bytes, readable
from tpullm.corpus.files.source_files import extension, printable, walk
from tpullm.data.examples.example_rows import READERS, rows
from tpullm.errors import UserError

LONGEST = 16384  # characters of a document: a longer one is cut into several
MOST_BYTES = 16 << 20  # of all texts after --text: as requests, 4 million tokens take half a gigabyte
MOST_HELD_OUT_BYTES = 256 << 10  # of a source: a minute on two cores for a model of 12 M parameters


@dataclass(frozen=True)
class ComparedText:
    """Documents with a name of their own in the figures.

    Args:
        name: of a file, a folder or a source.
        version: the hash of the documents.
        documents: their texts.
    """

    name: str
    version: str
    documents: tuple[str, ...]


def read(words: Sequence[str], limit: int) -> list[ComparedText]:
    """The texts of files and folders. In JSON and Parquet each row's `text` is a document, else a file is one.

    Args:
        limit: the most documents of each; 0 is all.

    Raises:
        UserError: one is not there, is not UTF-8, holds no text or too much, or two have one name.
    """
    found, left = [], MOST_BYTES
    if not words:
        raise UserError("--text: names no text; name files and folders, with commas")
    for word in words:
        path = storage.path(word)
        documents = []
        for text in _texts(path, left):
            left -= len(text.encode())
            if left < 0:
                raise _too_much(path)
            documents += cut(text, LONGEST)
        found.append(_named(printable(path.name), documents, limit, f"--text: {path}"))
    names = [text.name for text in found]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"--text: two texts are called {twice}; rename one, or leave it out")
    return found


def held_out(run: Path, limit: int) -> list[ComparedText]:
    """The held-out documents of each source of a run, up to 256 KiB of each; none if it has no documents."""
    documents = run / "documents"
    if not (documents / "parts.json").exists():
        return []
    found = []
    for source in dict.fromkeys(part.source for part in document_files.parts(documents)):
        records = document_files.read(documents, source, document_files.HELD_OUT)
        pieces = list(_first_bytes(piece for record in records for piece in cut(record["text"], LONGEST)))
        found += [_named(source, pieces, limit, f"{run}: {source}")] if any(map(str.strip, pieces)) else []
    return found


def _named(name: str, documents: Iterable[str], limit: int, where: str) -> ComparedText:
    kept = tuple(islice((text for text in documents if text.strip()), limit or None))
    if not kept:
        raise UserError(f"{where}: holds no text; give another one")
    return ComparedText(name, hashlib.sha256(repr(kept).encode()).hexdigest()[:16], kept)


def _first_bytes(documents: Iterable[str]) -> Iterator[str]:
    left = MOST_HELD_OUT_BYTES
    for text in documents:
        yield text
        left -= len(text.encode())
        if left <= 0:
            return


def _texts(path: Path, most: int) -> Iterator[str]:
    if not path.is_file() and not path.is_dir():
        raise UserError(f"--text: {path}: no such file or folder; correct the name")
    files = [path] if path.is_file() else [file for file, status in walk(path) if status or file.is_file()]
    for file in files:
        if extension(file) in READERS:
            yield from (_text(row, where) for where, row in rows(file))
        else:
            yield _whole(file, most)


def _text(row: dict, where: str) -> str:
    text = row.get("text")
    if not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"--text: {where}: its 'text' is {text!r:.60} and no text; each row is a document")
    return text


def _whole(file: Path, most: int) -> str:
    with readable(file):
        local = storage.local_copy(file)
        storage.check_file(local)
        with open_bytes(local) as opened:
            found = opened.read(most + 1)
    if len(found) > most:
        raise _too_much(file)
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"--text: {file}: is not UTF-8; convert the file") from None


def _too_much(path: Path) -> UserError:
    return UserError(f"--text: {path}: has more text than the {MOST_BYTES >> 20} MiB that are compared; take a part")
