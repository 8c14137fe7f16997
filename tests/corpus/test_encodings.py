"""Which encoding the bytes of a file are in."""

import pytest

from tpullm.corpus import encodings


def test_a_charset_that_does_not_exist_is_not_used():
    assert encodings.decode_html("本".encode("shift_jis"), "no-such-charset") is None
    assert encodings.decode_html("本".encode("shift_jis"), "base64") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("本か" * 9, True),
        ("本本本本か", True),  # a fifth of the letters
        ("本本本本本か", False),
        ("か" * 19 + "ｱ", True),  # a twentieth
        ("か" * 18 + "ｱ", False),
        ("か、。" * 9, True),  # marks are no letters
        ("。。", False),  # no letter, no sign of Japanese
    ],
)
def test_japanese_has_a_fifth_of_hiragana_and_hardly_any_half_width_katakana(text, found):
    assert (encodings.decode_japanese(text.encode("cp932")) == (text, "Shift_JIS")) == found


def test_the_encodings_are_tried_in_an_order_that_tells_them_apart():
    text = "吾輩は猫である。名前はまだ無い。"
    for charset, name in encodings.JAPANESE_CHARSETS.items():
        assert encodings.decode_japanese(text.encode(charset)) == (text, name)


def test_a_page_is_read_as_utf8_else_as_its_server_says_else_as_it_says_itself():
    page = '<meta charset="euc-jp">本'
    assert encodings.decode_html(page.encode()) == page
    assert encodings.decode_html(page.encode("cp932"), "shift_jis") == page
    assert encodings.decode_html(page.encode("euc-jp")) == page
    far = " " * 4096 + page  # a declaration has to stand at the beginning
    assert encodings.decode_html(far.encode("euc-jp")) is None
    near = far[len('<meta charset="euc-jp">') :]
    assert encodings.decode_html(near.encode("euc-jp")) == near


def test_line_ends_become_one_kind():
    assert encodings.unix_lines("a\r\nb\rc\n\r\n") == "a\nb\nc\n\n"


@pytest.mark.parametrize(
    ("text", "found"), [("\ud7ff\ue000🙂", False), ("a\ud800", True), ("\udfffb", True), ("", False)]
)
def test_half_of_a_surrogate_pair_is_found(text, found):
    assert encodings.has_surrogate(text) == found
