"""How many near copies collect finds, by how alike they are, beside the theory of MinHash: 1 - (1 - s^8)^14.

    python benchmarks/recall.py --english TEXT --japanese FOLDER

A pair is a passage of the text and a copy whose end is another passage. Its similarity s is counted exactly, by sets of
5-grams. Twice the standard error of 10,000 pairs is one point.
"""

import argparse
import random
from pathlib import Path

import numpy as np
from scale import sentences

from tpullm.corpus import dedup

PAIRS = 10_000
LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
UNITS = 240  # of a passage: sentences are added until it has them


def measured(pool: list[str], level: float) -> tuple[float, float, float]:
    """Mean similarity of the pairs, the share of them that is found, and the share by the theory."""
    generator = random.Random(round(level * 1000))
    alike, found, expected = [], 0, []
    for _ in range(PAIRS):
        one, other = (_passage(pool, generator) for _ in range(2))
        kept = round(len(one) * 2 * level / (1 + level))
        texts = [_joined(one), _joined(one[:kept] + other[kept : len(one)])]
        first, second = (set(dedup._shingles(text).tolist()) for text in texts)
        s = len(first & second) / len(first | second)
        bands = dedup.bands([dedup.signature(text) for text in texts])
        alike.append(s)
        found += bool((bands[0] == bands[1]).any())
        expected.append(1 - (1 - s**dedup.ROWS) ** dedup.BANDS)
    return float(np.mean(alike)), found / PAIRS, float(np.mean(expected))


def _passage(pool: list[str], generator: random.Random) -> list[str]:
    """Words, or characters where there are no spaces."""
    units: list[str] = []
    while len(units) < UNITS:
        sentence = generator.choice(pool)
        units += sentence.split() if " " in sentence else list("".join(sentence.split()))
    return units


def _joined(units: list[str]) -> str:
    return (" " if max(map(len, units)) > 1 else "").join(units)


def main() -> None:
    """Print a line for each level of similarity and language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--english", type=Path, required=True)
    parser.add_argument("--japanese", type=Path, required=True)
    given = parser.parse_args()
    for language, path in (("en", given.english), ("ja", given.japanese)):
        pool = [sentence for sentence in sentences(path) if " " in sentence or language == "ja"]
        for level in LEVELS:
            alike, found, expected = measured(pool, level)
            print(
                f"{language} {alike:.3f} alike: found {found:.2%}, theory {expected:.2%}, {found - expected:+.2%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
