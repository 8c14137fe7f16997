import time

from hypothesis import given
from hypothesis import strategies as st

from tpullm.engine.request import Meter, until_stop_text, whole_characters


@given(st.text())
def test_parts_are_whole_characters_and_make_the_text(small_tokenizer, text):
    parts = list(whole_characters(small_tokenizer, small_tokenizer.encode(text)))
    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts) or "\ufffd" in text


def test_a_broken_character_reads_as_in_decode(small_tokenizer):
    ids = small_tokenizer.encode("鸚")[:2]
    assert "".join(whole_characters(small_tokenizer, ids)) == small_tokenizer.decode(ids)


@given(st.text("ab。"), st.lists(st.text("ab。", min_size=1, max_size=3), max_size=3), st.integers(1, 4))
def test_until_is_the_text_before_the_first_stop(text, stops, size):
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    places = [text.find(stop) for stop in stops if stop in text]
    found = "".join(until_stop_text(parts, stops))
    # A stop may end while an earlier, longer one is still incomplete: the text is then cut at the one seen first.
    assert text.startswith(found)
    if not places:
        assert found == text
    else:
        assert min(places) <= len(found) <= max(places)


def test_what_may_become_a_stop_waits():
    assert list(until_stop_text(["a", "b", "c"], ["bd"])) == ["a", "", "bc", ""]


def test_the_meter_counts_tokens_and_their_rate_after_the_second(monkeypatch):
    clock = iter([0.0, 60.0, 61.0, 63.0])  # a minute of compiling, then 2 tokens in 3 seconds
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    meter, rates = Meter(), []
    assert [token for token in meter.watch([5, 6, 7, 8]) if not rates.append(meter.tokens_per_second)] == [5, 6, 7, 8]
    assert meter.ids == [5, 6, 7, 8] and rates == [None, None, 1.0, 2 / 3]
