"""Which encoding the bytes of a file are in."""

from tpullm.corpus import encodings


def test_a_charset_that_does_not_exist_is_not_used():
    assert encodings.decode_html("本".encode("shift_jis"), "no-such-charset") is None
    assert encodings.decode_html("本".encode("shift_jis"), "base64") is None
