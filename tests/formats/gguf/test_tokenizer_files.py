"""The tokenizer of a GGUF file splits a text as llama.cpp does; what can't be true in it is refused."""

import json
import math

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.formats.gguf.test_gguf_vocabulary import trained
from tpullm.formats.gguf import reading, vocabulary
from tpullm.formats.gguf.pre_tokenizers import PRE_TOKENIZERS
from tpullm.formats.gguf.tokenizer_files import tokenizer_files
from tpullm.formats.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from tpullm.system.errors import UserError
from tpullm.tokenizer.byte_pairs import byte_letters
from tpullm.tokenizer.published import PublishedTokenizer

# The pieces that llama.cpp 0.5.0 joined to one token each, with a merge for any two neighbours.
SPLITS = {
    "gpt-2": (
        "It¦'¦S¦ 12345¦ don¦'t¦ '¦ſ¦ aÉbC¦\n\n ¦ x¦ =¦1¦;//¦\r\n",
        "東京¦、¦１２３４¦。¦\u3000¦x¦²¦\t¦÷->#[¦a¦]¦e¦\u0301¦ の¦?¦  ",
    ),
    "smollm": (
        "It¦'¦S¦ ¦1¦2¦3¦4¦5¦ don¦'t¦ '¦ſ¦ aÉbC¦\n\n ¦ x¦ =¦1¦;//¦\r\n",
        "東京¦、¦１¦２¦３¦４¦。¦\u3000¦x¦²¦\t¦÷->#[¦a¦]¦e¦\u0301¦ の¦?¦  ",
    ),
    "llama-bpe": (
        "It¦'S¦ ¦123¦45¦ don¦'t¦ '¦ſ¦ aÉbC¦\n\n¦ ¦ x¦ =¦1¦;//\r\n",
        "東京¦、¦１２３¦４¦。¦\u3000x¦²¦\t¦÷->#[¦a¦]e¦\u0301¦ の¦?¦  ",
    ),
    "glm4": (
        "It¦'S¦ ¦123¦45¦ don¦'t¦ '¦ſ¦ aÉbC¦\n\n¦ ¦ x¦ =¦1¦;//\r\n",
        "東京¦、¦１２３¦４¦。¦\u3000x¦²¦\t¦÷->#[¦a¦]e¦\u0301¦ の¦?¦  ",
    ),
    "dbrx": (
        "It¦'S¦ ¦123¦45¦ don¦'t¦ '¦ſ¦ aÉbC¦\n\n¦ ¦ x¦ =¦1¦;//\r\n",
        "東京¦、¦１２３¦４¦。¦\u3000x¦²¦\t¦÷->#[¦a¦]e¦\u0301¦ の¦?¦  ",
    ),
    "qwen2": (
        "It¦'S¦ ¦1¦2¦3¦4¦5¦ don¦'t¦ '¦ſ¦ aÉbC¦\n\n¦ ¦ x¦ =¦1¦;//\r\n",
        "東京¦、¦１¦２¦３¦４¦。¦\u3000x¦²¦\t¦÷->#[¦a¦]e¦\u0301¦ の¦?¦  ",
    ),
    "qwen35": (
        "It¦'S¦ ¦1¦2¦3¦4¦5¦ don¦'t¦ '¦ſ¦ aÉbC¦\n\n¦ ¦ x¦ =¦1¦;//\r\n",
        "東京¦、¦１¦２¦３¦４¦。¦\u3000x¦²¦\t¦÷->#[¦a¦]e\u0301¦ の¦?¦  ",
    ),
    "ufakzeka": (
        "It¦'S¦ ¦1¦2¦3¦4¦5¦ don¦'t¦ '¦ſ¦ aÉbC¦\n\n¦ ¦ x¦ =¦1¦;//\r\n",
        "東京¦、¦１¦２¦３¦４¦。¦\u3000x¦²¦\t¦÷->#[¦a¦]e¦\u0301¦ の¦?¦  ",
    ),
    "bailingmoe": (
        "It¦'S¦ ¦1¦2¦3¦4¦5¦ don¦'t¦ '¦ſ¦ aÉbC¦\n\n¦ ¦ x¦ =¦1¦;//\r\n",
        "東京¦、¦１¦２¦３¦４¦。¦\u3000x¦²¦\t¦÷->#[¦a¦]e¦\u0301¦ の¦?¦  ",
    ),
    "seed-coder": (
        "It¦'S¦ ¦1¦2¦3¦4¦5¦ don¦'t¦ '¦ſ¦ aÉbC¦\n\n¦ ¦ x¦ =¦1¦;//¦\r\n",
        "東京¦、¦１¦２¦３¦４¦。¦\u3000x¦²¦\t¦÷->#[¦a¦]e¦\u0301¦ の¦?¦  ",
    ),
    "minicpm5": (
        "It¦'S¦ ¦123¦45¦ don¦'t¦ '¦ſ¦ aÉbC¦\n\n¦ ¦ x¦ =¦1¦;//\r\n",
        "東京¦、¦１２３¦４¦。¦\u3000x¦²¦\t¦÷->#[¦a¦]e¦\u0301¦ の¦?¦  ",
    ),
    "exaone-moe": (
        "It¦'S¦ ¦1¦2¦3¦4¦5¦ don¦'t¦ '¦ſ aÉbC¦\n\n¦ ¦ x¦ =¦1¦;//\r¦\n",
        "東京¦、¦１¦２¦３¦４¦。¦\u3000x¦²¦\t¦÷->#[¦a¦]e\u0301 の¦?¦  ",
    ),
    "tekken": (
        "It¦'S¦ ¦1¦2¦3¦4¦5¦ don¦'t¦ '¦ſ¦ aÉb¦C¦\n\n¦ ¦ x¦ =¦1¦;//\r\n",
        "東京¦、¦１¦２¦３¦４¦。¦\u3000x¦²¦\t¦÷->#[¦a¦]e¦\u0301¦ の¦?¦  ",
    ),
    "gpt-4o": (
        "It'S¦ ¦123¦45¦ don't¦ '¦ſ¦ aÉb¦C¦\n\n¦ ¦ x¦ =¦1¦;//\r\n",
        "東京¦、¦１２３¦４¦。¦\u3000x¦²¦\t¦÷->#[¦a¦]e¦\u0301¦ の¦?¦  ",
    ),
    "deepseek-v3": (
        "It¦'S¦ ¦123¦45¦ don¦'t¦ '¦ſ¦ aÉbC¦\n\n¦ ¦ x¦ =¦1¦;//\r\n",
        "東京¦、¦１２３¦４¦。¦\u3000x¦²¦\t¦÷->#[¦a¦]e¦\u0301¦ ¦の¦?¦  ",
    ),
    "deepseek-coder": (
        "It¦'¦S¦ ¦1¦2¦3¦4¦5¦ don¦'¦t¦ '¦ſ¦ aÉbC¦\n¦\n¦ ¦ x¦ =¦1¦;//¦\r¦\n",
        "東京¦、¦１¦２¦３¦４¦。¦\u3000x¦²¦\t÷¦-¦>¦#[¦a¦]¦e¦\u0301¦ ¦の¦?¦  ",
    ),
    "deepseek-llm": (
        "It¦'¦S¦ ¦12345¦ don¦'¦t¦ '¦ſ¦ a¦É¦bC¦\n¦\n¦ ¦ x¦ =¦1¦;//¦\r¦\n",
        "東京¦、¦１２３４¦。¦\u3000x¦²¦\t÷¦->#[¦a¦]¦e¦\u0301 ¦の¦?¦  ",
    ),
    "falcon": (
        "It¦'¦S¦ ¦123¦45¦ don¦'¦t¦ ¦'¦ſ¦ aÉbC¦\n\n ¦ x¦ ¦=¦1¦;//¦\r\n",
        "東京¦、¦１２３４¦。¦\u3000¦x¦²¦\t¦÷¦->#[¦a¦]¦e¦\u0301¦ の¦?¦  ",
    ),
    "default": (
        "It¦'¦S¦ ¦123¦45¦ don¦'¦t¦ ¦'¦ſ¦ aÉbC¦\n\n ¦ x¦ ¦=¦1¦;//¦\r\n",
        "東京¦、¦１２３４¦。¦\u3000¦x¦²¦\t¦÷¦->#[¦a¦]¦e¦\u0301¦ の¦?¦  ",
    ),
    "bloom": (
        "It'S¦ 12345¦ don't¦ 'ſ¦ aÉbC¦\n\n ¦ x¦ =1;//¦\r\n",
        "東京¦、¦１２３４¦。\u3000¦x²¦\t¦÷->#[a]e\u0301¦ の¦?  ",
    ),
    "viking": (
        "It'S¦ ¦1¦2¦3¦4¦5¦ don't¦ 'ſ¦ aÉbC¦\n\n ¦ x¦ =¦1¦;//¦\r\n",
        "東京¦、¦１¦２¦３¦４¦。\u3000¦x¦²¦\t¦÷->#[a]e\u0301¦ の¦?  ",
    ),
}


def settings(model="gpt2", texts=(), kinds=(), **others):
    """Of a GGUF file, with a token for each byte first, then `texts`; NORMAL unless `kinds` says otherwise."""
    of_bytes = list(byte_letters()) if model == "gpt2" else [f"<0x{byte:02X}>" for byte in range(256)]
    first = NORMAL if model == "gpt2" else BYTE
    kinds = [*kinds, *[NORMAL] * (len(texts) - len(kinds))]
    found = {"model": model, "tokens": [*of_bytes, *texts], "token_type": [first] * 256 + kinds, "eos_token_id": 256}
    if model == "gpt2":
        found |= {"pre": "qwen2", "merges": []}
    return {f"tokenizer.ggml.{name}": value for name, value in (found | others).items() if value is not None}


def published(folder, found):
    folder.mkdir(exist_ok=True)
    for name, content in tokenizer_files(found, len(found["tokenizer.ggml.tokens"]), "m.gguf").items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return PublishedTokenizer(folder, is_tried=True)


@pytest.mark.parametrize("name", SPLITS)
def test_a_text_is_split_as_llama_cpp_splits_it(name):
    model = {"type": "BPE", "vocab": {}, "merges": []}
    file = {"version": "1.0", "added_tokens": [], "pre_tokenizer": PRE_TOKENIZERS[name].described(), "model": model}
    splitter, table = Tokenizer.from_str(json.dumps(file)).pre_tokenizer, byte_letters()
    for pieces in SPLITS[name]:
        found = splitter.pre_tokenize_str(pieces.replace("¦", ""))
        assert "¦".join(bytes(table[letter] for letter in piece).decode() for piece, _ in found) == pieces


def test_each_pre_tokenizer_has_recorded_splits_and_names_of_its_own():
    assert {one.names[0] for one in PRE_TOKENIZERS.values()} == set(SPLITS)
    assert sum(len(one.names) for one in set(PRE_TOKENIZERS.values())) == len(PRE_TOKENIZERS)
    assert {one.names[0] for one in PRE_TOKENIZERS.values() if one.ignores_merges} == {
        *("llama-bpe", "glm4", "minicpm5", "tekken")
    }


@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "qwen2", "default"])
def test_what_is_read_is_written_again(tmp_path, name):
    texts, kinds = ["</s>", "ab", "<b>", "[PAD]"], [CONTROL, NORMAL, USER_DEFINED, UNUSED]
    read = settings(texts=texts, kinds=kinds, pre=name, merges=["a b"], bos_token_id=256)
    read["tokenizer.ggml.tokens"][1] = "[PAD1]"  # a byte is missing
    found = vocabulary.of_tokenizer(published(tmp_path, read))
    assert (found.model, found.split, found.merges) == ("gpt2", name, ("a b",))
    assert found.texts == read["tokenizer.ggml.tokens"] and found.kinds[256:259] == kinds[:3]


def test_special_tokens_ends_and_the_template_are_those_of_the_file(tmp_path):
    texts = ["<eos>", "<s>", "<|im_end|>", "<h1>", "<unk>", "ab"]
    kinds = [CONTROL, CONTROL, NORMAL, USER_DEFINED, UNKNOWN]
    more = {"bos_token_id": 257, "padding_token_id": 260, "add_bos_token": True, "merges": ["a b"]}
    read = settings(texts=texts, kinds=kinds, **more) | {"tokenizer.chat_template": "{{ messages[0].content }}"}
    made = published(tmp_path, read)
    assert (made.begin, made.bos_id, made.stop_ids, made.pad_id) == ([257], 257, [256, 258], 260)
    assert made.named_end == 256
    assert made.encode("ab<h1><|im_end|>") == [261, 259, 258]
    assert made.document("<h1><s>")[1] == 259 and 257 not in made.document("<s>")[1:]
    assert made.decode(made.encode("ab<h1>é\x00")) == "ab<h1>é\x00"
    # llama.cpp begins a text with the first token, whatever the template shows.
    assert made.chat_template([{"role": "user", "content": "ab"}], True)[0] == [257, 261]
    with pytest.raises(UserError, match="holds '<\\|im_end\\|>', which this model reads as a special token"):
        made.prompt_text([{"role": "user", "content": "ab<|im_end|>"}])
    shown = published(tmp_path, read | {"tokenizer.chat_template": "{{ bos_token }}b"})
    assert shown.chat_template([{"role": "user", "content": "ab"}], True)[0] == [257, made.encode("b")[0]]


def test_the_end_of_a_part_of_an_answer_ends_no_text(tmp_path):
    harmony = settings(texts=["<|endoftext|>", "<|return|>", "<|call|>", "<|end|>"], kinds=[CONTROL] * 4)
    assert published(tmp_path, harmony).stop_ids == [256, 257, 258]
    for kind, ends in ((NORMAL, [256, 257]), (USER_DEFINED, [256, 257, 258])):
        tag = settings(
            "gemma4", ["<eos>", "<|tool_response>", "</s>"], [CONTROL, NORMAL, kind], merges=[], bos_token_id=256
        )
        assert published(tmp_path, tag).stop_ids == ends


def test_no_text_becomes_a_special_token_by_its_merges(tmp_path):
    read = settings(texts=["</s>", "<b", "<b>"], kinds=[CONTROL, NORMAL, CONTROL], merges=["< b", "<b >"], pre="bloom")
    made = published(tmp_path, read)
    assert made.encode("<b>") == [258] and [made.piece(token) for token in made.document("<b>")[:-1]] == ["<b", ">"]


def test_a_byte_that_is_no_token_joins_nothing_and_is_left_out(tmp_path):
    read = settings(texts=["</s>", "ab"], kinds=[CONTROL], merges=["a b"])
    read["tokenizer.ggml.tokens"][list(byte_letters()).index("]")] = "[x"
    made = published(tmp_path, read)
    assert [made.piece(token) for token in made.encode("ab]aab a]b")] == ["ab", "a", "ab", " ", "a", "b"]


def test_an_added_letter_stands_for_itself_and_not_for_a_byte(tmp_path):
    """As in DeepSeek: no pair uses the letter of the byte 0xF6, and the token is one that the user defined."""
    read = settings(texts=["</s>"], kinds=[CONTROL])
    read["tokenizer.ggml.token_type"][list(byte_letters()).index("ö")] = USER_DEFINED
    made = published(tmp_path, read)
    assert len(made.encode("schön")) == 5 and made.decode(made.encode("schön Ä")) == "schön Ä"


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_a_tokenizer_of_ours_comes_back_from_its_file(tmp_path, kind):
    made = trained(tmp_path, kind)
    writer = gguf.GGUFWriter(tmp_path / "made.gguf", "llama")
    vocabulary.write(writer, made, made.vocabulary_size, talks=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    again = published(tmp_path / "again", reading.read(tmp_path / "made.gguf").settings)
    for text in ["今日は いい天気。\n\n The cat  sat", "<|user|><0x41></s>\u3000 é 龘"]:
        assert again.document(text)[1:-1] == made.encode(text)
    assert (again.begin, set(again.stop_ids), again.pad_id) == (made.begin, set(made.stop_ids), made.pad_id)
    talk = [{"role": "user", "content": "今日は"}]
    assert again.chat_template(talk, True)[0] == made.chat_template(talk, True)[0]


PIECES = ["▁", "a", "b", "c", "ab", "bc", "abc", "▁a", "▁▁", "▁▁▁▁", "▁▁▁", "ca", "aa", "aaa", "</s>"]
SCORES = [-20.0, -21.0, -22.0, -23.0, -3.0, -2.0, -9.0, -1.5, -50.0, -50.0, -50.0, -1.0, -4.0, -5.0, 0.0]


def joined(text):
    """The tokens of `llama` by its rule: the pair of the highest score is joined, of several the first."""
    parts, scores = list(text), dict(zip(PIECES, SCORES, strict=True)) | {"</s>": -math.inf}
    while True:
        pairs = [(scores.get(a + b, -math.inf), -n) for n, (a, b) in enumerate(zip(parts, parts[1:], strict=False))]
        best, place = max(pairs, default=(-math.inf, 0))
        if best == -math.inf:
            return parts
        parts[-place : -place + 2] = ["".join(parts[-place : -place + 2])]


@pytest.fixture(scope="module")
def of_scores(tmp_path_factory):
    read = settings("llama", PIECES, scores=[0.0] * 256 + SCORES, eos_token_id=256 + PIECES.index("</s>"))
    read["tokenizer.ggml.token_type"][-1] = CONTROL
    read |= {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.unknown_token_id": 0}
    plain = published(tmp_path_factory.mktemp("plain"), read | {"tokenizer.ggml.add_space_prefix": False})
    return plain, published(tmp_path_factory.mktemp("spaced"), read)


@given(st.text("abc d", max_size=24))
def test_pairs_of_characters_are_joined_by_their_scores(of_scores, text):
    plain, spaced = of_scores
    for made, before in ((plain, ""), (spaced, "▁" if text else "")):
        ids = made.encode(text)
        found = [made._tokenizer.id_to_token(token) for token in ids]
        assert found == ["<0x64>" if piece == "d" else piece for piece in joined(before + text.replace(" ", "▁"))]
        assert made.decode(ids) == text


def test_pairs_of_characters_join_bytes_for_what_is_no_token(of_scores):
    plain, spaced = of_scores
    assert [plain.piece(token) for token in plain.encode("é</s>a")] == ["<0xC3>", "<0xA9>", "</s>", "a"]
    assert [spaced.piece(token) for token in spaced.encode("a</s>a")] == [" a", "</s>", " a"]
    assert [plain.piece(token) for token in plain.document("</s>")[1:-1]] == ["<", "/", "s", ">"]
    assert spaced.begin == [0]


def test_a_pair_that_begins_like_a_comment_of_old_merges_is_joined_too(tmp_path):
    pieces = ["</s>", *"#versionx", "#version", "#versionx"]
    pieces += ["#version"[:end] for end in range(2, 8)]
    scores = [0.0] * 256 + [float(len(piece)) for piece in pieces]
    read = settings("llama", pieces, [CONTROL], scores=scores, bos_token_id=256, add_space_prefix=False)
    made = published(tmp_path, read)
    assert [made.piece(token) for token in made.encode("#versionx")] == ["#versionx"]


def test_phi_3_takes_white_space_away_after_its_special_tokens(tmp_path):
    pieces = ["</s>", "<s>", "<|user|>", "a", "▁", "▁a"]
    read = settings("llama", pieces, [CONTROL] * 3, scores=[0.0] * 262, add_space_prefix=False, unknown_token_id=0)
    made = published(tmp_path, read | {"general.name": "Phi3"})
    assert [made.piece(token) for token in made.encode("<|user|> \na<s> a")] == ["<|user|>", "a", "<s>", " a"]


def test_merges_of_characters_are_joined_as_listed(tmp_path):
    pieces = ["<bos>", "a", "b", "▁", "\n", "▁a", "ab", "\n\n", "b\n"]
    read = settings("gemma4", pieces, [CONTROL], merges=["b \n", "a b", "▁ a", "\n \n"], bos_token_id=256)
    made = published(tmp_path, read)
    found = [made._tokenizer.id_to_token(token) for token in made.encode("a ab\n\né")]
    assert found == ["a", "▁", "ab", "\n\n", "<0xC3>", "<0xA9>"]
    assert made.decode(made.encode(" ab\n a")) == " ab\n a" and made.begin == [256]


WRONG = {
    "model": (settings(model="rwkv"), "llama.cpp's tokenizer 'rwkv' is not read"),
    "no model": (settings() | {"tokenizer.ggml.model": None}, "llama.cpp's tokenizer None is not read"),
    "pre": (settings(texts=["a b"], pre="kimi-k2"), "its pre-tokenizer 'kimi-k2' is not known; known are gpt-2,"),
    "pre of a wrong type": (settings(texts=["a b"], pre=3), "its tokenizer.ggml.pre is 3"),
    "no tokens": (settings(tokens=[]), "has 0 tokens and an embedding of 0 rows"),
    "tokens": (settings(tokens=[1, 2]), "its tokenizer.ggml.tokens is no list"),
    "twice": (settings(texts=["a"]), "has two tokens of the same text"),
    "long": (settings(texts=["x" * 1_001]), "has a token of more than 1,000 letters"),
    "kinds": (settings(texts=["</s>"], token_type=[1]), "its tokenizer.ggml.token_type is no list of the right length"),
    "merge": (settings(texts=["</s>"], merges=["a b"]), "has a merge 'a b' of what is no token"),
    "merge of one": (settings(texts=["</s>"], merges=["ab"]), "has a merge 'ab' of what is no token"),
    "merges": (settings(texts=["</s>"], merges=[3]), "its tokenizer.ggml.merges is no list"),
    "end": (settings(texts=["</s>"], eos_token_id=257), "its eos_token_id 257 is not a token"),
    "end of a wrong type": (settings(texts=["</s>"], eos_token_id=True), "its tokenizer.ggml.eos_token_id is True"),
    "begin": (settings(texts=["</s>"], add_bos_token=True), "has no bos_token_id"),
    "score": (settings("llama", ["</s>"], scores=[math.nan] * 257), "has a score that is no number"),
    "scores": (settings("llama", ["</s>"], scores=[1.0]), "its tokenizer.ggml.scores is no list of the right length"),
    "template": (settings(texts=["</s>"]) | {"tokenizer.chat_template": 3}, "its chat template is no text"),
    "long template": (
        settings(texts=["</s>"]) | {"tokenizer.chat_template": "x" * (1 << 20) + "x"},
        "its chat template is no text of at most 1 MiB",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_cannot_be_true_is_refused_by_one_line(fault):
    found, why = WRONG[fault]
    with pytest.raises(UserError) as refused:
        tokenizer_files(found, len(found["tokenizer.ggml.tokens"]), "m.gguf")
    assert str(refused.value).startswith("m.gguf: ") and why in str(refused.value) and "\n" not in str(refused.value)


def test_more_tokens_than_rows_are_refused():
    with pytest.raises(UserError, match="has 257 tokens and an embedding of 256 rows"):
        tokenizer_files(settings(texts=["</s>"]), 256, "m.gguf")
