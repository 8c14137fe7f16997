"""Without an extension the first bytes say what a file is, and every kind that is not read has a way out."""

import pytest

from tests.corpus.desktop_files import docx, package, paragraph, pdf
from tpullm.corpus.files import kinds

HEADS = {
    b"Plain text, also in French: \xe9t\xe9.\n": "text",
    "日本語\n".encode("utf-16"): "text",
    b"<!DOCTYPE html>\n<html>": "html",
    b"<!-- a comment -->\n<HTML>": "html",
    b"From a@example.com Thu May  2 10:00:00 2024\nSubject: x\n": "mbox",
    b"Return-Path: <a@example.com>\nReceived: from b\n\tby c\n\nText\n": "eml",
    b"Subject: only one line like that\nand text.\n": "text",
    b'{"cells": [], "nbformat": 4}': "ipynb",
    b'[{"text": "x"}]': "json",
    b"1\n00:00:01,000 --> 00:00:02,000\nHello\n": "subtitles",
    b"WEBVTT\n\n": "subtitles",
    b"{\\rtf1\\ansi": "rtf",
    b"\x1f\x8b\x08\x00\x00\x00": "",
    b"\x7fELF\x02\x01\x01\x00\x00\x00": "",
    b"[LINE] Chat history with A\n": "line",
}


@pytest.mark.parametrize("head", HEADS)
def test_the_first_bytes_say_what_a_file_is(head):
    assert kinds.of_content(head) == HEADS[head]


def test_packages_are_told_apart(tmp_path):
    epub = package(tmp_path / "e", {"mimetype": "application/epub+zip", "a": ""}, compression=0)
    odt = package(tmp_path / "o", {"mimetype": "application/vnd.oasis.opendocument.text"}, compression=0)
    made = {"docx": docx(tmp_path / "d", paragraph("x")), "epub": epub, "odt": odt, "pdf": pdf(tmp_path / "p", [["x"]])}
    made["zip"] = package(tmp_path / "z", {"a.txt": "x"})
    assert {kind: kinds.of_content(path.read_bytes()[: kinds.HEAD_BYTES]) for kind, path in made.items()} == dict(
        zip(made, made, strict=True)
    )


def test_an_extension_of_letters_is_believed():
    assert all(map(kinds.is_believed, (".png", ".md5", ".c++"))) and not any(
        map(kinds.is_believed, ("", ".12", ". Aug"))
    )


def test_every_extension_has_one_meaning_and_every_way_out_says_what_to_do():
    assert not {*kinds.KINDS} & {*kinds.WAYS_OUT} and kinds.way_out(".unknown") == "save its text as .txt"
    assert all(
        any(word in way for word in ("FILE", "IN", "save", "export", "unpack", "IMAGE"))
        for way in kinds.WAYS_OUT.values()
    )
