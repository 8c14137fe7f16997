"""The text that a tokenizer is trained on: a sample of passages, and their lines."""

import heapq
from collections.abc import Iterable, Iterator
from hashlib import blake2b

_LINE_BYTES = 4000  # the trainer drops longer lines (4,192 bytes) without a word


def sample(texts: Iterable[tuple[str, str]], characters: int, seed: int) -> list[tuple[str, str]]:
    """Passages of about 4,000 bytes, `characters` in all at most, chosen by the hash of seed, place and content.

    One pass, with no more than the sample in memory. Passages of long texts count like any other, so that one novel
    does not take the place of many short documents, nor the other way round.
    """
    kept: list[tuple[int, int, str, str]] = []  # a heap whose first entry is the passage to give up first
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
    """Lines for the trainer: without their newline, at most 4,000 bytes, none empty.

    The trainer drops lines with U+2585, which it uses itself, so that character is taken out.
    """
    for line in passage.replace("\u2585", "").split("\n"):
        yield from (part for part in _cut(line) if part)


def _passages(text: str) -> Iterator[str]:
    """`text` in passages of at most about 4,000 bytes, cut after a line's end where there is one."""
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
