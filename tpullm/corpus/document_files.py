"""The collected documents on disk: `documents/SOURCE/SPLIT/00000.jsonl.gz`, one JSON object a line."""

import contextlib
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

from tpullm.corpus.text_hashes import text_hash
from tpullm.errors import UserError
from tpullm.recipe.schema import Source

TRAIN, HELD_OUT = "train", "held_out"
SHARD_CHARACTERS = 16_000_000


class Writer:
    """Writes the documents of one source and split into shards; the bytes depend on the documents only."""

    def __init__(self, documents: Path, source: Source, split: str):
        self.folder = documents / source.name / split
        self.source = source
        self.shards = 0
        self.room = 0
        self.files = contextlib.ExitStack()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()

    def write(self, text: str, language: str) -> None:
        """Add one document."""
        if self.room <= 0:
            self._open_shard()
        digest = text_hash(text)
        line = {
            "id": digest[:16],
            "text": text,
            "source": self.source.name,
            "licence": self.source.licence,
            "language": language,
            "hash": digest,
        }
        self.shard.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.room -= len(text)

    def _open_shard(self) -> None:
        self.files.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        raw = self.files.enter_context((self.folder / f"{self.shards:05}.jsonl.gz").open("wb"))
        # The header holds no name and no time, so the same documents give the same bytes.
        packed = self.files.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
        self.shard = self.files.enter_context(io.TextIOWrapper(packed, encoding="utf-8", newline="\n"))
        self.shards += 1
        self.room = SHARD_CHARACTERS


def shards(documents: Path, source: str, split: str) -> list[Path]:
    """The files of one source and split, in order; none if there are no documents."""
    return sorted((documents / source / split).glob("*.jsonl.gz"))


def read(documents: Path, source: str, split: str) -> Iterator[dict[str, str]]:
    """The documents of one source and split: `id`, `text`, `source`, `licence`, `language`, `hash`."""
    for path in shards(documents, source, split):
        yield from read_shard(path)


def read_shard(path: Path) -> Iterator[dict[str, str]]:
    """The documents of one file; `UserError` if it is broken."""
    try:
        with path.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                yield json.loads(line)
    except (EOFError, OSError, ValueError) as error:
        raise UserError(f"{path}: is broken ({error}); remove its documents folder and run collect again") from None
