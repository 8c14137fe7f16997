"""The files of a source → parts, each the work of one process: large files are cut, small ones are bundled.

Where a part begins and ends depends on the files beside it and not on how many there are, so the parts of a source stay
the same but where a file is added, changed or removed. A bundle ends after a file by chance, by the hash of its name,
as in content-defined chunking (Muthitacharoen et al. 2001, LBFS): the more bytes the file has, the more often. A new
file is then in one bundle, or, if that bundle ends after it, cuts it in two.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

from tpullm.corpus.files.source_files import COMPRESSED, File, printable

BUNDLE_BYTES = 2_000_000  # of a bundle on average
RANGE_BYTES = 16_000_000  # of a range of a large file
FILE_BYTES = 4_096  # opening a file takes about as long as reading so much
# A line or a row group says itself where it begins. What is compressed can only be read from its beginning.
CUT_KINDS = ("text", "jsonl", "parquet")


def parts(files: Sequence[File]) -> Iterator[tuple[tuple[File, ...], int]]:
    """The parts of a source, in the order of its files, and the bytes of each."""
    bundle: list[File] = []
    for file in files:
        if file.bytes >= BUNDLE_BYTES:  # a file of its own, so that what is added beside it does not redo it
            yield from _whole(bundle)
            bundle = []
            yield from (((part,), part.bytes) for part in ranges(file))
            continue
        if bundle and bundle[-1].held_out != file.held_out:
            yield from _whole(bundle)
            bundle = []
        bundle.append(file)
        if _ends_bundle(file):
            yield from _whole(bundle)
            bundle = []
    yield from _whole(bundle)


def _whole(bundle: list[File]) -> Iterator[tuple[tuple[File, ...], int]]:
    if bundle:
        yield tuple(bundle), sum(file.bytes for file in bundle)


def _ends_bundle(file: File) -> bool:
    """Whether a bundle ends after a file; of files of `n` bytes, `n / BUNDLE_BYTES` do."""
    chance = int.from_bytes(hashlib.sha256(printable(file.path.name).encode()).digest()[:8], "big") / 2**64
    return chance * BUNDLE_BYTES < max(file.bytes, FILE_BYTES)


def ranges(file: File) -> list[File]:
    """A file in ranges of about `RANGE_BYTES`, or whole if it can't be cut; what is appended changes the last one."""
    can_be_cut = file.kind in CUT_KINDS and file.path.suffix.lower() not in COMPRESSED and not file.is_part
    count = file.bytes // RANGE_BYTES if can_be_cut else 0
    if count < 2:
        return [file]
    ends = [*(number * RANGE_BYTES for number in range(1, count)), file.bytes]
    found = [
        dataclasses.replace(file, start=start, stop=stop, bytes=stop - start)
        for start, stop in zip([0, *ends], ends, strict=False)
    ]
    return [*found[:-1], dataclasses.replace(found[-1], stop=None)]
