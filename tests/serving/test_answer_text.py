from hypothesis import given
from hypothesis import strategies as st

from tpullm.engine.request import Token, until_stop_text, whole_characters
from tpullm.serving.answer_text import AnswerText, Part, joined

STOP = 319  # `<|im_end|>` of the tests' tokenizer


def written(tokenizer, ids, stops=(), ends="length") -> list[Part]:
    """The parts of an answer, up to the one that ends it."""
    text, parts = AnswerText(tokenizer, tuple(stops), (STOP,)), []
    for number, token in enumerate(ids):
        parts.append(text.add(Token(token, -1.0, (), ends if number == len(ids) - 1 else "")))
        if parts[-1].ends:
            break
    return parts


@given(st.text("ab猫🐈。", min_size=1), st.lists(st.text("ab猫。", min_size=1, max_size=3), max_size=3))
def test_the_text_is_that_before_the_first_stop(chat_tokenizer, text, stops):
    ids = chat_tokenizer.encode(text)
    found = joined(written(chat_tokenizer, ids, stops))
    assert found.text == "".join(until_stop_text(whole_characters(chat_tokenizer, ids), stops))
    assert found.ends == ("stop" if any(stop in text for stop in stops) else "length")
    assert [token.id for token, _ in found.tokens] == ids[: len(found.tokens)]
    assert all(place < len(found.text) for _, place in found.tokens)
    if found.ends == "length":
        assert len(found.tokens) == len(ids)


@given(st.text("ab猫🐈。", min_size=1))
def test_a_token_comes_with_its_text_and_its_place(chat_tokenizer, text):
    ids, told = chat_tokenizer.encode(text), ""
    for part in written(chat_tokenizer, ids):
        told += part.text
        assert all(place < len(told) for _, place in part.tokens)
        assert "\ufffd" not in part.text
    for token, place in joined(written(chat_tokenizer, ids)).tokens:
        held = chat_tokenizer.bytes_of(token.id)
        whole = held.decode(errors="ignore")
        assert text[place:].startswith(whole) or not text.encode()[len(text[:place].encode()) :].startswith(held)


def test_the_token_that_ends_a_text_is_not_in_it(chat_tokenizer):
    parts = written(chat_tokenizer, [*chat_tokenizer.encode("ab"), STOP], ends="stop")
    found = joined(parts)
    assert (found.text, found.ends) == ("ab", "stop") and STOP not in [token.id for token, _ in found.tokens]


def test_what_may_become_a_stop_waits_with_its_token_and_comes_at_the_end(chat_tokenizer):
    ids = chat_tokenizer.encode("xa")
    assert len(ids) == 2
    first, second = written(chat_tokenizer, ids, ["ab"])
    assert (first.text, second.text) == ("x", "a") and [len(part.tokens) for part in (first, second)] == [1, 1]
    text = AnswerText(chat_tokenizer, ("ab",), (STOP,))
    text.add(Token(ids[0], -1.0))
    assert not text.add(Token(ids[1], -1.0))


def test_half_a_character_at_the_end_is_told(chat_tokenizer):
    half = chat_tokenizer.encode("🐈")[:1]
    assert joined(written(chat_tokenizer, half)).text == "\ufffd"
