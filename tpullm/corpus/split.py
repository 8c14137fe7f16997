"""Which documents are held out, decided by the hash of their text and never by their position."""

import math
from collections.abc import Sequence
from itertools import groupby

from tpullm.corpus.cutting import cut
from tpullm.corpus.text_hashes import text_hash

FEW = 20  # a source of fewer documents is cut into stretches, since one document may be most of its text
SHORTEST_STRETCH = 200  # characters


def bound(fraction: float) -> int:
    """The documents are held out, in every corpus, whose SHA-256 begins with 8 bytes that are a number below this.

    It is at most 2^64 - 1, so that it is a number of 8 bytes too.
    """
    return min(math.ceil(fraction * 2**64), 2**64 - 1)


def lowest(hashes: Sequence[str], count: int = 1) -> list[int]:
    """The indices of the `count` lowest hashes: what is held out if no hash is in the held-out fraction."""
    return sorted(sorted(range(len(hashes)), key=lambda index: (hashes[index], index))[:count])


def stretches(
    texts: Sequence[str], fraction: float, longest: int
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Training and held-out documents of a source of few documents, each with the index of its text.

    The texts are cut at line ends into about `1 / fraction` stretches. The stretches with the lowest hashes are held
    out, at least one if there are two. The stretches between them are joined to documents of at most `longest`
    characters.
    """
    length = max(int(sum(map(len, texts)) * fraction), SHORTEST_STRETCH)
    pieces = [(number, piece) for number, text in enumerate(texts) for piece in cut(text, length)]
    count = min(max(round(fraction * len(pieces)), 1), len(pieces) - 1)
    apart = lowest([text_hash(piece) for _, piece in pieces], count) if count > 0 else []
    training = []
    for (number, is_apart), run in groupby(enumerate(pieces), key=lambda item: (item[1][0], item[0] in apart)):
        joined = "".join(piece for _, (_, piece) in run)
        if not is_apart:
            training += [(number, text) for text in cut(joined, longest)]
    return training, [pieces[index] for index in apart]
