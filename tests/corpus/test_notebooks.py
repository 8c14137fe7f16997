"""A notebook is its cells, and subtitles are what is said."""

import json

import pytest

from tests.corpus.desktop_files import read
from tpullm.corpus.document import NOT_READ
from tpullm.corpus.files import opened
from tpullm.corpus.files.desktop import notebooks


def test_a_notebook_is_its_cells_without_what_was_printed(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Text."]},
        {"cell_type": "code", "source": "print(1)", "outputs": [{"text": ["1\n"]}]},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    (tmp_path / "b.ipynb").write_text(json.dumps({"worksheets": [{"cells": [{"input": ["x = ", "2"]}]}]}))
    (tmp_path / "c.ipynb").write_text("[1]")
    raws = read(tmp_path)
    assert [raw.text for raw in raws] == ["# Title\nText.\n\nprint(1)\n", "x = 2\n", ""]
    assert raws[2].dropped == NOT_READ and raws[2].problem.startswith("is no notebook (")


def test_subtitles_lose_their_numbers_times_and_marks(tmp_path):
    times = "00:00:0{},500 --> 00:00:09,000"
    said = [
        f"{n}\n{times.format(n)}\n{text}\n" for n, text in enumerate(["<i>Hello</i>,\nyou.", "Hello, you.", "2001"], 1)
    ]
    (tmp_path / "a.srt").write_text("\ufeff" + "\n".join(said).replace("\n", "\r\n"))
    (tmp_path / "b.vtt").write_text("WEBVTT\n\nNOTE x\n\n00:01.000 --> 00:02.000 align:left\n{\\an8}本を読む。\n")
    assert [raw.text for raw in read(tmp_path)] == ["Hello, you.\n2001\n", "本を読む。\n"]


def test_a_file_that_is_too_large_is_refused_and_not_cut(tmp_path, monkeypatch):
    path = tmp_path / "a.srt"
    path.write_text("1\n00:00:01,500 --> 00:00:09,000\nHello.\n")
    monkeypatch.setattr(notebooks, "MOST_BYTES", path.stat().st_size)
    assert [raw.text for raw in notebooks.subtitles(path)] == ["Hello.\n"]
    monkeypatch.setattr(notebooks, "MOST_BYTES", path.stat().st_size - 1)
    for reader in (notebooks.subtitles, notebooks.notebook):
        with pytest.raises(opened.Unreadable, match="is larger than"):
            list(reader(path))
