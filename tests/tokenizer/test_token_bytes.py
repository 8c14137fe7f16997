"""The bytes of a token are those that its decoder would write."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from tpullm.system.errors import UserError
from tpullm.tokenizer import published

BYTE_LEVEL = {"decoder": {"type": "ByteLevel"}}
METASPACE = {"decoder": {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]}}


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_letters_stand_for_the_bytes_that_the_library_means(text):
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    ids = {piece: number for number, piece in enumerate(dict.fromkeys(piece for piece, _ in split))}
    table = published.all_bytes(BYTE_LEVEL, ids, set(), set(), "file") if ids else []
    assert b"".join(table[ids[piece]] for piece, _ in split) == text.encode()
    letters = {letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    assert len(set(published.all_bytes(BYTE_LEVEL, letters, set(), set(), "file"))) == 256


@pytest.mark.parametrize(
    ("piece", "expected"),
    [("<0x41>", b"A"), ("<0xE2>", b"\xe2"), ("<0x411>", b"<0x411>"), ("<0x4>", b"<0x4>"), ("\u2581a\u2581", b" a ")]
    + [("[0x41]", b"[0x41]"), ("本", "本".encode()), ("", b"")],
)
def test_a_piece_of_sentencepiece_is_a_byte_or_text_with_spaces(piece, expected):
    assert published.all_bytes(METASPACE, {piece: 0}, set(), set(), "file") == [expected]


def test_special_tokens_have_no_bytes_and_added_ones_their_text():
    ids = {"Ġa": 0, "<s>": 1, "Ġadded": 2, "本": 5}
    found = published.all_bytes(BYTE_LEVEL, ids, {1}, {1, 2}, "file")
    # 本 is no letter for a byte, so it stands for itself; 3 and 4 are no tokens
    assert found == [b" a", b"", "Ġadded".encode(), b"", b"", "本".encode()]


@pytest.mark.parametrize("decoder", [None, {"type": "WordPiece"}])
def test_a_decoder_that_is_not_known_is_refused(decoder):
    with pytest.raises(UserError, match="file: a decoder of .* is not known; known are ByteLevel and Metaspace"):
        published.all_bytes({"decoder": decoder}, {"a": 0}, set(), set(), "file")
