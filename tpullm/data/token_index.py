"""An index of other people's tokens: which of their documents are trained on, which are held out. Nothing is copied.

Every token is read once: ids outside of the vocabulary are found before training, and a document is known by the
SHA-256 of its tokens (uint32, little-endian), whatever file it is in. The hash decides whether it is held out, as that
of its text does. A part is a file or a range of its documents, so the work can be shared. It takes the memory of
`WINDOW` tokens and of 24 bytes for each document of a part.
"""

import difflib
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpullm.corpus import held_out as split
from tpullm.corpus.document_files import HELD_OUT, TRAIN
from tpullm.data import token_files
from tpullm.data.token_files import TokenFile
from tpullm.data.token_store import FILES, DocumentWriter, TokenStore
from tpullm.recipe.schema import Source
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import one_line, say
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer import load as load_tokenizer

WINDOW = 1 << 22  # tokens that are read at once
PART_BYTES, PART_DOCUMENTS = 1 << 30, 1 << 22  # of a file with an index: it is cut into parts of at most about so many
COMPARED = 20  # documents that are decoded and tokenized again
COMPARED_TOKENS = 200  # of each
ALIKE, USUAL = 0.5, 0.97  # share of their tokens that has to come back, and that usually does
SHOWN = 60  # characters of a document


@dataclass(frozen=True)
class IndexPart:
    """Documents of one file of tokens, and the file of what is found out about them.

    Args:
        source: the name of the source.
        held_out: whether the recipe holds them all out.
        file: the file; `number` is its place in the list of files of its source and kind.
        first, last: the documents from `first` to `last - 1`; of a file without an index, 0 and -1, all of them.
        tokens: the file of the result (.npz).
        tokenizer: the folder of the recipe's tokenizer.
    """

    source: str
    held_out: bool
    file: TokenFile
    number: int
    first: int
    last: int
    tokens: Path
    tokenizer: Path

    @property
    def bytes(self) -> int:
        """About how many bytes it reads."""
        return self.file.bytes * (self.last - self.first) // (self.file.documents or 1)


def plan(source: Source, parts: Path, tokenizer: Path, numbered_from: int = 0) -> list[IndexPart]:
    """The parts of a source of `kind: tokens`, in order; their results are files in `parts`.

    Raises:
        UserError: a file is not as its program writes it.
    """
    planned: list[IndexPart] = []
    apart = token_files.find(source.held_out) if source.held_out else []
    own = [file for file in token_files.find(source.path) if file.path not in {other.path for other in apart}]
    for held_out, files in ((False, own), (True, apart)):
        for number, file in enumerate(files):
            # Ranges of documents of about `PART_BYTES`. A file without an index is one part: (0, -1).
            count = max(1, -(-file.bytes // PART_BYTES), -(-file.documents // PART_DOCUMENTS))
            count = max(1, min(count, file.documents))
            for first, last in itertools.pairwise(file.documents * bound // count for bound in range(count + 1)):
                place = parts / f"{numbered_from + len(planned):06}.npz"
                planned.append(IndexPart(source.name, held_out, file, number, first, last, place, tokenizer))
    return planned


def make_part(part: IndexPart) -> None:
    """Read the documents of a part, and write where they are, how long, and their ids.

    Raises:
        UserError: an id is outside of the vocabulary, or the index contradicts the file.
    """
    tokenizer = load_tokenizer(part.tokenizer)
    ends = token_files.document_ends(part.file, part.first, part.last, tokenizer.eos_id)
    bounds = np.concatenate([np.zeros(0, np.int64), *ends])
    before = int(next(token_files.document_ends(part.file, part.first - 1, part.first, 0))[0]) if part.first else 0
    begins = np.concatenate([[before], bounds])[:-1] if len(bounds) else bounds
    ids, ended, begun, size = _scan(part.file, before, bounds, tokenizer)
    with storage.atomic_file(part.tokens) as temporary, temporary.open("wb") as file:
        facts = {"ended": ended, "begun": begun, "bytes": size}
        np.savez(file, begins=begins, lengths=bounds - begins, ids=ids, **facts)


def _scan(file: TokenFile, first: int, bounds: np.ndarray, tokenizer: Tokenizer) -> tuple[np.ndarray, int, int, int]:
    """Ids of the documents that end at `bounds`, and how many end and begin with the tokens of the model; UTF-8 bytes.

    Args:
        first: where the first one begins.
    """
    utf8, begin, most = tokenizer.bytes_per_token(), tokenizer.begin[:1], tokenizer.vocabulary_size
    ids = bytearray()
    ended, begun, size, done = 0, 0, 0, 0
    hasher, at_begin = hashlib.sha256(), True
    last = int(bounds[-1]) if len(bounds) else first
    for low in range(first, last, WINDOW):
        tokens = file.read(low, min(WINDOW, last - low))
        if (wrong := (tokens < 0) | (tokens >= most)).any():
            at = int(np.argmax(wrong))
            raise UserError(
                f"{file.path}: token {low + at:,} is {int(tokens[at])}, and the tokenizer of the recipe has {most:,}; "
                "set `base` to the model whose tokenizer wrote the file"
            )
        size += int(utf8[tokens].sum())
        inside = bounds[done : int(np.searchsorted(bounds, low + len(tokens), side="right"))] - low
        done += len(inside)
        whole = np.unique(inside[inside > 0])
        ended += int((tokens[whole - 1] == tokenizer.eos_id).sum())
        starts = np.concatenate([[0] * at_begin, whole]).astype(np.int64)
        starts = starts[starts < len(tokens)]
        begun += int((tokens[starts] == begin[0]).sum()) if begin else 0
        at_begin = bool(len(whole) and whole[-1] == len(tokens))
        view, at = memoryview(tokens.astype("<u4", copy=False)).cast("B"), 0
        for end in (inside * 4).tolist():
            hasher.update(view[at:end])
            ids += hasher.digest()[:8]
            hasher, at = hashlib.sha256(), end
        hasher.update(view[at:])  # of the document that goes on in the next window
    ids += hashlib.sha256().digest()[:8] * (len(bounds) - len(ids) // 8)  # if there is no token at all
    return np.frombuffer(ids, ">u8").astype(np.uint64), ended, begun, size


def assemble(folder: Path, parts: Sequence[IndexPart], fraction: float) -> dict[str, dict[str, int]]:
    """Write the stores `folder`/train and `folder`/held_out of a source; count documents, tokens and bytes of both.

    Args:
        fraction: of the documents to hold out, if the recipe names no files for that.

    Raises:
        UserError: no document is left to train on, or the tokens are not those of the tokenizer.
    """
    if any(part.held_out for part in parts):
        fraction = 0
    facts, tokenizer = {}, load_tokenizer(parts[0].tokenizer)
    for apart, group in itertools.groupby(parts, lambda part: part.held_out):
        own = list(group)
        files = list({part.number: part.file for part in own}.values())
        starts, counts, lowest = np.cumsum([0, *(file.tokens for file in files)]), Counter(), 2**64 - 1
        for _, lengths, ids, facts_of_part in _read_parts(own, starts):
            counts.update(facts_of_part, documents=len(ids), tokens=int(lengths.sum()), filled=int((lengths > 0).sum()))
            lowest = min(lowest, int(ids.min(initial=lowest)))
        listed = {"vocabulary_size": tokenizer.vocabulary_size, "files": list(map(token_files.to_json, files))}
        bound, one_at_least = np.uint64(split.held_out_bound(fraction)), fraction > 0 and counts["documents"] > 1
        for which in (TRAIN, HELD_OUT):
            chosen = (
                [array[here] for array in (begins, lengths, ids)]
                for begins, lengths, ids, _ in _read_parts(own, starts)
                for held_out in [(ids < bound) | (ids == np.uint64(lowest)) & one_at_least | apart]
                if (here := held_out == (which == HELD_OUT)).any()
            )
            if (first := next(chosen, None)) is None:
                continue
            with storage.atomic_directory(folder / which) as temporary:
                writer, documents, tokens = DocumentWriter(temporary), 0, 0
                for begins, lengths, ids in itertools.chain([first], chosen):
                    writer.add(begins, lengths, ids, np.zeros(len(ids), np.int64))
                    documents, tokens = documents + len(ids), tokens + int(lengths.sum())
                writer.close()
                storage.write_json(temporary / FILES, listed)
            size = round(counts["bytes"] * (tokens / max(1, counts["tokens"])))
            facts[which] = {"documents": documents, "tokens": tokens, "bytes": size}
        _tell_writer(parts[0].source, files, counts, counts["filled"], tokenizer)
    if TRAIN not in facts:
        raise UserError(f"corpus.sources: {parts[0].source}: no document left to train on; give it more tokens")
    check_tokenizer(TokenStore(folder / TRAIN), tokenizer, parts[0].source)
    return facts


def _read_parts(parts: Sequence[IndexPart], starts: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Of each part what `make_part` wrote: begins among the tokens of all files, lengths, ids; and its counts."""
    for part in parts:
        with part.tokens.open("rb") as file, np.load(file) as arrays:
            counts = {name: int(arrays[name]) for name in ("ended", "begun", "bytes")}
            yield arrays["begins"] + starts[part.number], arrays["lengths"], arrays["ids"], counts


def _tell_writer(source: str, files: list[TokenFile], counts: Counter, documents: int, tokenizer: Tokenizer) -> None:
    """Say whose tokenizer wrote the tokens, if they say so, and where documents begin or end differently."""
    if named := sorted({file.tokenizer for file in files if file.tokenizer}):
        say(f"tokens: {source}: written with the tokenizer {', '.join(named)}, by what its files say")
    for key, wanted, does in (("ended", [tokenizer.eos_id], "end"), ("begun", tokenizer.begin[:1], "begin")):
        if wanted and counts[key] < documents:
            say(
                f"tokens: {source}: {documents - counts[key]:,} of {documents:,} documents do not {does} with "
                f"{tokenizer.piece(wanted[0])}, as those of the model do"
            )


def check_tokenizer(store: TokenStore, tokenizer: Tokenizer, source: str) -> None:
    """Say how a document begins, and refuse tokens that another tokenizer surely wrote.

    Some documents, from the longest to the shortest, are decoded and tokenized again. Of the tokens that a tokenizer
    wrote all but those at a cut come back. Of another unigram model's about 95 % came back (measured with two of 4,000
    tokens), so that much is only told.
    """
    chosen = np.unique(np.linspace(0, store.lengths.documents - 1, COMPARED).astype(np.int64))
    same, total, text = 0, 0, ""
    for document in chosen[::-1].tolist():  # they are numbered by length: the long ones first
        tokens = [token for token in store.document(document, COMPARED_TOKENS).tolist() if tokenizer.bytes_of(token)]
        text = text or tokenizer.decode(tokens)
        again = tokenizer.encode(tokenizer.decode(tokens))
        same += sum(block.size for block in difflib.SequenceMatcher(None, tokens, again, False).get_matching_blocks())
        total += max(len(tokens), len(again))
    alike = same / total if total else 1.0
    if alike < ALIKE:
        raise UserError(
            f"corpus.sources: {source}: its tokens are not those of the recipe's tokenizer: the text of {len(chosen)} "
            f"documents, tokenized again, is the same to {alike:.0%}; set `base` to the model they are of"
        )
    doubt = "" if alike > USUAL else f"; tokenized again it is the same to {alike:.0%} only: is `base` their model?"
    say(f"tokens: {source}: a document begins {one_line(text, SHOWN)!r}{doubt}")
