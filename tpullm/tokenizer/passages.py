"""Passages, the pieces of text that a tokenizer is trained on, and their lines."""

from collections.abc import Iterator

BYTES = 4000  # of a passage at most: the trainer silently drops lines of more than 4,192 bytes


def passages(text: str) -> Iterator[str]:
    """`text` in passages of at most `BYTES` bytes, cut at line ends unless a line is longer."""
    held, size = [], 0
    for line in text.splitlines(keepends=True):
        for part in _cut(line):
            length = len(part.encode())
            if size + length > BYTES and held:
                yield "".join(held)
                held, size = [], 0
            held.append(part)
            size += length
    if held:
        yield "".join(held)


def most(text: str) -> int:
    """How many passages `text` has at most: two that follow each other are longer than `BYTES`."""
    return 2 * len(text.encode()) // BYTES + 1


def lines(passage: str) -> Iterator[str]:
    """The lines of a passage for the trainer: without newlines, at most 4,000 bytes, none empty.

    The trainer uses U+2585 itself and drops lines that have it, so the character is removed.
    """
    for line in passage.replace("\u2585", "").split("\n"):
        yield from (part for part in _cut(line) if part)


def _cut(line: str) -> Iterator[str]:
    """`line` in parts of at most 4,000 bytes, at character boundaries."""
    if len(line) * 4 <= BYTES:
        yield line
        return
    data = line.encode()
    while data:
        end = min(BYTES, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[:end].decode()
        data = data[end:]
