"""The texts on which models are compared, and how likely a model finds them, by where in a document.

Texts are the user's own, or the held-out text of the run that the models come from. Likelihoods are in nats, by
stretches of a document's bytes.

A text is read in windows of the model's context. Each begins half a context after the one before it, so every token is
predicted after half a context at least, or after all of the text before it. The token that ends a document is not
predicted: what divides the nats is the text alone.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from tpullm.corpus import document_files
from tpullm.corpus.characters import cut
from tpullm.corpus.files.opened import open_bytes, readable
from tpullm.corpus.files.source_files import extension, files_below, printable
from tpullm.data.examples.example_rows import READERS, rows_of_file
from tpullm.evaluation.likelihoods import Continuation
from tpullm.evaluation.measured_model import MeasuredModel
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import one_line

STRETCHES = (0, 256, 1024, 4096, 16384)  # the byte of a document at which each begins


def nats_by_stretch(model: MeasuredModel, documents: Sequence[str]) -> np.ndarray:
    """The negative log-probability of each stretch of each document, float64 `[documents, stretches]`.

    A token counts in the stretch that holds its first byte.
    """
    tokenizer, context = model.session.tokenizer, model.session.context_length
    bytes_V, begin = tokenizer.bytes_per_token(), tokenizer.begin or [tokenizer.eos_id]
    requests, owners = [], []
    for number, text in enumerate(documents):
        own = tokenizer.encode(text)
        if not own:  # a published tokenizer may do that
            dropped = f"{one_line(text, 40)!r}: the model's tokenizer drops all of it"
            raise UserError(f"--text: {dropped}; leave the text out")
        ids, held = (*begin, *own), bytes_V[own]
        stretch = np.searchsorted(STRETCHES, np.cumsum(held) - held, side="right") - 1
        ends = [len(begin), *range(context + 1, len(ids), max(1, context // 2)), len(ids)]
        for start, end in pairwise(ends):  # of a window: the places in it at which stretches begin
            part = stretch[start - len(begin) : end - len(begin)]
            changes = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist()]
            left = max(0, end - context - 1)
            requests += [Continuation(ids[left : start + change], ids[start + change : end]) for change in changes]
            owners += [(number, part[change], change == changes[-1]) for change in changes]
    found = np.zeros((len(documents), len(STRETCHES)))
    # Of one window, each request begins a stretch and goes on to the end of the window; they are computed together.
    log_p = [likelihood.log_probability for likelihood in model.likelihoods(requests)]
    for (number, stretch, is_last), own, after in zip(owners, log_p, [*log_p[1:], 0.0], strict=True):
        found[number, stretch] -= own if is_last else own - after
    return found


def bytes_by_stretch(documents: Sequence[str]) -> np.ndarray:
    """The bytes of each stretch of each document, int64 `[documents, stretches]`."""
    ends = np.array([*STRETCHES[1:], np.iinfo(np.int64).max])
    length = np.array([[len(text.encode())] for text in documents])
    return np.clip(np.minimum(length, ends) - STRETCHES, 0, None)


LONGEST = 16384  # characters of a document: a longer one is cut into several
MOST_BYTES = 16 << 20  # of all texts after --text: as requests, 4 million tokens take half a gigabyte


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


def read_texts(words: Sequence[str], limit: int) -> list[ComparedText]:
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
        for text in _documents_of(path, left):
            left -= len(text.encode())
            if left < 0:
                raise _too_much_text(path)
            documents += cut(text, LONGEST)
        found.append(_compared_text(printable(path.name), documents, limit, f"--text: {path}"))
    names = [text.name for text in found]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"--text: two texts are called {twice}; rename one, or leave it out")
    return found


def held_out_texts(run: Path, limit: int) -> list[ComparedText]:
    """The held-out documents of each source of a run, up to 256 KiB of each; none if it has no documents."""
    documents = run / "documents"
    if not (documents / "parts.json").exists():
        return []
    found = []
    for source in dict.fromkeys(part.source for part in document_files.parts(documents)):
        records = document_files.read(documents, source, document_files.HELD_OUT)
        pieces, left = [], 256 << 10  # a minute on two cores for a model of 12 M parameters
        for piece in (piece for record in records for piece in cut(record["text"], LONGEST)):
            pieces.append(piece)
            left -= len(piece.encode())
            if left <= 0:
                break
        found += [_compared_text(source, pieces, limit, f"{run}: {source}")] if any(map(str.strip, pieces)) else []
    return found


def _compared_text(name: str, documents: Iterable[str], limit: int, where: str) -> ComparedText:
    kept = tuple(islice((text for text in documents if text.strip()), limit or None))
    if not kept:
        raise UserError(f"{where}: holds no text; give another one")
    return ComparedText(name, hashlib.sha256(repr(kept).encode()).hexdigest()[:16], kept)


def _documents_of(path: Path, most: int) -> Iterator[str]:
    if not path.is_file() and not path.is_dir():
        raise UserError(f"--text: {path}: no such file or folder; correct the name")
    files = [path] if path.is_file() else [file for file, status in files_below(path) if status or file.is_file()]
    for file in files:
        if extension(file) in READERS:
            for where, row in rows_of_file(file):
                text = row.get("text")
                if not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text):
                    raise UserError(f"--text: {where}: its 'text' is {text!r:.60} and no text; each row is a document")
                yield text
            continue
        with readable(file):
            local = storage.local_copy(file)
            storage.check_file(local)
            with open_bytes(local) as opened:
                found = opened.read(most + 1)
        if len(found) > most:
            raise _too_much_text(file)
        try:
            yield found.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"--text: {file}: is not UTF-8; convert the file") from None


def _too_much_text(path: Path) -> UserError:
    return UserError(f"--text: {path}: has more text than the {MOST_BYTES >> 20} MiB that are compared; take a part")
