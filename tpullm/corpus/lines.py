"""The lines of a document by their hashes, so that lines that many documents have can be found without the text."""

import hashlib

import numpy as np

from tpullm.recipe.schema import CorpusConfig, Source

LINE = np.dtype([("key", "<u8"), ("characters", "<u4")])
# Of letters, in UTF-8: seven ideographs or four English words. 「はい」 and "He said:" may be repeated.
LEAST_BYTES = 20
_NO_LETTERS = bytes(byte for byte in range(128) if chr(byte) != "\n" and not chr(byte).isalpha())


def are_kept(source: Source, config: CorpusConfig) -> bool:
    """Whether the parts of a source keep the lines of their documents.

    With `filter: false` nothing is judged, and with `deduplicate: false` documents are there more than once on purpose.
    """
    return config.repeated_lines > 0 and source.filter and source.deduplicate


def of(text: str) -> np.ndarray:
    """The different lines of a text, sorted by their hash, and how many characters each has in all: [lines] of `LINE`.

    Of ASCII, letters count and their case does not: a footer has another date on each page, and rows of numbers are no
    footers. Lines of fewer letters are left out.
    """
    digests, characters = [], []
    for line, letters in zip(text.split("\n"), _letters(text), strict=True):
        if len(letters) >= LEAST_BYTES:
            digests.append(hashlib.blake2b(letters, digest_size=8).digest())
            characters.append(len(line))
    keys, which = np.unique(np.frombuffer(b"".join(digests), "<u8"), return_inverse=True)
    found = np.empty(len(keys), LINE)
    found["key"], found["characters"] = keys, np.bincount(which, characters, len(keys))
    return found


def _letters(text: str) -> list[bytes]:
    """What counts of each line: all at once, so that it takes little time."""
    return text.lower().encode().translate(None, _NO_LETTERS).split(b"\n")
