"""What a page's owner says is heard; what is said elsewhere, or of something else, is not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.corpus.dedup import text_hash
from tpullm.corpus.document import Raw
from tpullm.corpus.files import pages
from tpullm.corpus.filters import verdicts
from tpullm.recipe.schema import CorpusConfig, Source

SOURCE = Source("s", "text", licence="CC-BY-4.0")


def page(head):
    return f"<!DOCTYPE html><html><head>{head}</head><body><p>Text.</p></body></html>"


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ('<meta name="robots" content="noai">', "noai"),
        ('<META CONTENT="index, NOAI,noimageai" NAME="Robots" />', "noai"),
        ("<meta name=robots content=noai>", "noai"),
        ("<meta\n  name='robots'\n  content='noindex, noimageai'\n>", "noimageai"),
        ('<meta name="GPTBot" content="noai">', "noai"),
        ('<meta http-equiv="X-Robots-Tag" content="noai">', "noai"),
        ('<meta name="robots" content="&#110;oai">', "noai"),
        ('<script>"<meta name=robots content=noai>"</script>', ""),
        ('<meta name="tdm-reservation" content="1">', "tdm-reservation"),
        ('<meta name="tdm-reservation" content=" 1 "><meta name="robots" content="noimageai">', "noimageai"),
        ('<meta name="tdm-reservation" content="0">', ""),
        ('<meta name="tdm-policy" content="https://example.org/policy">', ""),
        ('<meta name="keywords" content="noai, art">', ""),
        ('<meta name="description" content="What tdm-reservation and noai mean">', ""),
        ('<!-- <meta name="robots" content="noai"> -->', ""),
        ('<!-- old --><meta name="robots" content="noai"><!-- -->', "noai"),
        ('<!-- <meta name="robots" content="noai">', ""),  # browsers read no tag in a comment that is not closed
        ("<p>noai tdm-reservation</p>", ""),
        ("", ""),
    ],
)
def test_a_reservation_in_a_page_is_heard(head, reason):
    assert pages.extract(page(head), [])[1] == reason


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([("X-Robots-Tag", "noai")], "noai"),
        ([("x-robots-tag", "noarchive"), ("x-robots-tag", "otherbot: noindex, noimageai")], "noimageai"),
        ([("X-Robots-Tag", "GPTBot: noai")], "noai"),
        ([("X-Robots-Tag", "unavailable_after: 25 Jun 2010 15:00:00 PST")], ""),
        ([("TDM-Reservation", "1")], "tdm-reservation"),
        ([("tdm-reservation", "0")], ""),
        ([("Server", "noai"), ("tdm-policy", "1")], ""),
    ],
)
def test_a_reservation_in_a_header_is_heard(headers, reason):
    assert pages.extract(page(""), headers)[1] == reason


@pytest.mark.parametrize(("own", "header", "reason"), [("0", "1", ""), ("1", "0", "tdm-reservation")])
def test_the_page_itself_goes_before_the_header(own, header, reason):
    tag = f'<meta name="tdm-reservation" content="{own}">'
    assert pages.extract(page(tag), [("tdm-reservation", header)])[1] == reason


@settings(max_examples=30)
@given(st.text("<>!-= \"'/metanoairobots01\n"), st.text())
def test_any_page_is_read(head, value):
    _, reason = pages.extract(head, [(head, value), ("x-robots-tag", value)])
    assert reason in ("", "noai", "noimageai", "tdm-reservation")


@pytest.mark.parametrize(
    ("reserved", "reason"),
    [("noai", "reserved (noai)"), ("tdm-reservation", "reserved (tdm-reservation)"), ("no!", "reserved"), ("", "")],
)
def test_what_is_reserved_is_left_out(reserved, reason):
    assert verdicts.left_out(Raw("a", reserved=reserved), "a", SOURCE, CorpusConfig()) == reason


def test_a_document_has_the_licence_of_its_source_unless_it_has_its_own():
    config = CorpusConfig(licences=["CC-BY-4.0"])
    assert verdicts.left_out(Raw("a"), "a", SOURCE, config) == ""
    assert verdicts.left_out(Raw("a", licence="CC-BY-NC-4.0"), "a", SOURCE, config) == "licence not allowed"


def test_a_text_is_opted_out_by_its_hash_as_it_was_read_and_as_it_would_be_trained_on(tmp_path):
    listed = tmp_path / "out.txt"
    listed.write_text(text_hash("as read") + "\n" + text_hash("cleaned").upper() + "\nexample.org\n")
    config = CorpusConfig(opted_out=[str(listed)])
    assert verdicts.left_out(Raw("as read"), "x", SOURCE, config) == "opted out by hash"
    assert verdicts.left_out(Raw("x"), "cleaned", SOURCE, config) == "opted out by hash"
    assert verdicts.left_out(Raw("x"), "x", SOURCE, config) == ""
    assert verdicts.left_out(Raw("x", url="http://example.org"), "x", SOURCE, config) == "opted out by domain"
