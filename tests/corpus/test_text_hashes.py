"""The hashes are those that their names promise: what was made by another version is found again."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.dedup import GOLDEN, splitmix64, text_hash

# The first outputs of the published generator (Vigna, prng.di.unimi.it/splitmix64.c) from seed 1234567.
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_splitmix64_gives_the_published_numbers():
    states = (np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * GOLDEN).astype(np.uint64)
    assert splitmix64(states).tolist() == PUBLISHED


@given(st.text())
def test_a_text_is_named_by_the_sha256_of_its_utf8(text):
    assert text_hash(text) == hashlib.sha256(text.encode("utf-8")).hexdigest()
