"""Hashes: SHA-256, which names a document, and SplitMix64, which mixes arrays of integers."""

import hashlib

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, odd: the step of SplitMix64


def text_hash(text: str) -> str:
    """SHA-256 of the UTF-8 text, hexadecimal: it names a document and decides whether it is held out."""
    return hashlib.sha256(text.encode()).hexdigest()


def splitmix64(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele et al. 2014): each bit of the result depends on each bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
