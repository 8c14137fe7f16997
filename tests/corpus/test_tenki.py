"""What is true of tenki: its language, its exact probabilities and entropy, and the questions about it."""

import hashlib
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import sudachipy

from tpullm.corpus import tenki
from tpullm.corpus.question import messages
from tpullm.corpus.tenki import blanks, conversation_set, distribution
from tpullm.corpus.tenki import vocabulary as w
from tpullm.corpus.tenki.distribution import derivation, sentences
from tpullm.corpus.tenki.grammar import MODES, Context, Kind, advance, closing, closing_probability, outline
from tpullm.corpus.tenki.wording import wording
from tpullm.system.errors import UserError

DOCUMENTS = list(tenki.documents(5_000, seed=11))
QUESTIONS = tenki.split_questions(0.0, seed=0)[0]
KINDS = [question.kind for question in QUESTIONS]
total = math.fsum


def begins(text: str) -> float:
    """The log-probability that a document begins with these sentences."""
    return derivation(text)[0]


def contexts_of(text: str) -> list[Context]:
    """The context before each sentence."""
    parsed = derivation(text)[1]
    before = [sentence.said for sentence in parsed[:-1]]
    return list(itertools.accumulate(before, advance, initial=Context(parsed[0].mode)))


def nexts(context: Context) -> list[str]:
    """Every sentence that may follow."""
    end = closing_probability(context)
    outlines = [*(outline(context).outcomes if end < 1 else ()), *([closing(context)] if end > 0 else [])]
    return ["".join(words) for said in outlines for words in wording(said, context.mode).outcomes]


OUTSIDE = (
    "",
    "今日は",
    "リンゴ。",
    "今日はいい天気ですね。本を読んだ。",  # the style changes
    "今日はいい天気ですね。本を読みました。",  # the tense changes
    "私はリンゴを読むのが好きです。",
    "昨日、本を読みました。その本は甘かったです。",
    "昨日、本を読みました。そのリンゴは甘かったです。",
    "今日は雨ですね。だから、帽子をかぶります。",
    "今日は雨ですね。本を読みます。今日は雨ですね。",  # the weather is told once
)


def test_outside_the_language():
    assert {tenki.log_probability(text) for text in OUTSIDE} == {begins(text) for text in OUTSIDE} == {-math.inf}


RECORDED = {1: "16a96199f3eb68489ca5123725265b450ccd6c0a5eb3ff1509ce30c6ab2443a9"}


def test_the_version_stands_for_the_documents():
    """Documents that change need a new `tenki.VERSION`, or finished runs keep the old ones; record its hash here."""
    found = hashlib.sha256("\n".join(DOCUMENTS).encode()).hexdigest()
    assert {tenki.VERSION: found} == RECORDED
    assert list(tenki.documents(50, seed=11)) == DOCUMENTS[:50] != list(tenki.documents(50, seed=12))
    lengths = {text.count("。") for text in DOCUMENTS}
    assert (min(lengths), max(lengths)) == (3, 7)
    assert not any(character.isspace() for text in DOCUMENTS for character in text)


def test_next_sentences_sum_to_one_after_any_text():
    contexts = {context for text in DOCUMENTS[:500] for context in contexts_of(text)}
    assert len(contexts) > 300
    for context in contexts:
        assert total(outline(context).probability.values()) == pytest.approx(1.0, abs=1e-12)
    for mode in MODES.outcomes:
        for said in distribution.outlines(mode):
            assert total(wording(said, mode).probability.values()) == pytest.approx(1.0, abs=1e-12)


def test_a_prefix_is_the_sum_of_its_continuations():
    firsts = [begins(sentence) for mode in MODES.outcomes for sentence in nexts(Context(mode))]
    assert total(map(math.exp, firsts)) == pytest.approx(1.0, abs=1e-12)
    for text, kept in zip(DOCUMENTS[:20], itertools.cycle(range(1, 7)), strict=False):
        prefix = "".join(f"{s}。" for s in text.split("。")[:-1][:kept])
        _, parsed, context = derivation(prefix)
        assert "".join(word for sentence in parsed for word in sentence.words) == prefix
        assert (context is None) == (parsed[-1].said.kind is Kind.CLOSING) == (prefix == text)
        logs = [begins(prefix + sentence) for sentence in nexts(context)] if context else [tenki.log_probability(text)]
        assert total(map(math.exp, logs)) == pytest.approx(math.exp(begins(prefix)), rel=1e-10)


def test_the_surface_determines_the_derivation():
    surfaces = ["".join(sentence.words) for sentence in sentences()]
    assert len(set(surfaces)) == len(surfaces)
    assert all(surface.count("。") == 1 and surface.endswith("。") for surface in surfaces)
    for mode, other in itertools.product(MODES.outcomes, repeat=2):
        for topic in w.NEXT_TOPIC:
            closings = distribution.closing_sentences(topic, mode)
            assert closings.keys().isdisjoint(surfaces)
            assert len(closings) == len(wording(distribution.Outline(Kind.CLOSING, topic), mode).probability)
            assert mode == other or closings.keys().isdisjoint(distribution.closing_sentences(topic, other))


def test_entropy_is_the_mean_of_minus_log_probability():
    minus_logs = -np.array([tenki.log_probability(text) for text in DOCUMENTS[:1500]])
    error = minus_logs.std() / math.sqrt(len(minus_logs))
    assert abs(minus_logs.mean() - tenki.entropy()) < 4 * error
    assert error < 0.25


def test_entropy_by_brute_force_on_a_short_language(monkeypatch):
    """Documents of exactly two sentences are few enough to list: entropy is then summed over every one of them."""
    monkeypatch.setattr(w, "CLOSING_AT", {1: 0.0, 2: 1.0})
    distribution.entropy.cache_clear()
    try:
        chain_rule = tenki.entropy()
        listed = []
        for first in [s for s in sentences() if s.said in outline(Context(s.mode)).probability]:
            seconds = nexts(advance(Context(first.mode), first.said))
            listed += [tenki.log_probability("".join(first.words) + second) for second in seconds]
    finally:
        distribution.entropy.cache_clear()
    assert total(map(math.exp, listed)) == pytest.approx(1.0, abs=1e-10)
    assert chain_rule == pytest.approx(-total(math.exp(log) * log for log in listed), abs=1e-9)


@pytest.mark.parametrize("text", tenki.BLANKS)
def test_blank_is_the_normalized_probability_of_the_filled_texts(text):
    answer = tenki.blank(text)
    assert total(answer.values()) == pytest.approx(1.0, abs=1e-12)
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    logs = {word: begins(text.replace("【?】", word)) for word in blanks.words()}
    assert {word for word, log in logs.items() if log > -math.inf} == set(answer)
    for (one, p), (other, q) in itertools.pairwise(answer.items()):
        assert logs[one] - logs[other] == pytest.approx(math.log(p / q), abs=1e-9)


def test_blank_is_one_word_and_no_part_of_one():
    assert set(tenki.blank("私は本を読むのが【?】です。")) == {"好き", "大好き"}
    assert tenki.blank("私はリンゴを【?】のが好きです。") == {"食べる": 1.0}
    for text, told in (
        ("私は本を読むのが大【?】です。", "no word"),
        ("今日はいい天気ですね。", "exactly once"),
        ("【?】は【?】です。", "exactly once"),
    ):
        with pytest.raises(UserError, match=told):
            tenki.blank(text)
    # だ fits before った as letters, but the word there is だっ.
    told = next(text for text in DOCUMENTS if text.endswith("一日だった。")).removesuffix("だった。")
    with pytest.raises(UserError, match="no word"):
        tenki.blank(told + "【?】った。")
    assert tenki.blank(told + "【?】た。") == {"だっ": 1.0}


def test_swaps_are_all_ordered_pairs_with_different_verbs():
    swaps = tenki.swaps()
    verbs = {name: thing.verb.dictionary for name, thing in w.THINGS.items()}
    pairs = [(a, b) for a in verbs for b in verbs if verbs[a] != verbs[b]]
    assert [(swap.object, swap.other_object) for swap in swaps] == pairs
    assert len(pairs) > 500
    assert tenki.Swap("私はリンゴを", "リンゴ", "本", "私は本を", "食べる", "読む") in swaps


def test_words_end_where_sudachi_words_end():
    """So that a tokenizer whose pieces keep to SudachiPy's shortest units never has to cut across a word."""
    tokenizer = sudachipy.Dictionary(dict="small").tokenizer(mode=sudachipy.SplitMode.A)
    for text in DOCUMENTS[:200]:
        for sentence in derivation(text)[1]:
            surface = "".join(sentence.words)
            ends = set(itertools.accumulate(len(m.surface()) for m in tokenizer.tokenize(surface)))
            assert set(itertools.accumulate(map(len, sentence.words))) <= ends, surface


def test_held_out_questions_are_combinations_never_asked():
    tune, held_out = tenki.split_questions(0.2, seed=0)
    assert (tune, held_out) == tenki.split_questions(0.2, seed=0)
    assert (tune, held_out) != tenki.split_questions(0.2, seed=1)
    assert sorted(map(repr, [*tune, *held_out])) == sorted(map(repr, QUESTIONS))
    assert tenki.split_questions(1.0, seed=0) == ([], QUESTIONS)
    assert {q.kind for q in tune} == {q.kind for q in held_out}
    for kind, particle in (("knowledge", "を"), ("liking", "が")):
        asked, unasked = (
            {name for q in part if q.kind == kind for name in w.THINGS if f"{name}{particle}" in q.question}
            for part in (tune, held_out)
        )
        assert asked.isdisjoint(unasked) and len(unasked) == round(0.2 * len(w.THINGS))
    assert 0.15 < len(held_out) / len(QUESTIONS) < 0.25


def test_the_questions_are_those_of_earlier_versions():
    """What `evaluate` says of two models can be compared only if both were asked the same."""
    said = repr([(q.question, q.answers, q.kind) for part in tenki.split_questions(0.2, seed=1) for q in part])
    digest = hashlib.sha256(said.encode()).hexdigest()
    assert digest == "b5f049ea468d6b052ac49665bfaf92842fd53086bf08390679b6232d0d29f6f9"
    asked = {"role": "user", "content": "リンゴをどうしますか。"}
    said = {"role": "assistant", "content": "リンゴを食べます。"}
    assert messages(QUESTIONS[:1]) == [asked, said]
    for fraction in (-0.1, 1.1):
        with pytest.raises(UserError, match="held_out_fraction"):
            tenki.split_questions(fraction, seed=0)


def plain(turns):
    """The turns as they are in the set of questions, however they end."""
    return [(turn.question.rstrip("。？"), turn.answers) for turn in turns]


def test_conversations_have_every_question_several_times_and_each_kind_often():
    talks = list(tenki.conversations(QUESTIONS, seed=0))
    assert talks == list(tenki.conversations(QUESTIONS, seed=0)) != list(tenki.conversations(QUESTIONS, seed=1))
    turns = [turn for talk in talks for turn in talk]
    times, known = Counter(plain(turns)), {turn: kind for turn, kind in zip(plain(QUESTIONS), KINDS, strict=True)}
    assert min(times[turn] for turn, kind in known.items() if kind != "unknown") == conversation_set.LEAST_TIMES
    kinds = Counter(turn.kind for turn in turns)
    assert all(kinds[kind] >= conversation_set.LEAST_OF_A_KIND for kind in {*KINDS} - {"unknown"})
    assert 0.1 < kinds["unknown"] / len(turns) < 0.25 and 0.05 < kinds["greeting"] / len(turns) < 0.2
    assert {len(talk) for talk in talks} >= {1, 2, 3, 4, 5}
    assert {question[-1] in "。？" for turn in turns for question in [turn.question]} == {True, False}


def test_conversations_of_a_given_length_are_as_long():
    talks = list(tenki.conversations(QUESTIONS, seed=0, turns=20))
    assert {len(talk) for talk in talks} == {20} and len(talks) > 50


def test_a_conversation_fits_the_context_of_the_quickstart(tmp_path):
    """With the bytes of each character that no text of tenki has, and four marks a turn, in 256 tokens."""
    every = set("".join(DOCUMENTS))
    for talk in tenki.conversations(QUESTIONS, seed=0):
        said = [text for turn in talk for text in (turn.question, turn.answers[0])]
        known = sum(character in every for text in said for character in text)
        unknown = sum(len(c.encode()) for text in said for c in text if c not in every)
        assert known / 1.4 + unknown + 4 * len(talk) < 256, "tenki has 1.4 characters a token or more"


def test_what_no_text_answers_is_asked_of_other_words_too():
    asked = [question for question in QUESTIONS if question.kind == "unknown"]
    assert {question.answers for question in asked} == {("すみません、分かりません。",)}
    assert not {question.question for question in asked} & {q.question for q in QUESTIONS if q.kind != "unknown"}
    about = {name for name in w.THINGS if any(question.question.startswith(name) for question in asked)}
    assert about == set(w.THINGS), "a known word does not say that there is an answer"
    casual = [question for part in tenki.split_casual(0.2, seed=0) for question in part]
    assert {question.kind for question in casual} == {*KINDS} - {"unknown"}
