"""The text that a tokenizer is trained on: a sample of passages, and their lines."""

import heapq
from collections.abc import Iterable, Iterator
from hashlib import blake2b

_LINE_BYTES = 4000  # the trainer silently drops lines of more than 4,192 bytes


def sample(texts: Iterable[tuple[str, str]], characters: int, seed: int) -> list[tuple[str, str]]:
    """Passages of about 4,000 bytes, at most `characters` in all, chosen by the hash of seed, place and content.

    The texts are read once, and only the sample is in memory. A passage has the same chance in a novel as in a short
    document.
    """
    kept: list[tuple[int, int, str, str]] = []  # a heap; its first entry is the next passage to drop
    total = number = 0
    for language, text in texts:
        for passage in _passages(text):
            number += 1
            key = blake2b(f"{seed} {number} {passage}".encode(), digest_size=8)
            heapq.heappush(kept, (-int.from_bytes(key.digest(), "big"), number, language, passage))
            total += len(passage)
            while total > characters and len(kept) > 1:
                total -= len(heapq.heappop(kept)[3])
    return [(language, passage) for _, _, language, passage in sorted(kept, key=lambda entry: entry[1])]


def lines(passage: str) -> Iterator[str]:
    """The lines of a passage for the trainer: without newlines, at most 4,000 bytes, none empty.

    The trainer uses U+2585 itself and drops lines that have it, so the character is removed.
    """
    for line in passage.replace("\u2585", "").split("\n"):
        yield from (part for part in _cut(line) if part)


def _passages(text: str) -> Iterator[str]:
    """`text` in passages of at most 4,000 bytes, cut at line ends unless a line is longer."""
    held, size = [], 0
    for line in text.splitlines(keepends=True):
        for part in _cut(line):
            length = len(part.encode())
            if size + length > _LINE_BYTES and held:
                yield "".join(held)
                held, size = [], 0
            held.append(part)
            size += length
    if held:
        yield "".join(held)


def _cut(line: str) -> Iterator[str]:
    """`line` in parts of at most 4,000 bytes, at character boundaries."""
    if len(line) * 4 <= _LINE_BYTES:
        yield line
        return
    data = line.encode()
    while data:
        end = min(_LINE_BYTES, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[:end].decode()
        data = data[end:]
