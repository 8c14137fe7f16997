"""Which documents are held out: by the hash of their text, never by position."""

from collections.abc import Sequence
from itertools import groupby

from tpullm.corpus.cutting import cut
from tpullm.corpus.hashing import text_hash

FEW = 20  # documents; a source of fewer is cut into stretches, since one document of it may be all of the text
SHORTEST_STRETCH = 200  # characters


def is_held_out(text_hash: str, fraction: float) -> bool:
    """Whether the document of this SHA-256 (hexadecimal) belongs to the held-out `fraction`, in whatever corpus."""
    return int(text_hash[:16], 16) < fraction * 2**64


def lowest(hashes: Sequence[str], count: int = 1) -> list[int]:
    """The indices of the `count` lowest hashes: as good a choice by hash where the fraction catches none."""
    return sorted(sorted(range(len(hashes)), key=lambda index: (hashes[index], index))[:count])


def stretches(
    texts: Sequence[str], fraction: float, longest: int
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Training and held-out documents of a source of few documents, each with the index of the text it is from.

    The texts are cut, at line ends, into about `1 / fraction` stretches; those with the lowest hashes are held out (at
    least one, where there are two), and what lies between them is joined again to documents of at most `longest`
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
