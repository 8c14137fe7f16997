"""A tokenizer learns from passages of a text, and from every line of them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.tokenizer import trainer

LINES = st.text(st.sampled_from("aé本🙂\u2585 "), max_size=60).map(lambda line: line * 90)
DOCUMENTS = st.lists(LINES, max_size=8).map("\n".join)
BYTES = 4000  # SentencePiece drops lines of more than 4,192


def size(text):
    return len(text.encode())


@settings(max_examples=40)
@given(text=DOCUMENTS)
def test_the_passages_of_a_text_are_the_text_in_pieces_as_long_as_they_may_be(text):
    found = list(trainer.passages(text))
    assert "".join(found) == text and all(found)
    for passage, after in zip(found, found[1:], strict=False):
        first = after.splitlines(keepends=True)[0]
        assert size(passage) + size(first) > BYTES  # the next line, or its first part, had no room
    assert all(size(passage) <= BYTES for passage in found)
    assert len(found) <= trainer.most(text)


@settings(max_examples=40)
@given(text=DOCUMENTS)
def test_the_lines_of_a_passage_are_all_of_it_but_what_the_trainer_keeps_for_itself(text):
    found = list(trainer.passage_lines(text))
    assert all(0 < size(line) <= BYTES and "\n" not in line for line in found)
    assert "".join(found) == text.replace("\u2585", "").replace("\n", "")
    whole = [line for line in text.replace("\u2585", "").split("\n") if 0 < size(line) <= BYTES]
    assert [line for line in found if line in whole] == whole


@given(line=LINES.filter(lambda line: "\u2585" not in line))
def test_a_line_is_cut_only_where_the_next_character_has_no_room(line):
    parts = list(trainer.passage_lines(line))
    for part, after in zip(parts, parts[1:], strict=False):
        assert size(part) <= BYTES < size(part + after[0])


def test_a_text_has_few_passages_more_than_the_bytes_need():
    """A document whose keys are all too high is not cut, so the number of keys should be close."""
    text = "".join(f"{number}".ljust(99) + "\n" for number in range(400))
    assert len(list(trainer.passages(text))) == 10 and trainer.most(text) == 21
    assert trainer.most("") == trainer.most("a" * 1999) == 1
