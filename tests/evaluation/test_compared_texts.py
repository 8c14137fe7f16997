"""Texts are read as documents, and their likelihoods in windows are those of each token scored alone."""

import json

import numpy as np
import pytest

from tests.evaluation.conftest import Guesses, guess
from tpullm.evaluation import compared_texts
from tpullm.evaluation.compared_texts import LONGEST, STRETCHES, bytes_by_stretch, nats_by_stretch, read_texts
from tpullm.system.errors import UserError


def test_files_folders_and_rows(tmp_path):
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "folder" / "a.txt").write_text("一", "utf-8")
    (tmp_path / "folder" / ".hidden").write_text("x")
    (tmp_path / "folder" / "below" / "b.md").write_text("\ufeff二", "utf-8")
    rows = [{"text": "三"}, {"text": " "}, {"text": "四", "id": 1}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder, file = read_texts([str(tmp_path / "folder"), str(tmp_path / "c.jsonl")], 0)
    assert (folder.name, folder.documents) == ("folder", ("一", "二"))
    assert (file.name, file.documents) == ("c.jsonl", ("三", "四"))
    assert read_texts([str(tmp_path / "c.jsonl")], 1)[0].documents == ("三",)
    assert file.version == read_texts([str(tmp_path / "c.jsonl")], 0)[0].version != folder.version


def test_a_long_text_is_cut_at_a_line(tmp_path):
    text = "a line of text\n" * 3000
    (tmp_path / "novel.txt").write_text(text)
    (novel,) = read_texts([str(tmp_path / "novel.txt")], 0)
    assert "".join(novel.documents) == text and len(novel.documents) == 3
    assert all(len(part) <= LONGEST and part.endswith("\n") for part in novel.documents)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.txt", None, "no such file or folder; correct the name"),
        ("latin.txt", "caf\u00e9".encode("latin-1"), "is not UTF-8; convert the file"),
        ("empty.txt", b" \n", "holds no text; give another one"),
        ("rows.jsonl", b'{"content": "x"}\n', "line 1: its 'text' is None and no text"),
        ("half.jsonl", b'{"text": "\\ud800"}\n', "and no text; each row is a document"),
        ("broken.jsonl", b'{"text": \n', "line 1"),
        ("large.txt", b"0123456789" * 3, "has more text than the"),
        ("large.jsonl", b'{"text": "0123456789"}\n' * 3, "has more text than the"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, monkeypatch, name, content, said):
    monkeypatch.setattr(compared_texts, "MOST_BYTES", 20)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        read_texts([str(tmp_path / name)], 0)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_two_texts_of_one_name_and_a_run_without_documents(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text("x")
    with pytest.raises(UserError, match="two texts are called x.txt"):
        read_texts([str(tmp_path / "a" / "x.txt"), str(tmp_path / "b" / "x.txt")], 0)
    assert compared_texts.held_out_texts(tmp_path, 0) == []


DOCUMENTS = ["本を読みます。", "今日はとてもいい天気ですね。\n" * 9, "リンゴ🍎を食べます。 " * 14]


@pytest.mark.parametrize("has_begin", [True, False])
def test_each_stretch_is_the_sum_of_its_tokens(session, monkeypatch, has_begin):
    """A text is read in windows: they end after the context, then each half a context further.

    Without a token that begins a text, the one that ends a document stands before it.
    """
    tokenizer, context = session.tokenizer, session.context_length
    monkeypatch.setattr(tokenizer, "begin", [tokenizer.bos_id] if has_begin else [])
    found = nats_by_stretch(Guesses(session), DOCUMENTS)
    for own, text in zip(found, DOCUMENTS, strict=True):
        ids, expected, byte = [*(tokenizer.begin or [tokenizer.eos_id]), *tokenizer.encode(text)], np.zeros(5), 0
        for place in range(1, len(ids)):
            steps = max(0, -(-(place - context) // (context // 2)))
            end = min(context + 1 + steps * (context // 2), len(ids))
            stretch = np.searchsorted(STRETCHES, byte, side="right") - 1
            expected[stretch] -= guess(ids[max(0, end - context - 1) : place], [ids[place]])
            byte += len(tokenizer.bytes_of(ids[place]))
        assert own == pytest.approx(expected) and (own > 0).tolist() == (bytes_by_stretch([text])[0] > 0).tolist()
    assert [np.count_nonzero(own) for own in found] == [1, 2, 2]
    assert len(tokenizer.encode(DOCUMENTS[1])) > 2 * context
    assert bytes_by_stretch(["a" * 5000, "あ" * 100]).tolist() == [[256, 768, 3072, 904, 0], [256, 44, 0, 0, 0]]
