"""A long row of documents."""

import numpy as np

SHARES = (0.53, 0.3, 0.12, 0.04)  # of the row; the rest is padding


def documents(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids and positions `[T]` of a row of four documents and padding."""
    segments, positions, begin = np.zeros(length, np.int32), np.zeros(length, np.int32), 0
    for number, share in enumerate(SHARES, start=1):
        size = int(share * length)
        segments[begin : begin + size], positions[begin : begin + size] = number, np.arange(size)
        begin += size
    return segments, positions
