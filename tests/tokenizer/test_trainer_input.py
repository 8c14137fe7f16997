"""What the trainer is given of a text: passages and their lines, the characters that get a token, and seed pieces."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.recipe.schema import TokenizerConfig
from tpullm.tokenizer import trainer
from tpullm.tokenizer.sentence_pieces import SPACE
from tpullm.tokenizer.trainer import seed_pieces

LINES = st.text(st.sampled_from("aé本🙂\u2585 "), max_size=60).map(lambda line: line * 90)
TEXTS_OF_LINES = st.lists(LINES, max_size=8).map("\n".join)
BYTES = 4000  # SentencePiece drops lines of more than 4,192


def size(text):
    return len(text.encode())


@settings(max_examples=40)
@given(text=TEXTS_OF_LINES)
def test_the_passages_of_a_text_are_the_text_in_pieces_as_long_as_they_may_be(text):
    found = list(trainer.passages(text))
    assert "".join(found) == text and all(found)
    for passage, after in zip(found, found[1:], strict=False):
        first = after.splitlines(keepends=True)[0]
        assert size(passage) + size(first) > BYTES  # the next line, or its first part, had no room
    assert all(size(passage) <= BYTES for passage in found)
    assert len(found) <= trainer.most_passages(text)


@settings(max_examples=40)
@given(text=TEXTS_OF_LINES)
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
    assert len(list(trainer.passages(text))) == 10 and trainer.most_passages(text) == 21
    assert trainer.most_passages("") == trainer.most_passages("a" * 1999) == 1


SMALL = TokenizerConfig(vocabulary_size=512, words="none")
ROOM = (512 - trainer.fixed_tokens(SMALL)) // 2


def many_characters(count, lines=400, seed=0):
    """Lines of `count` different Han characters, the first of them frequent, the last rare (Zipf)."""
    drawn = random.Random(seed)
    characters = [chr(0x4E00 + number) for number in range(count)]
    weights = [1 / (number + 1) for number in range(count)]
    every = ["".join(characters[start : start + 40]) for start in range(0, count, 40)]
    return every + ["".join(drawn.choices(characters, weights, k=30)) for _ in range(lines)]


def test_few_characters_change_nothing():
    chosen = trainer.choose_alphabet(["abc abd\n"] * 9, TokenizerConfig(vocabulary_size=512, largest_vocabulary=4096))
    assert (chosen.vocabulary_size, chosen.characters, chosen.others, chosen.rare) == (512, 6, 0, frozenset())
    assert chosen.parts("abé") == ["abé"]
    every = "".join(chr(0x4E00 + number) for number in range(ROOM))
    assert [len(trainer.choose_alphabet([text], SMALL).rare) for text in (every, every + "本")] == [0, 1]


def test_frequent_characters_get_tokens_and_the_others_go_by_their_bytes(tmp_path, capsys):
    lines = many_characters(1000)
    chosen = trainer.choose_alphabet(lines, SMALL)
    assert (chosen.vocabulary_size, chosen.characters, chosen.others) == (512, ROOM, 1000 - ROOM)
    made = trainer.train([("zh", line) for line in lines], SMALL, tmp_path / "model")
    assert f"{ROOM} characters have a token of their own, {1000 - ROOM} rarer ones are written as bytes" in (
        capsys.readouterr().err
    )
    text = "".join(lines)
    assert made.decode(made.encode(text)) == text
    for character in set(text) - chosen.rare:
        assert len(made.encode(character)) == 1
    for character in chosen.rare:
        assert [made.piece(token) for token in made.encode(character)] == [f"<0x{b:02X}>" for b in character.encode()]
    counts = Counter(text)
    assert min(counts[c] for c in set(text) - chosen.rare) >= max(counts[c] for c in chosen.rare)


@pytest.mark.parametrize(("most", "size"), [(0, 512), (768, 768), (1000, 1000), (100_000, 4352)])
def test_a_vocabulary_grows_as_far_as_the_recipe_lets_it_and_as_is_needed(most, size):
    """1,000 characters, 3,000 other pieces, and the 282 that every vocabulary has: 4,282, in whole 256."""
    config = TokenizerConfig(vocabulary_size=512, largest_vocabulary=most, words="none")
    chosen = trainer.choose_alphabet(many_characters(1000, lines=0) * 3, config)
    assert chosen.vocabulary_size == size
    assert chosen.characters == min(1000, (size - trainer.fixed_tokens(config)) // 2)
    assert bool(chosen.rare) == (size < 2000)


def test_the_characters_that_cover_a_text_are_no_more_than_needed():
    assert 0.9995 * 2000 == 1999
    for counts, covering in (([1999, 1], 1), ([1998, 1, 1], 2), ([1] * 2000, 1999)):
        text = "".join(chr(0x4E00 + number) * count for number, count in enumerate(counts))
        assert trainer.choose_alphabet([text], SMALL).covering == covering
    # A vocabulary is a multiple of 256: 282 tokens that every one has, and four for each character.
    config = TokenizerConfig(vocabulary_size=300, largest_vocabulary=10**6)
    assert trainer.fixed_tokens(config) == 282
    for characters, size in ((57, 512), (58, 768), (121, 768), (122, 1024)):
        every = "".join(chr(0x4E00 + number) for number in range(characters))
        assert trainer.choose_alphabet([every], config).vocabulary_size == size


SCRIPTS = st.sampled_from([(0x41, 26), (0x3041, 86), (0x4E00, 3000), (0xAC00, 2000), (0x1F300, 700), (0x400, 64)])


@settings(max_examples=4, deadline=None)
@given(
    scripts=st.lists(SCRIPTS, min_size=1, max_size=3),
    seed=st.integers(0, 99),
    words=st.sampled_from(["strict", "soft", "none"]),
)
def test_text_in_any_script_trains_and_comes_back(tmp_path_factory, scripts, seed, words):
    drawn = random.Random(seed)
    every = [chr(first + number) for first, count in scripts for number in range(count)]
    texts = ["".join(drawn.choices(every, k=40)) + drawn.choice(["", "。\n", ". "]) for _ in range(120)]
    config = TokenizerConfig(vocabulary_size=512, largest_vocabulary=1024, words=words)
    made = trainer.train([("", text) for text in texts], config, tmp_path_factory.mktemp("any") / "model")
    assert made.vocabulary_size <= 1024
    for text in texts[:20]:
        assert made.decode(made.encode(text)) == text


@settings(max_examples=40)
@given(line=st.text(st.sampled_from("abcdé本"), max_size=30), rare=st.frozensets(st.sampled_from("cdé本")))
def test_a_line_is_cut_at_its_rare_characters(line, rare):
    found = trainer.Alphabet(512, 3, 4, 3, rare).parts(line)
    assert "".join(found) == "".join(character for character in line if character not in rare)
    assert all(part in line and rare.isdisjoint(part) for part in found)
    assert found == [line] or all(found) and len(found) <= 1 + sum(character in rare for character in line)


def test_more_characters_get_tokens_where_a_text_has_few_other_pieces_and_growth_is_told(tmp_path, capsys):
    lines = many_characters(1000, lines=0)
    config = TokenizerConfig(vocabulary_size=1282, words="none")
    assert len(trainer.choose_alphabet(lines, config).rare) == 500
    made = trainer.train([("zh", line) for line in lines], config, tmp_path / "model")
    assert made.vocabulary_size == 1282 and len(made.encode("".join(lines))) == 1000
    config = TokenizerConfig(vocabulary_size=512, largest_vocabulary=1024, words="none")
    made = trainer.train([("zh", line) for line in many_characters(1000, 600)], config, tmp_path / "model")
    assert made.vocabulary_size == 1024
    assert "tokenizer: the vocabulary grew from 512 to 1,024, " in capsys.readouterr().err


def test_a_character_vocabulary_has_room_for_all_or_for_the_most_frequent():
    for size, characters in ((0, 4), (300, 4), (284, 2)):
        config = TokenizerConfig(model_type="char", vocabulary_size=size)
        chosen = trainer.choose_alphabet(["aaaabbbccd"], config)
        assert chosen.vocabulary_size == (size or trainer.fixed_tokens(config) + 4)
        assert (chosen.characters, chosen.others, chosen.rare) == (characters, 4 - characters, frozenset())


def parts_of(chunks):
    """Every part of 2 to 16 characters, counted, as the trainer is given those that occur twice."""
    counts = Counter(
        chunk[start:end]
        for chunk in chunks
        for start in range(len(chunk))
        for end in range(start + 2, min(len(chunk), start + 16) + 1)
    )
    return {piece.replace(" ", SPACE): count for piece, count in counts.items() if count > 1}


def test_chunks_are_words_with_the_space_before_them_single_digits_symbols_and_white_space():
    line = "the  cat, the cat: 1999 (the dog)\t\tthe  cat"
    chunks = ["the", "  ", "cat", ",", " the", " cat", ":", " ", *"1999", " (", "the", " dog", ")", "\t\t"]
    chunks += ["the", "  ", "cat"]
    found = seed_pieces([("en", line)])
    assert dict(found) == {piece: count for piece, count in parts_of(chunks).items() if "\t" not in piece}
    assert max(len(piece) for piece, _ in seed_pieces([("en", "abcdefghijklmnopqrstuvwxyz" * 3)])) == 16


@given(st.lists(st.text(st.sampled_from("ab c"), max_size=40), max_size=6))
def test_pieces_come_with_the_most_text_first(lines):
    found = seed_pieces([("en", line) for line in lines])
    assert found == sorted(found, key=lambda item: (-item[1] * len(item[0]), item[0]))
    assert len(dict(found)) == len(found) and all(count > 1 for _, count in found)


def test_japanese_is_cut_at_its_words():
    for language, line, words in (
        ("ja", "東京都東京都", ["東京", "都", "東京", "都"]),
        ("zh", "東京都東京都", ["東京都東京都"]),  # Han characters alone may be Chinese
        ("en", "東京都へ東京都へ", ["東京", "都", "へ", "東京", "都", "へ"]),  # kana are Japanese, whatever is said
        ("ja", "the cat the cat", ["the", " cat", " the", " cat"]),
        ("ja", "猫はthe catとthe cat", ["猫", "は", "the", " cat", "と", "the", " cat"]),
    ):
        assert dict(seed_pieces([(language, line)])) == parts_of(words)


def test_no_pair_goes_over_a_word_but_symbols_and_spaces_go_over_the_end_of_a_line():
    texts = [("ja", "今日は。\n\nthe cat\n東京都へ\n"), ("en", "a\n\nb\n")]
    for words, parts in (
        ("strict", ["今日", "は", "。\n\nthe cat\n", "東京", "都", "へ", "\n"]),
        ("soft", ["今日は", "。\n\nthe cat\n", "東京", "都へ", "\n"]),
        ("none", [texts[0][1]]),
    ):
        assert list(trainer.cut_passages(texts, words)) == [*parts, texts[1][1]]
