"""The pieces from which the trainer of a tokenizer chooses: parts of words. No piece spans two words."""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable

from tpullm.tokenizer import japanese_words
from tpullm.tokenizer.trained import SPACE

_PIECE_CHARACTERS = 16  # SentencePiece's own limit
_KANA = "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f"
_HAS_KANA = re.compile(f"[{_KANA}]")
_JAPANESE = re.compile(f"[{_KANA}\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_SYMBOLS = (
    "!-/:-@\\[-`{-~\u00a1-\u00bf\u2010-\u2bff\u3001-\u3004\u3008-\u303f\u30fb"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\U0001f000-\U0001faff"
)
_CHUNK = re.compile(rf" ?[^\s\d{_SYMBOLS}]+|\d| ?[{_SYMBOLS}]+|\s+")  # letters, one digit, symbols, white space


def seed_pieces(lines: Iterable[tuple[str, str]]) -> list[tuple[str, int]]:
    """The pieces from which the trainer chooses, with their counts: parts of words and of other chunks.

    SentencePiece has `pretokenization_delimiter` for this. But its seeds are the inner nodes of a suffix array, and a
    word that a boundary always follows is none: neither です nor 天気 became a piece (version 0.2.3).
    """
    words: Counter[str] = Counter()
    for language, line in lines:
        japanese = _HAS_KANA.search(line) or (language == "ja" and _JAPANESE.search(line))
        for part in _japanese_words()(line) if japanese else (line,):
            words.update((part,) if _JAPANESE.search(part) else _CHUNK.findall(part))
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word) - 1):
            for end in range(start + 2, min(len(word), start + _PIECE_CHARACTERS) + 1):
                pieces[word[start:end]] += count
    kept = [(piece.replace(" ", SPACE), count) for piece, count in pieces.items() if count > 1 and "\t" not in piece]
    return sorted(kept, key=lambda item: (-item[1] * len(item[0]), item[0]))


@functools.cache
def _japanese_words() -> Callable[[str], list[str]]:
    """A function that splits a line at the boundaries of its Japanese words (Sudachi's shortest units, mode A).

    It does not split what is not Japanese: English words and numbers are split as in other lines.
    """

    @functools.lru_cache(maxsize=1 << 16)  # generated text repeats its lines
    def split(line: str) -> list[str]:
        parts: list[str] = []
        for word in japanese_words.analyser("A")(line):
            surface = word.surface()
            if parts and surface and not (_JAPANESE.search(surface) or _JAPANESE.search(parts[-1])):
                parts[-1] += surface
            elif surface:
                parts.append(surface)
        return parts

    return split
