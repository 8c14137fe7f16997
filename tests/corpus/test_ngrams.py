"""The words of MinHash are hashed all at once, as one after the other is."""

import re
import zlib

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from tpullm.corpus import characters, dedup

LETTERS = "aZéİß9½_'-.猫のह्\u0301😀\x7f\x80\u07ff\u0800\uffff \n"  # of one to four bytes, and the last of each


def one_by_one(text):
    found = re.findall(r"\w+", text.lower()) or [text]
    return [zlib.crc32(word.encode()) for word in found]


@given(st.text(st.sampled_from("abcé İ.\n_9"), max_size=60) | st.text(st.sampled_from(LETTERS), max_size=20))
@example("")
@example("?!")
@example("a" * 31 + " " + "b" * 32 + " " + "c" * 33 + " é" + "d" * 500 + ".")
def test_words_have_the_crc_of_their_bytes(text):
    if not dedup.language_detection.is_spaceless(text):
        found = dedup.units(text)
        assert found.dtype == np.uint64 and found.tolist() == one_by_one(text)


def test_the_table_knows_each_character():
    """Those beyond its end, too, which have the last entry."""
    letters = "".join(map(chr, range(0x110000)))
    expected = np.zeros(len(letters), bool)
    for match in re.finditer(r"\w+", letters):
        expected[match.start() : match.end()] = True
    assert np.array_equal(characters.of_words().take(np.arange(len(letters)), mode="clip"), expected)
    beyond = letters[characters.END :]
    assert not any(map(str.isspace, beyond)) and not any(map(str.isalpha, beyond))
