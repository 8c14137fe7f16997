"""The size of a vocabulary, and which characters get a token of their own. Other characters are written as bytes."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tpullm.recipe.schema import TokenizerConfig

# The share of the text whose characters should have tokens, as in SentencePiece. Rarer ones leave room for words.
COVERAGE = 0.9995
# Characters take at most this share of the vocabulary; words and parts of words take the rest. Bytes per token of
# held-out text for shares of 0.25, 0.35, 0.5, 0.65 and 0.8, trained on 500,000 characters: Soseki in 4,096 tokens 3.84,
# 4.02, 4.10, 4.06, 3.96; Chinese verse and prose in 2,048 tokens 2.28, 2.45, 2.60, 2.68, 2.69.
MOST_CHARACTERS = 0.5
# A vocabulary that may grow does so until characters take this share. The arithmetic of the quickstart's model for a
# text with 4,096 tokens, relative to 2,048 (1.24 times as much a token, for fewer tokens): Korean (710 characters)
# 0.94, Soseki and Chinese (2,700 and 3,900) 1.06 and 1.03, English and code (262) 1.08. With 6,144: 1.00, 1.19, 1.15,
# 1.22.
GROWN_CHARACTERS = 0.25
_ROUNDED_TO = 256  # tokens; a multiple of it splits well over devices


@dataclass(frozen=True)
class Alphabet:
    """The size of a vocabulary and its characters, for one text and the settings of a recipe.

    Args:
        vocabulary_size: all tokens: as the recipe says, or more if the text needs more and the recipe lets it grow.
        characters: how many characters get a token of their own.
        others: how many characters get none.
        covering: how many characters cover 99.95 % of the text.
        rare: the characters that get none, if there is not room for all that cover the text; empty if there is, and
            SentencePiece's coverage decides.
    """

    vocabulary_size: int
    characters: int
    others: int
    covering: int
    rare: frozenset[str] = frozenset()

    def with_all(self) -> "Alphabet":
        """The same vocabulary size with the characters that cover 99.95 % of the text."""
        return dataclasses.replace(
            self, characters=self.covering, others=self.characters + self.others - self.covering, rare=frozenset()
        )

    def parts(self, line: str) -> list[str]:
        """The parts of `line` between its rare characters."""
        if self.rare.isdisjoint(line):
            return [line]
        kept = "".join("\n" if character in self.rare else character for character in line)
        return [part for part in kept.split("\n") if part]

    def has(self, piece: str) -> bool:
        """Whether no character of `piece` is rare."""
        return self.rare.isdisjoint(piece)


def choose(lines: Iterable[str], config: TokenizerConfig) -> Alphabet:
    """The alphabet of a tokenizer for `lines`.

    If the characters that cover 99.95 % of the text take more than a quarter of a `unigram` vocabulary, the vocabulary
    grows until they do not, to at most `config.largest_vocabulary`. If they still take more than half, the rarest of
    them are written as bytes.
    """
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    if config.model_type == "char":
        size = config.vocabulary_size or fixed_tokens(config) + len(ordered)
        characters = min(len(ordered), size - fixed_tokens(config))
        return Alphabet(size, characters, len(ordered) - characters, characters)
    covering = _covering([counts[character] for character in ordered])
    size = _grown(covering, config)
    room = int(MOST_CHARACTERS * (size - fixed_tokens(config)))
    if covering <= room:
        return Alphabet(size, covering, len(ordered) - covering, covering)
    return Alphabet(size, room, len(ordered) - room, covering, frozenset(ordered[room:]))


def _covering(counts: list[int]) -> int:
    """How many of the most frequent characters cover `COVERAGE` of the text."""
    total, covered = sum(counts), 0
    for number, count in enumerate(counts):
        if covered >= COVERAGE * total:
            return number
        covered += count
    return len(counts)


def _grown(characters: int, config: TokenizerConfig) -> int:
    needed = fixed_tokens(config) + math.ceil(characters / GROWN_CHARACTERS)
    rounded = -(-needed // _ROUNDED_TO) * _ROUNDED_TO
    return max(config.vocabulary_size, min(rounded, config.largest_vocabulary))


def fixed_tokens(config: TokenizerConfig) -> int:
    """The number of tokens that every vocabulary has: special and reserved tokens, newline, space, bytes."""
    return 8 + config.reserved_tokens + 2 + 256
