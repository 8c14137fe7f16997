import dataclasses
import io
import os
import re

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.recipe.schema import TokenizerConfig
from tpullm.system.errors import UserError
from tpullm.tokenizer import load, trainer
from tpullm.tokenizer.sentence_pieces import SPACE
from tpullm.tokenizer.trained import TrainedTokenizer

JAPANESE = """今日はいい天気ですね。
明日はとても寒い天気です。
昨日は悪い天気でした。
私はリンゴを食べるのが好きです。
いい本を読むのが好きですか。
天気がいいから、今日は学校へ行きます。
「いい天気だね」と先生は言いました。
""".splitlines(keepends=True)
ENGLISH = [
    "The weather is nice today, and the people like the weather.\n",
    "Many people were reading books; many books were read in 1999.\n",
    "def weather(people):\n    for many in people:\n        return many\n",
]
TEXTS = [("ja", text) for text in JAPANESE * 20] + [("en", text) for text in ENGLISH * 20]
PLAIN = TokenizerConfig(vocabulary_size=375, words="none")

CHARACTERS = st.characters(exclude_categories=["Cs"])
AWKWARD = st.sampled_from(
    [SPACE, " ", "  ", "\n", "\r\n", "\t", "\0", "<|user|>", "</s>", "<0x41>", "\u2585", "\ufeff", "天気"]
)
STRINGS = st.lists(st.one_of(st.text(CHARACTERS), AWKWARD)).map("".join)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trainer.train(TEXTS, PLAIN, tmp_path_factory.mktemp("plain") / "tokenizer.model")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "tokenizer.model"
    return trainer.train(TEXTS, dataclasses.replace(PLAIN, words="strict"), path)


def assert_round_trip(made, text):
    ids = made.encode(text)
    assert made.decode(ids) == text and b"".join(map(made.bytes_of, ids)) == text.encode()
    assert min(ids, default=8) >= 8, "the special tokens come first"


@settings(max_examples=60, deadline=None)
@given(text=STRINGS)
def test_decoding_gives_back_any_text(plain, text):
    assert_round_trip(plain, text)


def test_every_character_survives_but_half_of_a_surrogate_pair(plain):
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 7)]))
    assert plain.decode(plain.encode(everything)) == everything
    for text, told in (("ab\ud800", r"character 2 is U\+D800"), (f"{SPACE}\udfff", r"U\+DFFF")):
        with pytest.raises(UserError, match=told):
            plain.encode(text)
    assert [plain.bytes_of(token) for token in plain.encode("👍")] == [bytes([byte]) for byte in "👍".encode()]
    assert plain.bytes_of(plain.end_id) == plain.bytes_of(plain.bos_id) == b""
    assert plain.decode(plain.encode("👍")[:2]) == "\ufffd"


def test_pieces_are_whole_words_digits_and_runs_of_spaces(words, plain):
    assert "/".join(piece for piece, _ in words.pieces("今日はいい天気ですね。")) == "今日/は/いい/天気/です/ね/。"
    pieces = {words.piece(token) for token in range(words.vocabulary_size)}
    assert {"天気", "です"} <= pieces and not {"はいい", "ですね", "天気です", "いい天気"} & pieces
    assert [piece for piece, _ in words.pieces("\n\n1999")] == ["\n", "\n", "1", "9", "9", "9"]
    assert len(words.encode("\n    for")) < len("\n    for")
    for made in (plain, words):  # English words keep the space before them
        assert {" people", " weather"} <= {piece for piece, _ in made.pieces("Many people like the weather")}


def test_chat_template_weighs_what_the_assistant_says(plain):
    said = {"いい": "system", "天気は?\n": "user", "いい天気です。": "assistant", "はい": "user", "": "assistant"}
    messages = [{"role": role, "content": content} for content, role in said.items()]
    ids, weights = plain.chat_template(messages)
    assert "<|end|>" in plain.decode(plain.chat_template([{"role": "user", "content": "a<|end|></s>"}])[0])
    opening = {"system": plain.system_id, "user": plain.user_id, "assistant": plain.assistant_id}
    expected = [plain.bos_id]
    for message in messages:
        expected += [opening[message["role"]], *plain.encode(message["content"]), plain.end_id]
    assert ids == expected
    weighed = [token for token, weight in zip(ids, weights, strict=True) if weight == 1]
    assert weighed == [*plain.encode("いい天気です。"), plain.end_id, plain.end_id]
    assert set(weights) == {0.0, 1.0}
    prompt, unweighted = plain.chat_template(messages[:2], add_generation_prompt=True)
    assert ids[: len(prompt)] == prompt and prompt[-1] == plain.assistant_id and not any(unweighted)


def test_chat_template_refuses_what_is_no_message(plain):
    for message in ({"role": "robot", "content": "a"}, {"content": "a"}, {"role": "user"}, "user"):
        with pytest.raises(UserError, match="role|content"):
            plain.chat_template([message])


def test_special_tokens_have_fixed_ids_and_reserved_ones_follow(plain):
    names = [plain.piece(token) for token in range(8 + PLAIN.reserved_tokens)]
    assert names[:8] == ["<pad>", "<s>", "</s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    assert names[8:] == [f"<|reserved_{i}|>" for i in range(PLAIN.reserved_tokens)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system can't take cores from a process")
def test_the_model_is_the_same_on_one_core_and_on_all(tmp_path, plain):
    """The scores are multiples of 1/64: their sums are exact in float32, so equally likely splits compare alike."""
    from sentencepiece import sentencepiece_model_pb2

    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})  # the threads of the trainer inherit it
        made = trainer.train(TEXTS, PLAIN, tmp_path / "model").serialized()
    finally:
        os.sched_setaffinity(0, cores)
    assert made == plain.serialized()
    model = sentencepiece_model_pb2.ModelProto.FromString(made)
    assert not model.trainer_spec.HasField("seed_sentencepieces_file")
    scores = [piece.score for piece in model.pieces]
    assert all((score * 64).is_integer() for score in scores) and len(set(scores)) > 20


def test_lines_longer_than_the_trainer_takes_are_learnt_and_a_corpus_without_spaces_has_a_token_for_them(tmp_path):
    """SentencePiece silently skips lines over 4,192 bytes."""
    made = trainer.train([*TEXTS, ("ja", "ゑゐ" * 1_000)], PLAIN, tmp_path / "model")
    assert "".join(piece for piece, _ in made.pieces("ゑゐ")) == "ゑゐ"  # and not six bytes
    small = dataclasses.replace(PLAIN, vocabulary_size=330)
    made = trainer.train([("ja", text) for text in JAPANESE], small, tmp_path / "model")
    assert made.pieces("  ") == [(" ", made.encode(" ")[0])] * 2


def test_a_line_longer_than_sudachi_takes_is_cut_at_its_words():
    line = JAPANESE[0].strip() * 5_000
    parts = trainer.cut_at_words("ja", line, "soft")
    assert "".join(parts) == line and len(parts) == 5_000 * len(trainer.cut_at_words("ja", JAPANESE[0].strip(), "soft"))


def test_character_models_have_a_token_for_each_character(tmp_path):
    text = "To be, or not\n\tto be: 天気 2"
    config = TokenizerConfig(model_type="char", vocabulary_size=0)
    for skipped in ("\u2585", "\0"):  # which the trainer keeps for itself
        made = trainer.train([("en", f"abc{skipped}def")], config, tmp_path / "model")
        assert [piece for piece, _ in made.pieces("abcdef")] == list("abcdef")
    made = trainer.train([("en", text)], config, tmp_path / "model")
    assert [piece for piece, _ in made.pieces(text)] == list(text)
    assert made.vocabulary_size == 8 + 16 + 256 + len(set(text))
    assert_round_trip(made, f"{text}é👍{SPACE}")


def test_a_vocabulary_too_large_for_the_corpus_becomes_smaller_and_says_so(tmp_path, capsys):
    made = trainer.train(TEXTS, dataclasses.replace(PLAIN, vocabulary_size=60_000), tmp_path / "model")
    assert trainer.fixed_tokens(PLAIN) < made.vocabulary_size < 1000
    said = f"too few different pieces for tokenizer.vocabulary_size 60,000; {made.vocabulary_size} were found"
    assert said in capsys.readouterr().err
    assert_round_trip(made, JAPANESE[0] + ENGLISH[0] + "未知")


def test_a_vocabulary_too_small_and_no_text_are_refused(tmp_path):
    for model_type, size in (("unigram", 0), ("unigram", 282), ("char", 100)):
        config = dataclasses.replace(PLAIN, vocabulary_size=size, model_type=model_type)
        with pytest.raises(UserError, match="vocabulary_size: .* or more"):
            trainer.train(TEXTS, config, tmp_path / "model")
    for texts in ([], [("en", "")], [("en", "\n\n")]):
        with pytest.raises(UserError, match="no text to train on"):
            trainer.train(texts, PLAIN, tmp_path / "model")


@pytest.mark.parametrize("content", [None, b"", b"not a model", "cut off"])
def test_a_missing_or_broken_model_is_refused(tmp_path, plain, content):
    if content is not None:
        whole = plain.serialized()
        (tmp_path / "tokenizer.model").write_bytes(whole[: len(whole) // 2] if content == "cut off" else content)
    with pytest.raises(UserError, match="no such tokenizer" if content is None else "tokenizer.model: not a"):
        load(tmp_path)


CHAT = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


@pytest.mark.parametrize("lacking", ["<|user|>", "bytes", "space"])
def test_a_model_that_lacks_one_thing_is_refused(lacking):
    lines = [line.strip().replace(" ", "" if lacking == "space" else " ") for line in ENGLISH]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 9),
        model_writer=model,
        vocab_size=375,
        hard_vocab_limit=False,
        control_symbols=[piece for piece in CHAT if piece != lacking],
        byte_fallback=lacking != "bytes",
        pad_id=3,
        required_chars="" if lacking == "space" else SPACE,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        minloglevel=2,
    )
    with pytest.raises(UserError, match=rf"it has no {re.escape(lacking)}\)"):
        TrainedTokenizer(model.getvalue(), "file")
