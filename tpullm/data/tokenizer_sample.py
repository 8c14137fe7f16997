"""Documents → the passages that a tokenizer is trained on, drawn by many processes.

    plan      how many characters of each source, in proportion to its weight, and tasks: some of its parts each
    draw      a task leaves the passages whose keys are below a bound, a little more than are needed
    sample    one process takes those of the lowest keys of each source

The key of a passage is a hash of the seed, of its document, of the record that it was read from (so that of copies each
has a chance of its own), and of its number in the document. So a passage has the same chance in a novel as in a short
document, and the sample is the same for any parts, tasks and processes.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path

from tpullm import storage
from tpullm.corpus import document_files
from tpullm.corpus.document_files import USED, Part
from tpullm.errors import UserError
from tpullm.process.rounds import Rounds
from tpullm.tokenizer import passages

# Starting worker processes takes as long as drawing from this many (compressed) bytes of documents: a core of an EPYC
# draws from 390 MB of English text in a second, if few passages are drawn.
PARALLEL_BYTES = 20_000_000
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

    @property
    def source(self) -> str:
        """The name of the source."""
        return self.parts[0].source


def plan(documents: Path, folder: Path, weights: Mapping[str, float], characters: int, seed: int) -> list[Task]:
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
    for source, share in share_out(characters, sizes, weights).items():
        own = [part for part in listed if part.source == source]
        each, limit = max(1, -(-len(own) // TASKS)), bound(share, sizes[source])
        for first in range(0, len(own), each):
            file, parts = folder / f"sample-{len(planned):06}.json", tuple(own[first : first + each])
            read = sum(on_disk.get(part.path.name, 0) for part in parts)  # reading tells what is missing
            planned.append(Task(parts, file, share, limit, seed, read))
    return planned


def share_out(amount: int, sizes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """`amount` divided by weight, with no share above its size. What is left over is divided again."""
    shares: dict[str, int] = {}
    while open_ := [name for name in sizes if name not in shares]:
        rate = (amount - sum(shares.values())) / sum(weights[name] for name in open_)
        full = [name for name in open_ if sizes[name] <= rate * weights[name]]
        for name in full or open_:
            # Rounding can make a whole share too small: 1 / 5.03125 * 5.03125 < 1.
            shares[name] = min(sizes[name], int(rate * weights[name] + 1e-6))
    return {name: shares[name] for name in sizes}


def bound(characters: int, size: int) -> int:
    """The bound on the keys below which are `characters` of `size`, but for a chance of e^-18.

    Of passages of up to L characters, E together on average, fewer than E - t are drawn with a chance of at most
    exp(-t² / (2 E L)) (Maurer 2003, "A bound on the deviation probability for sums of non-negative random variables").
    With t² = 36 E L, and E - t = `characters`, E is a tenth more than 20 million, and a third more than 1.5 million.
    """
    slack = 3 * math.sqrt(passages.BYTES)
    average = (slack + math.sqrt(slack**2 + characters)) ** 2
    return KEYS if average >= size else math.ceil(KEYS * average / size)


def draw(tasks: Sequence[Task], rounds: Rounds) -> None:
    """Do the tasks, together with the other shares."""
    files, sizes = [task.file for task in tasks], [task.bytes for task in tasks]
    rounds.do("sample", draw_task, tasks, files, sizes, PARALLEL_BYTES)


def draw_task(task: Task) -> None:
    """Write (key, language, passage) of the passages of a task whose keys are below its bound."""
    documents = (document for part in task.parts for document, _ in document_files.read_part(part, (USED,)))
    storage.write_json(task.file, [drawn for document in documents for drawn in _drawn(document, task)])


def _drawn(document: Mapping[str, str], task: Task) -> Iterator[tuple[int, str, str]]:
    keys = _keys(document, task.seed)
    if min(keys) < task.bound:  # else the text is not cut: that takes three times as long as all before it
        for key, passage in zip(keys, passages.passages(document["text"]), strict=False):
            if key < task.bound:
                yield key, document["language"], passage


def _keys(document: Mapping[str, str], seed: int) -> list[int]:
    """The keys of as many passages as a document has at most."""
    own = hashlib.blake2b(f"{seed} {document['hash']} {document['file']} {document['record']}".encode(), digest_size=8)
    keys = []
    for number in range(passages.most(document["text"])):
        one = own.copy()
        one.update(b" %d" % number)
        keys.append(int.from_bytes(one.digest(), "big"))
    return keys


def sample(tasks: Sequence[Task]) -> list[tuple[str, str]]:
    """(language, passage) of the sample, from the files of all tasks: by source, of each source in the order of keys.

    It has no more characters of a source than planned, but at least one passage.
    """
    by_source = groupby(tasks, lambda task: task.source)
    return [pair for _, own in by_source for pair in _lowest(list(own))]


def _lowest(tasks: Sequence[Task]) -> list[tuple[str, str]]:
    """The passages of the lowest keys of one source."""
    drawn = sorted(one for task in tasks for one in storage.read_json(task.file))
    fitting = sum(end <= tasks[0].characters for end in accumulate(len(passage) for _, _, passage in drawn))
    return [(language, passage) for _, language, passage in drawn[: max(1, fitting)]]
