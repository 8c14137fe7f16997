"""What is true of tenki: its language, its exact probabilities and entropy, and the questions about it."""

import hashlib
import importlib.util
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.corpus import tenki
from tpullm.corpus.tenki import blanks, distribution
from tpullm.corpus.tenki import vocabulary as w
from tpullm.corpus.tenki.grammar import MODES, Kind, advance, closing_probability, outline, start
from tpullm.corpus.tenki.wording import wording
from tpullm.system.errors import UserError

DOCUMENTS = list(tenki.documents(5_000, seed=11))
SEEDS = st.integers(min_value=0, max_value=2**32 - 1)


def document(seed: int) -> str:
    return tenki.sample_document(np.random.default_rng(seed))


def total(probabilities) -> float:
    return math.fsum(probabilities)


def contexts_of(text: str) -> list:
    parsed = tenki.parse(text)
    context = start(parsed[0].mode)
    contexts = [context]
    for sentence in parsed[:-1]:
        context = advance(context, sentence.said)
        contexts.append(context)
    return contexts


@pytest.mark.parametrize(
    "text",
    ["今日はいい天気ですね。", "私はリンゴを食べるのが好きです。", "私は本を読むのが好きです。"]
    + [f"今日はとても{word}天気ですね。" for word in w.WEATHERS if word in w.ADJECTIVES]
    + ["昨日、リンゴを食べました。そのリンゴはとても甘かったです。", "昨日、友達と公園で本を読んだ。"],
)
def test_document_can_start_with(text):
    assert tenki.prefix_log_probability(text) > -math.inf


@pytest.mark.parametrize(
    "text",
    [
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
    ],
)
def test_outside_the_language(text):
    assert tenki.log_probability(text) == -math.inf
    assert text == "" or tenki.prefix_log_probability(text) == -math.inf


def test_documents_are_a_function_of_the_seed():
    assert list(tenki.documents(50, seed=11)) == DOCUMENTS[:50]
    assert list(tenki.documents(50, seed=12)) != DOCUMENTS[:50]


RECORDED = {1: "16a96199f3eb68489ca5123725265b450ccd6c0a5eb3ff1509ce30c6ab2443a9"}


def test_the_version_stands_for_the_documents():
    """Documents that change need a new `tenki.VERSION`, or finished runs keep the old ones; record its hash here."""
    found = hashlib.sha256("\n".join(DOCUMENTS).encode()).hexdigest()
    assert {tenki.VERSION: found} == RECORDED


def test_documents_have_three_to_seven_sentences_and_no_separator():
    lengths = [text.count("。") for text in DOCUMENTS]
    assert (min(lengths), max(lengths)) == (3, 7)
    assert not any(character.isspace() for text in DOCUMENTS for character in text)
    error = np.std(lengths) / math.sqrt(len(lengths))
    assert abs(np.mean(lengths) - tenki.expected_sentences()) < 4 * error


def test_tables_sum_to_one():
    tables = [
        w.WEATHERS,
        w.VERY,
        w.VERY_WEATHER,
        w.FIRST_TOPIC,
        w.FIRST_LIKED_TOPIC,
        w.LINKS,
        w.SUBJECTS,
        w.LIKES,
        w.MODES,
    ]
    nested = [w.CLOTHES_FOR, w.NEXT_TOPIC, w.PLACES, w.COMPANIONS, w.TIMES, w.FEELINGS, w.DAYS[True], w.DAYS[False]]
    tables += [table for tables_of in nested for table in tables_of.values()]
    tables += [thing.adjectives for thing in w.THINGS.values()]
    for table in tables:
        assert total(table.values()) == pytest.approx(1.0, abs=1e-12), table


def test_first_sentences_sum_to_one():
    firsts = [s for s in tenki.sentences() if s.said in outline(start(s.mode)).probability]
    logs = [tenki.prefix_log_probability("".join(s.words)) for s in firsts]
    assert total(map(math.exp, logs)) == pytest.approx(1.0, abs=1e-12)


def test_next_sentences_sum_to_one_after_any_text():
    contexts = {context for text in DOCUMENTS[:500] for context in contexts_of(text)}
    assert len(contexts) > 300
    for context in contexts:
        assert total(outline(context).probability.values()) == pytest.approx(1.0, abs=1e-12)
    for mode in MODES.outcomes:
        for said in distribution.outlines(mode):
            assert total(wording(said, mode).probability.values()) == pytest.approx(1.0, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(min_value=1, max_value=6))
def test_a_prefix_is_the_sum_of_its_continuations(seed, kept):
    text = document(seed)
    prefix = "".join(f"{s}。" for s in text.split("。")[:-1][:kept])
    parsed = tenki.parse(prefix)
    if parsed[-1].said.kind is Kind.CLOSING:
        assert tenki.prefix_log_probability(prefix) == tenki.log_probability(prefix)
        return
    context = advance(contexts_of(prefix)[-1], parsed[-1].said)
    nexts = {"".join(tokens) for _, tokens in blanks._continuing(context)}
    logs = [tenki.prefix_log_probability(prefix + sentence) for sentence in nexts]
    assert total(map(math.exp, logs)) == pytest.approx(math.exp(tenki.prefix_log_probability(prefix)), rel=1e-10)


def test_the_surface_determines_the_derivation():
    surfaces = ["".join(sentence.words) for sentence in tenki.sentences()]
    assert len(set(surfaces)) == len(surfaces)
    assert all(surface.count("。") == 1 and surface.endswith("。") for surface in surfaces)
    for mode, other in itertools.product(MODES.outcomes, repeat=2):
        for topic in w.NEXT_TOPIC:
            closings = distribution.closing_sentences(topic, mode)
            assert closings.keys().isdisjoint(surfaces)
            assert len(closings) == len(wording(distribution.Outline(Kind.CLOSING, topic), mode).probability)
            assert mode == other or closings.keys().isdisjoint(distribution.closing_sentences(topic, other))


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_a_document_is_read_as_it_was_told(seed):
    text = document(seed)
    parsed = tenki.parse(text)
    assert "".join(word for sentence in parsed for word in sentence.words) == text
    assert len({sentence.mode for sentence in parsed}) == 1
    assert [s.said.kind is Kind.CLOSING for s in parsed] == [False] * (len(parsed) - 1) + [True]
    by_hand = math.log(MODES.probability[parsed[0].mode])
    for context, sentence in zip(contexts_of(text), parsed, strict=True):
        end = closing_probability(context)
        last = sentence.said.kind is Kind.CLOSING
        by_hand += math.log(end if last else (1 - end) * outline(context).probability[sentence.said])
        by_hand += math.log(wording(sentence.said, sentence.mode).probability[sentence.words])
    assert tenki.log_probability(text) == pytest.approx(by_hand, abs=1e-9)


def test_entropy_is_the_mean_of_minus_log_probability():
    minus_logs = -np.array([tenki.log_probability(text) for text in DOCUMENTS])
    error = minus_logs.std() / math.sqrt(len(minus_logs))
    assert abs(minus_logs.mean() - tenki.entropy()) < 4 * error
    assert error < 0.12


def test_entropy_by_brute_force_on_a_short_language(monkeypatch):
    """Documents of exactly two sentences are few enough to list: entropy is then summed over every one of them."""
    monkeypatch.setattr(w, "CLOSING_AT", {1: 0.0, 2: 1.0})
    distribution.entropy.cache_clear()
    try:
        chain_rule = tenki.entropy()
        listed = []
        for first in [s for s in tenki.sentences() if s.said in outline(start(s.mode)).probability]:
            context = advance(start(first.mode), first.said)
            nexts = {"".join(tokens) for _, tokens in blanks._continuing(context)}
            listed += [tenki.log_probability("".join(first.words) + second) for second in nexts]
    finally:
        distribution.entropy.cache_clear()
    assert total(map(math.exp, listed)) == pytest.approx(1.0, abs=1e-10)
    assert chain_rule == pytest.approx(-total(math.exp(log) * log for log in listed), abs=1e-9)


def test_sampled_first_sentences_follow_their_probabilities():
    counted = dict.fromkeys(["今日はいい天気ですね。", "昨日は雨でした。", "私はリンゴを食べるのが好きです。"], 0)
    for text in DOCUMENTS:
        first = text[: text.index("。") + 1]
        if first in counted:
            counted[first] += 1
    for text, count in counted.items():
        expected = len(DOCUMENTS) * math.exp(tenki.prefix_log_probability(text))
        assert abs(count - expected) < 4 * math.sqrt(expected)


# ---------------------------------------------------------------- blanks, swaps, continuations


@pytest.mark.parametrize("text", tenki.BLANKS)
def test_blank_is_the_normalized_probability_of_the_filled_texts(text):
    answer = tenki.blank(text)
    assert total(answer.values()) == pytest.approx(1.0, abs=1e-12)
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    logs = {word: tenki.prefix_log_probability(text.replace("【?】", word)) for word in tenki.words()}
    assert {word for word, log in logs.items() if log > -math.inf} == set(answer)
    for (one, p), (other, q) in itertools.pairwise(answer.items()):
        assert logs[one] - logs[other] == pytest.approx(math.log(p / q), abs=1e-9)


def test_blanks_ask_for_what_the_issue_names():
    assert tenki.BLANKS[0] == "今日はとても【?】天気ですね。"
    adjectives = {word: p for word, p in w.WEATHERS.items() if word in w.ADJECTIVES}
    expected = {word: p / total(adjectives.values()) for word, p in adjectives.items()}
    assert tenki.blank(tenki.BLANKS[0]) == pytest.approx(expected, abs=1e-12)
    assert 8 <= len(tenki.BLANKS) <= 12
    assert tenki.blank("私はリンゴを【?】のが好きです。") == {"食べる": 1.0}
    assert max(tenki.blank("私は【?】を読むのが好きです。").items(), key=lambda item: item[1])[0] == "本"


def test_blank_is_one_word_and_no_part_of_one():
    assert set(tenki.blank("私は本を読むのが【?】です。")) == {"好き", "大好き"}
    with pytest.raises(UserError, match="no word"):
        tenki.blank("私は本を読むのが大【?】です。")


def test_blank_is_no_beginning_of_a_word():
    """だ fits before った as letters, but the word there is だっ."""
    told = next(text for text in DOCUMENTS if text.endswith("一日だった。"))
    with pytest.raises(UserError, match="no word"):
        tenki.blank(told.removesuffix("だった。") + "【?】った。")
    assert tenki.blank(told.removesuffix("だった。") + "【?】た。") == {"だっ": 1.0}


@pytest.mark.parametrize("text", ["今日はいい天気ですね。", "【?】は【?】です。"])
def test_blank_refuses_no_or_two_blanks(text):
    with pytest.raises(UserError, match="exactly once"):
        tenki.blank(text)


def test_swaps_are_all_ordered_pairs_with_different_verbs():
    swaps = tenki.swaps()
    verbs = {name: thing.verb.dictionary for name, thing in w.THINGS.items()}
    pairs = [(a, b) for a in verbs for b in verbs if verbs[a] != verbs[b]]
    assert [(swap.object, swap.other_object) for swap in swaps] == pairs
    assert len(pairs) > 500
    assert tenki.Swap("私はリンゴを", "リンゴ", "本", "私は本を", "食べる", "読む") in swaps
    truths = {f"私は{name}を": tenki.continuations(f"私は{name}を") for name in verbs}
    assert all(truths[swap.prefix] == pytest.approx({swap.verb: 1.0}) for swap in swaps)
    assert all(truths[swap.other_prefix] == pytest.approx({swap.other_verb: 1.0}) for swap in swaps)


def test_continuations_multiply_to_the_probability_of_a_sentence():
    for text in DOCUMENTS[:20]:
        (first, *_), prefix, log = tenki.parse(text), "", 0.0
        for word in first.words:
            nexts = tenki.continuations(prefix)
            assert total(nexts.values()) == pytest.approx(1.0, abs=1e-12)
            log += math.log(nexts[word])
            prefix += word
        assert log == pytest.approx(tenki.prefix_log_probability(prefix), abs=1e-9)
    for text in DOCUMENTS[:3]:  # and of the whole document, if it ends there
        log, told = 0.0, ""
        for sentence in tenki.parse(text):
            for word in sentence.words:
                log += math.log(tenki.continuations(told)[word])
                told += word
        assert log == pytest.approx(tenki.log_probability(text), abs=1e-9)
    assert tenki.continuations(DOCUMENTS[0]) == {}
    assert tenki.continuations("私はリンゴを読") == {}


def test_there_are_few_words_and_each_object_has_one_verb():
    assert 150 <= len(tenki.words()) <= 250
    assert 25 <= len(w.THINGS) <= 40
    assert all("、" not in word and "。" not in word for word in tenki.words())


def test_words_end_where_sudachi_words_end():
    """So that a tokenizer whose pieces keep to SudachiPy's shortest units never has to cut across a word."""
    sudachi = pytest.importorskip("sudachipy", reason="SudachiPy is not installed")
    installed = [size for size in ("core", "small") if importlib.util.find_spec(f"sudachidict_{size}")]
    if not installed:
        pytest.skip("no dictionary of SudachiPy is installed")
    dictionary = sudachi.Dictionary(dict=installed[0])
    make = dictionary.tokenizer if hasattr(dictionary, "tokenizer") else dictionary.create  # `create` before 0.7
    tokenizer = make(mode=sudachi.SplitMode.A)
    for text in DOCUMENTS[:200]:
        for sentence in tenki.parse(text):
            surface = "".join(sentence.words)
            ends = set(itertools.accumulate(len(m.surface()) for m in tokenizer.tokenize(surface)))
            assert set(itertools.accumulate(map(len, sentence.words))) <= ends, surface


# ---------------------------------------------------------------- questions


def test_questions_are_distinct_short_and_have_one_polite_answer():
    questions = tenki.questions()
    assert questions == tenki.questions()
    assert len({q.question for q in questions}) == len(questions)
    assert {q.kind for q in questions} == {"knowledge", "reading", "liking", "weather", "clothes"}
    for question in questions:
        (answer,) = question.answers
        assert answer.endswith(("です。", "ます。", "ました。", "でした。"))
        assert answer.count("。") == 1
        assert len(question.question) + len(answer) < 60


@pytest.mark.parametrize(
    "question, answer",
    [
        ("リンゴをどうしますか。", "リンゴを食べます。"),
        ("昨日、本をどうしましたか。", "本を読みました。"),
        ("リンゴが好きですか。", "はい、リンゴを食べるのが好きです。"),
        ("昨日は雨だった。天気はどうでしたか。", "雨でした。"),
        ("今日は雨だ。どうしますか。", "傘をさします。"),
    ],
)
def test_a_question_has_this_answer(question, answer):
    assert {q.question: q.answers for q in tenki.questions()}[question] == (answer,)


def test_reading_questions_are_about_their_statement():
    by_word = {"どこで": "で", "誰と": "と", "いつ": "", "何を": "を"}
    reading = [q for q in tenki.questions() if q.kind == "reading"]
    for question in reading:
        statement, asked, _ = question.question.split("。")
        assert tenki.prefix_log_probability(f"{statement}。") > -math.inf
        ((word, particle),) = [(k, v) for k, v in by_word.items() if asked.startswith(k)]
        answer = question.answers[0].removesuffix(f"{asked.removeprefix(word).removesuffix('か')}。")
        assert answer.removesuffix(particle) in statement


def test_held_out_questions_are_combinations_never_asked():
    tune, held_out = tenki.split_questions(0.2, seed=0)
    assert (tune, held_out) == tenki.split_questions(0.2, seed=0)
    assert (tune, held_out) != tenki.split_questions(0.2, seed=1)
    assert sorted(map(repr, [*tune, *held_out])) == sorted(map(repr, tenki.questions()))
    assert {q.kind for q in tune} == {q.kind for q in held_out}
    for kind, particle in (("knowledge", "を"), ("liking", "が")):
        asked, unasked = (
            {name for q in part if q.kind == kind for name in w.THINGS if f"{name}{particle}" in q.question}
            for part in (tune, held_out)
        )
        assert asked.isdisjoint(unasked) and len(unasked) == round(0.2 * len(w.THINGS))
    assert 0.15 < len(held_out) / len(tenki.questions()) < 0.25


def test_the_questions_are_those_of_earlier_versions():
    """What `evaluate` says of two models can be compared only if both were asked the same."""
    said = repr([(q.question, q.answers, q.kind) for part in tenki.split_questions(0.2, seed=1) for q in part])
    assert (
        hashlib.sha256(said.encode()).hexdigest() == "aaa86fbc6f9d3be9778b66e2eeab2848def58c93d7750d54e49ee4a459312036"
    )


def test_a_fraction_of_the_combinations_of_each_kind_is_held_out_from_none_to_all():
    every = tenki.questions()
    assert tenki.split_questions(0.0, seed=0) == (every, []) and tenki.split_questions(1.0, seed=0) == ([], every)


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_held_out_fraction_outside_zero_to_one_is_refused(fraction):
    with pytest.raises(UserError, match="held_out_fraction"):
        tenki.split_questions(fraction, seed=0)


def test_conversations_are_a_question_and_its_answer():
    (conversation,) = tenki.conversations(tenki.questions()[:1])
    assert conversation == {
        "messages": [
            {"role": "user", "content": "リンゴをどうしますか。"},
            {"role": "assistant", "content": "リンゴを食べます。"},
        ]
    }
