"""Which encoding the bytes of a file are in."""

import dataclasses
import re
import subprocess

import pytest
import webencodings
import webencodings.labels
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.document import Raw
from tpullm.corpus.files import encodings

SOSEKI = "吾輩は猫である。名前はまだ無い。"


OTHERS = {
    "WINDOWS-1250": "Příliš žluťoučký kůň úpěl ďábelské ódy. Dnes ráno svítilo slunce a na stole ležela kniha.\n",
    "WINDOWS-1251": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n",
    "KOI8-R": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n",
    "MACINTOSH": "Où étiez-vous hier après-midi ? La fenêtre était fermée, et le garçon mangeait des pâtes.\n",
    "GB18030": "我喜欢吃苹果。今天天气很好，我们一起去公园散步吧。\n",
    "BIG5": "我喜歡吃蘋果。今天天氣很好，我們一起去公園散步吧。\n",
    "EUC-KR": "나는 사과를 먹는 것을 좋아한다. 오늘은 날씨가 아주 좋다.\n",
}


@pytest.mark.parametrize("charset", OTHERS)
def test_what_is_not_surely_known_is_not_guessed_and_the_hint_converts_it(charset, tmp_path):
    data = OTHERS[charset].encode(encodings._CODECS.get(charset, charset)) * 20
    assert encodings.decode_text(data) is None
    found = re.search(r"iconv -f (\S+) -t UTF-8", encodings.not_decoded(data))
    (tmp_path / "old.txt").write_bytes(data)
    command = ["iconv", "-f", found[1], "-t", "UTF-8", tmp_path / "old.txt"]
    assert subprocess.run(command, check=True, capture_output=True).stdout.decode() == OTHERS[charset] * 20


WESTERN = {
    "French": "Où étiez-vous hier après-midi ? « La fenêtre était fermée », dit le garçon — il mangeait.\n",
    "German": "Die Vögel saßen müde auf den Bäumen, und für die Gäste gab es süße Brötchen mit Käse.\n",
    "Spanish": "¿Dónde está el niño? Mañana por la mañana iremos a la montaña con mi tía y su compañero.\n",
    "Swedish": "Flickan gick över ån för att köpa ägg och bröd till sin mormor på den lilla ön i havet.\n",
}


@pytest.mark.parametrize("language", WESTERN)
def test_a_western_text_in_the_old_encoding_of_windows_is_read(language):
    text = WESTERN[language]
    for repeated in (1, 20):
        assert encodings.decode_text(text.encode("cp1252") * repeated) == Raw(text * repeated, encoding="windows-1252")


def test_japanese_has_a_fifth_of_hiragana_and_hardly_any_half_width_katakana():
    for text in ("本本本本か、。", "か" * 19 + "ｱ"):
        assert encodings.decode_japanese(text.encode("cp932")) == Raw(text, "ja", encoding="Shift_JIS")
    for text in ("本本本本本か", "か" * 18 + "ｱ", "。。"):
        assert encodings.decode_japanese(text.encode("cp932")) is None


@pytest.mark.parametrize("charset", encodings.JAPANESE_CHARSETS)
def test_the_encodings_are_tried_in_an_order_that_tells_them_apart(charset):
    found = Raw(SOSEKI, "ja", encoding=encodings.JAPANESE_CHARSETS[charset])
    assert encodings.decode_text(SOSEKI.encode(charset)) == found
    page = f"<html><body class=long><p>{SOSEKI}</p></body></html>"  # most letters are markup
    assert encodings.decode_html(page.encode(charset)) == page
    text = ("English before it.\n" * 100 + SOSEKI * 200) * 15  # of a large file a sample decides, and all is read
    assert encodings.decode_text(text.encode(charset)) == dataclasses.replace(found, text=text)
    assert encodings.decode_text(text.encode(charset) + b"\xff\xff\xff") is None or charset.startswith("utf-16")


@pytest.mark.parametrize("charset", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize("text", ["Only a plain text.\r\nNo more.\n\r\n", SOSEKI])
def test_utf_16_is_known_by_its_mark_or_else_by_plain_characters(charset, text):
    found = encodings.decode_text(text.encode(charset))
    assert found.text == text.replace("\r\n", "\n")
    assert found.encoding == ("UTF-16" if "16" in charset else "")


@pytest.mark.parametrize("text", ["\x1b[1mBold\x1b[0m on a terminal\n", "a\0b", "ESC $ B is \x1b$B"])
def test_control_characters_alone_are_no_other_encoding(text):
    assert encodings.decode_text(text.encode()) == Raw(text)
    assert encodings.decode_html(text.encode(), "utf-8") == text


def test_a_page_is_read_as_utf8_else_as_its_server_says_else_as_it_says_itself():
    page = '<meta charset="euc-jp">本'
    assert encodings.decode_html(page.encode()) == page
    assert encodings.decode_html(page.encode("cp932"), "shift_jis") == page
    assert encodings.decode_html(page.encode("euc-jp")) == page
    far = " " * 4096 + page  # a declaration has to stand at the beginning
    assert encodings.decode_html(far.encode("euc-jp")) is encodings.decode_html(b"\x96\x7b", "base64") is None
    near = far[len('<meta charset="euc-jp">') :]
    assert encodings.decode_html(near.encode("euc-jp")) == near
    assert encodings.decode_html(page.encode("utf-16"), "shift_jis") == page
    page = '<meta charset="iso-2022-jp">本'  # looks like ASCII, and is too short to be known by its letters
    assert encodings.decode_html(page.encode("iso2022_jp")) == page
    assert encodings.decode_html("本 a".encode("utf-16-le"), "utf-16le") == "本 a"
    page = '<meta charset="shift_jis">' + SOSEKI * 100  # it may have a few broken characters and no more
    data = page.encode("cp932")
    assert encodings.decode_html(data[:-2] + b"\xff" + data[-2:]) == page[:-1] + "\ufffd" + page[-1:]
    assert encodings.decode_html(data + b"\xff" * 9) is None


DECLARED = {
    '<meta charset="Shift_JIS">': "shift_jis",
    "<META CHARSET=euc-jp>": "euc-jp",
    '<meta http-equiv="Content-Type" content="text/html; charset=iso-2022-jp">': "iso-2022-jp",
    "<meta http-equiv=content-type content='text/html;charset = x-sjis'/>": "x-sjis",
    '<?xml version="1.0" encoding="EUC-JP"?><html>': "euc-jp",
    '<!-- <meta charset="koi8-r"> --><meta charset="big5">': "big5",
    '<!-- <meta charset="koi8-r">': "",
    "<p>charset=koi8-r": "",
    '<meta charset="utf-16">': "utf-8",
    '<meta charset="x-user-defined">': "windows-1252",
}


def test_what_a_page_declares():
    assert {head: encodings.declared_charset(head.encode()) for head in DECLARED} == DECLARED


SAMPLES = {
    **dict.fromkeys("iso-8859-2 iso-8859-4 iso-8859-10 iso-8859-13 windows-1250 windows-1257".split(), "čé"),
    **dict.fromkeys("iso-8859-5 koi8-r windows-1251 x-mac-cyrillic ibm866".split(), "Ёжик"),
    "big5": "我喜歡吃蘋果。",
    "euc-jp": "日本語の①と㈱と～、ｱｲｳ",
    "euc-kr": "나는 사과를 먹는다. 똠방각하",
    "gb18030": "我喜欢吃苹果。🙂",
    "gbk": "我喜欢吃苹果。",
    "iso-2022-jp": "日本語の①と㈱",
    "koi8-u": "Ґанок і їжак",
    "shift_jis": "日本語の①と㈱と～、ｱｲｳ",
    "windows-874": "ภาษาไทย",
    "macintosh": "Où",
    **dict.fromkeys("iso-8859-8 iso-8859-8-i windows-1255".split(), "שלום"),
    **dict.fromkeys("iso-8859-6 windows-1256".split(), "مرحبا"),
    **dict.fromkeys("iso-8859-7 windows-1253".split(), "Γειά"),
    "windows-1258": "Đông",
    "x-user-defined": "\uf7e9",
}


def in_charset(text, name):
    """`text` in an encoding of the standard, whose two Japanese ones Python cannot write."""
    if name not in ("euc-jp", "iso-2022-jp"):
        return webencodings.encode(text, name)
    pairs = {character: pair for pair, character in reversed(encodings.windows_characters().items())}
    if name == "euc-jp":
        return b"".join(pairs.get(letter) or b"\x8e" + letter.encode("cp932") for letter in text)
    return b"\x1b$B" + b"".join(bytes(byte & 0x7F for byte in pairs[letter]) for letter in text) + b"\x1b(B"


def test_every_label_of_the_web_is_understood():
    for label, name in webencodings.labels.LABELS.items():
        if name == "replacement":  # refused by browsers
            assert encodings.decode_html(b"~{<:Ky2;~}", label) is None
        else:
            text = SAMPLES.get(name, "Où é")
            assert encodings.decode(in_charset(text, name), f" {label.upper()} ") == text


def test_each_character_of_windows_is_read_in_both_old_encodings():
    text = "".join(sorted(set(encodings.windows_characters().values())))
    for charset in ("euc-jp", "iso-2022-jp"):
        assert encodings.decode(in_charset(text, charset), charset) == text
    # ISO-2022-JP has four sets of characters, and each line ends its pairs.
    data = "日本\n".encode("iso2022_jp") + b"\x1b(J\\~\x1b(I1\x1b(B\\~ \x1b$@F|\x1b$BK\\\r\n\x1b(Bx"
    assert encodings.decode(data, "iso-2022-jp") == "日本\n¥‾ｱ\\~ 日本\nx"


@given(st.binary())
def test_no_bytes_break_an_encoding(data):
    for name in [*SAMPLES, "utf-16le", "no-such"]:
        text = encodings.decode(data, name)
        assert text is None or "\r" not in text
        encodings.decode_html(data, name)
    encodings.decode_text(data)


def test_an_encoding_is_what_browsers_mean():
    assert encodings.decode(b"\xa1\xc1\xa1\xdd", "euc-jp") == "～－"  # the wave dash and the minus of Windows
    assert encodings.decode("🙂é".encode("gb18030"), "gbk") == "🙂é"
    assert encodings.decode("日".encode("utf-16-le"), "UTF-16") == "日"
    assert encodings.decode(b"\x93\x94", "iso-8859-1") == "“”"
    assert encodings.decode("日本".encode("iso2022_jp") + "é".encode(), "iso-2022-jp") is None


@pytest.mark.parametrize("text", ["我喜欢吃苹果，今天天气很好。" * 20, "나는 사과를 먹는다." * 20, "本"])
def test_a_byte_order_mark_is_believed_of_text_alone(text):
    assert encodings.decode_text(text.encode("utf-16")) == Raw(text, encoding="UTF-16")
    assert encodings.decode_text(b"\xff\xfe\x00broken" * 30) is None
