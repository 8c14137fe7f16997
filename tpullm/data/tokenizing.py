"""Step 2 by many processes: documents → the sample that a tokenizer is trained on, and then → token stores.

    plan_sample    how many characters of each source, in proportion to its weight, and tasks: some of its parts each
    draw           a task leaves the passages whose keys are below a bound, a little more than are needed
    sample         one process takes those of the lowest keys of each source
    plan, make     each part of the documents is tokenized
    assemble       the parts become stores

A finished part is never made again, so a run that was killed resumes. A part depends on its documents and on the
tokenizer alone, so the stores are the same for any number of processes and machines.

The key of a passage is a hash of the seed, of its document, of the record that it was read from (so that of copies each
has a chance of its own), and of its number in the document. So a passage has the same chance in a novel as in a short
document, and the sample is the same for any parts, tasks and processes.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby
from pathlib import Path

import numpy as np

from tpullm.corpus import document_files
from tpullm.corpus.document_files import SPLITS, USED, Part
from tpullm.data import token_index, token_store
from tpullm.data.token_index import IndexPart
from tpullm.recipe.schema import Source
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.process.parts import Engine
from tpullm.tokenizer import load as load_tokenizer
from tpullm.tokenizer import trainer

# Starting worker processes takes as long as drawing from this many (compressed) bytes of documents: a core of an EPYC
# draws from 390 MB of English text in a second, if few passages are drawn.
SAMPLE_PARALLEL_BYTES = 20_000_000
TASKS = 4096  # of a source at most: one process reads a file of each
KEYS = 2**64  # keys are whole numbers below this


@dataclass(frozen=True)
class Task:
    """Consecutive parts of a source.

    Args:
        parts: the parts.
        file: the passages that are drawn of them.
        characters: of the sample that are of the source, of all its tasks together.
        bound: the passages whose keys are below it are drawn.
        seed: of the sample.
        bytes: how many it reads.
    """

    parts: tuple[Part, ...]
    file: Path
    characters: int
    bound: int
    seed: int
    bytes: int


def plan_sample(documents: Path, folder: Path, weights: Mapping[str, float], characters: int, seed: int) -> list[Task]:
    """The tasks of all sources that have a weight, in their order.

    Args:
        documents: the folder of the documents.
        folder: where the tasks leave their files.
        weights: of the sources. If one is smaller than its share, the rest is divided among the others by weight.
        characters: of the sample.
        seed: of the sample.

    Raises:
        UserError: the data card has no counts of characters.
    """
    there = storage.read_json(documents / "datacard.json").get("training_characters")
    if there is None:
        what = f"{documents / 'datacard.json'}: has no training_characters, so another version of tpullm made it"
        raise UserError(f"{what}; remove {documents} and run `tpullm collect` again")
    sizes = {source: there.get(source, 0) for source, weight in weights.items() if weight > 0}
    listed, planned = document_files.parts(documents), []
    on_disk = storage.sizes(documents / "parts")  # one listing, where a question for each part is a request
    for source, share in share_by_weight(characters, sizes, weights).items():
        own = [part for part in listed if part.source == source]
        each, limit = max(1, -(-len(own) // TASKS)), key_bound(share, sizes[source])
        for first in range(0, len(own), each):
            file, parts = folder / f"sample-{len(planned):06}.json", tuple(own[first : first + each])
            read = sum(on_disk.get(part.path.name, 0) for part in parts)  # reading tells what is missing
            planned.append(Task(parts, file, share, limit, seed, read))
    return planned


def share_by_weight(amount: int, sizes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """`amount` divided by weight, with no share above its size. What is left over is divided again."""
    shares: dict[str, int] = {}
    while open_ := [name for name in sizes if name not in shares]:
        rate = (amount - sum(shares.values())) / sum(weights[name] for name in open_)
        full = [name for name in open_ if sizes[name] <= rate * weights[name]]
        for name in full or open_:
            # Rounding can make a whole share too small: 1 / 5.03125 * 5.03125 < 1.
            shares[name] = min(sizes[name], int(rate * weights[name] + 1e-6))
    return {name: shares[name] for name in sizes}


def key_bound(characters: int, size: int) -> int:
    """The bound on the keys below which are `characters` of `size`, but for a chance of e^-18.

    Of passages of up to L characters, E together on average, fewer than E - t are drawn with a chance of at most
    exp(-t² / (2 E L)) (Maurer 2003, "A bound on the deviation probability for sums of non-negative random variables").
    With t² = 36 E L, and E - t = `characters`, E is a tenth more than 20 million, and a third more than 1.5 million.
    """
    slack = 3 * math.sqrt(trainer.BYTES)
    average = (slack + math.sqrt(slack**2 + characters)) ** 2
    return KEYS if average >= size else math.ceil(KEYS * average / size)


def draw(tasks: Sequence[Task], engine: Engine) -> None:
    """Do the tasks."""
    files, sizes = [task.file for task in tasks], [task.bytes for task in tasks]
    engine.map("sample", draw_task, tasks, files, sizes, SAMPLE_PARALLEL_BYTES)


def draw_task(task: Task) -> None:
    """Write (key, language, passage) of the passages of a task whose keys are below its bound."""
    drawn = []
    for part in task.parts:
        for document, _ in document_files.read_part(part, (USED,)):
            keys = _keys_of_passages(document, task.seed)
            if min(keys) < task.bound:  # else the text is not cut: that takes three times as long as all before it
                passages = zip(keys, trainer.passages(document["text"]), strict=False)
                drawn += [(key, document["language"], passage) for key, passage in passages if key < task.bound]
    storage.write_json(task.file, drawn)


def _keys_of_passages(document: Mapping[str, str], seed: int) -> list[int]:
    """The keys of as many passages as a document has at most."""
    own = hashlib.blake2b(f"{seed} {document['hash']} {document['file']} {document['record']}".encode(), digest_size=8)
    keys = []
    for number in range(trainer.most_passages(document["text"])):
        one = own.copy()
        one.update(b" %d" % number)
        keys.append(int.from_bytes(one.digest(), "big"))
    return keys


def sample(tasks: Sequence[Task]) -> list[tuple[str, str]]:
    """(language, passage) of the sample, from the files of all tasks: by source, of each source in the order of keys.

    It has no more characters of a source than planned, but at least one passage.
    """
    found = []
    for _, own in groupby(tasks, lambda task: task.parts[0].source):
        of_source = list(own)
        drawn = sorted(one for task in of_source for one in storage.read_json(task.file))
        fitting = sum(end <= of_source[0].characters for end in accumulate(len(passage) for _, _, passage in drawn))
        found += [(language, passage) for _, language, passage in drawn[: max(1, fitting)]]
    return found


# Starting worker processes takes as long as tokenizing this many (compressed) bytes of documents.
PARALLEL_BYTES = 2_000_000
SPLIT_OF = {mark: split for split, mark in SPLITS.items()}


@dataclass(frozen=True)
class TokensPart:
    """One part of the documents, and the file of its tokens."""

    documents: document_files.Part
    tokens: Path
    tokenizer: Path
    bytes: int  # that it reads

    @property
    def source(self) -> str:
        """The name of its source."""
        return self.documents.source


def plan(documents: Path, parts: Path, tokenizer: Path, sources: Sequence[Source]) -> list[TokensPart | IndexPart]:
    """The parts of all documents, in the order of the sources, and those of tokens of others."""
    planned: list[TokensPart | IndexPart] = []
    sizes = storage.sizes(documents / "parts")  # one listing, where a question for each part is a request
    for source in sources:
        if source.kind == "tokens":
            planned += token_index.plan(source, parts, tokenizer, len(planned))
        for part in document_files.parts(documents, source.name):
            size = sizes.get(part.path.name, 0)  # reading tells what is missing
            planned.append(TokensPart(part, parts / f"{len(planned):06}.npz", tokenizer, size))
    return planned


def make(parts: Sequence[TokensPart | IndexPart], engine: Engine) -> None:
    """Tokenize the parts."""
    files, sizes = [part.tokens for part in parts], [part.bytes for part in parts]
    engine.map("tokenize", make_part, parts, files, sizes, PARALLEL_BYTES)


def make_part(part: TokensPart | IndexPart) -> None:
    """Tokenize one part of the documents, each with its begin and end tokens; or read a file of tokens of others."""
    if isinstance(part, IndexPart):
        return token_index.make_part(part)
    tokenizer = load_tokenizer(part.tokenizer)
    dtype = token_store.token_dtype(tokenizer.vocabulary_size)
    found: dict[str, list[tuple]] = {split: [] for split in SPLITS}
    for document, mark in document_files.read_part(part.documents):
        tokens, size = np.array(tokenizer.document(document["text"]), dtype), len(document["text"].encode())
        found[SPLIT_OF[mark]].append((tokens, int(document["hash"][:16], 16), document["language"], size))
    arrays = {}
    for split, own in found.items():
        tokens, ids, languages, sizes = zip(*own, strict=True) if own else ((),) * 4
        arrays |= {
            f"{split}_tokens": np.concatenate([np.zeros(0, dtype), *tokens]),
            f"{split}_lengths": np.array(list(map(len, tokens)), np.int64),
            f"{split}_ids": np.array(ids, np.uint64),
            f"{split}_languages": np.array(languages, np.str_),
            f"{split}_bytes": np.array(sum(sizes)),
        }
    with storage.atomic_file(part.tokens) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def assemble(
    folder: Path, parts: Sequence[TokensPart | IndexPart], vocabulary_size: int, held_out_fraction: float
) -> dict[str, dict[str, dict[str, int]]]:
    """Write `folder`/SOURCE/SPLIT from its parts; count documents, tokens and UTF-8 bytes by source and split.

    A split of a source that has no document has no store.

    Args:
        held_out_fraction: of tokens of others; of documents it is decided before.
    """
    facts: dict[str, dict[str, dict[str, int]]] = {}
    for source, group in groupby(parts, lambda part: part.source):
        own = list(group)
        if isinstance(own[0], IndexPart):
            facts[source] = token_index.assemble(folder / source, own, held_out_fraction)
            continue
        facts[source] = {}
        for split in SPLITS:
            parts_of_split = _arrays_of_parts(own, split, counts := Counter())
            if (first := next(parts_of_split, None)) is not None:
                dtype = token_store.token_dtype(vocabulary_size)
                token_store.write_store(folder / source / split, chain([first], parts_of_split), dtype)
                facts[source][split] = dict(counts)
    return facts


def _arrays_of_parts(parts: Sequence[TokensPart], split: str, counts: Counter) -> Iterator[tuple[np.ndarray, ...]]:
    """Tokens of each part with documents; their lengths, ids and languages. They are added to `counts`."""
    for part in parts:
        with part.tokens.open("rb") as file, np.load(file) as arrays:
            found = tuple(arrays[f"{split}_{name}"] for name in ("tokens", "lengths", "ids", "languages"))
            size = int(arrays[f"{split}_bytes"])
        if len(found[2]):
            counts.update(documents=len(found[2]), tokens=len(found[0]), bytes=size)
            yield found
