"""How large a vocabulary is, and which characters get a token of their own in it. All others go by their bytes."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tpullm.recipe.schema import TokenizerConfig

# Share of the text whose characters should have tokens: rarer ones leave room for words (SentencePiece's own default).
COVERAGE = 0.9995
# Characters may take this share of the vocabulary; the rest is words and parts of words. Bytes a token of held-out
# text with shares of 0.25, 0.35, 0.5, 0.65 and 0.8 (500,000 characters to learn from): Soseki in 4,096 tokens 3.84,
# 4.02, 4.10, 4.06, 3.96; Chinese verse and prose in 2,048 tokens 2.28, 2.45, 2.60, 2.68, 2.69.
MOST_CHARACTERS = 0.5
# A vocabulary that may grow does so until the characters take this share. What 4,096 tokens cost the quickstart's model
# instead of 2,048 (1.24 times the arithmetic of a token, for fewer tokens), by text: Korean (710 characters) 0.94,
# Soseki and Chinese (2,700 and 3,900) 1.06 and 1.03, English and code (262) 1.08; 6,144: 1.00, 1.19, 1.15, 1.22.
GROWN_CHARACTERS = 0.25
_ROUNDED_TO = 256  # tokens; sizes that a device divides well


@dataclass(frozen=True)
class Alphabet:
    """What the characters of a text make of the settings.

    Args:
        vocabulary_size: tokens in all: the recipe's, or more where the text needs it and the recipe lets it grow.
        characters: how many characters get a token of their own.
        others: how many don't.
        covering: how many characters cover 99.95 % of the text.
        rare: these others, where there are so many characters that it is decided here; empty where SentencePiece's own
            coverage decides.
    """

    vocabulary_size: int
    characters: int
    others: int
    covering: int
    rare: frozenset[str] = frozenset()

    def with_all(self) -> "Alphabet":
        """The same vocabulary with as many characters as cover 99.95 % of the text."""
        return dataclasses.replace(
            self, characters=self.covering, others=self.characters + self.others - self.covering, rare=frozenset()
        )

    def parts(self, line: str) -> list[str]:
        """What of `line` is between its rare characters."""
        if self.rare.isdisjoint(line):
            return [line]
        kept = "".join("\n" if character in self.rare else character for character in line)
        return [part for part in kept.split("\n") if part]

    def has(self, piece: str) -> bool:
        """Whether no character of `piece` is rare."""
        return self.rare.isdisjoint(piece)


def choose(lines: Iterable[str], config: TokenizerConfig) -> Alphabet:
    """The alphabet of a tokenizer for `lines`.

    Where the characters that cover 99.95 % of the text would take more than a quarter of a `unigram` vocabulary, it
    grows until they don't, to `config.largest_vocabulary` at most. If they would take more than half even so, the
    rarest of them go by their bytes.
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
    """How many of the most frequent characters make up `COVERAGE` of the text."""
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
    """Tokens that every vocabulary has: special and reserved ones, newline, space, bytes."""
    return 8 + config.reserved_tokens + 2 + 256
