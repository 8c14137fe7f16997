"""What transformers and others read of a trained tokenizer gives the same ids, for every text and conversation."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.test_trainer import AWKWARD, CHARACTERS, PLAIN, TEXTS
from tpullm.system.errors import UserError
from tpullm.tokenizer import exported, load
from tpullm.tokenizer.trainer import train

NAMES = st.sampled_from("<s> <unk> <pad> <|end|> <|reserved_3|> <0xE2> \u25810 \u25811 </ <|".split())
RUNS = st.tuples(st.sampled_from("= -#あー。1\u2581\n"), st.integers(1, 40)).map(lambda run: run[0] * run[1])
STRINGS = st.lists(st.one_of(st.text(CHARACTERS), AWKWARD, NAMES, RUNS)).map("".join)
CONFIGS = {
    "unigram": PLAIN,
    "words": dataclasses.replace(PLAIN, words="strict"),
    "bpe": dataclasses.replace(PLAIN, model_type="bpe", vocabulary_size=480),
    "characters": dataclasses.replace(PLAIN, model_type="char", vocabulary_size=0),
}


@pytest.fixture(scope="module", params=CONFIGS)
def made(request, tmp_path_factory):
    """A trained tokenizer, the library's of the folder that it was exported to, and ours of that folder."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = train(TEXTS, CONFIGS[request.param], folder / "tokenizer.model")
    (folder / "exported").mkdir()
    exported.write(folder / "exported", tokenizer, 64, tuned=True)
    return tokenizer, literal(folder / "exported"), load(folder / "exported")


def literal(folder):
    """The library's tokenizer, for which the name of a special token in a text is text."""
    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.encode_special_tokens = True
    return fast


def assert_same(tokenizer, fast, text):
    ids = fast.encode(text, add_special_tokens=False).ids
    assert ids == tokenizer.encode(text)
    assert fast.decode(ids) == text


@settings(max_examples=40, deadline=None)
@given(text=STRINGS)
def test_any_text_has_the_same_ids_and_so_has_one_in_which_names_are_special_tokens(made, text):
    tokenizer, fast, again = made
    assert_same(tokenizer, fast, text)
    assert tokenizer.encode_marked(text) == again.encode_marked(text) == again.encode(text)


@pytest.fixture(scope="module")
def of_real_text(real_text, tmp_path_factory):
    """Tokenizers of real Japanese and English, in pieces of any text and within words, and in characters."""
    folder = tmp_path_factory.mktemp("real")
    files = [("ja", file) for file in sorted((real_text / "soseki").iterdir())]
    files.append(("en", real_text / "tinyshakespeare.txt"))
    texts = [(language, file.read_text(encoding="utf-8")[:15_000]) for language, file in files]
    configs = [dataclasses.replace(CONFIGS["unigram"], vocabulary_size=4096), CONFIGS["characters"]]
    configs.append(dataclasses.replace(CONFIGS["words"], vocabulary_size=6000))
    configs.append(dataclasses.replace(CONFIGS["bpe"], vocabulary_size=4096))
    return [train(texts, config, folder / f"{number}.model") for number, config in enumerate(configs)]


@pytest.mark.parametrize("characters", [10_000, pytest.param(None, marks=pytest.mark.slow)])
def test_real_text_has_the_same_ids(of_real_text, real_text, tmp_path, characters):
    files = [file for file in sorted(real_text.rglob("*")) if file.is_file()]
    assert len(files) > 5
    for number, tokenizer in enumerate(of_real_text):
        (tmp_path / str(number)).mkdir()
        exported.write(tmp_path / str(number), tokenizer, 64, tuned=False)
        fast = literal(tmp_path / str(number))
        for file in files:
            assert_same(tokenizer, fast, file.read_text(encoding="utf-8")[:characters])


def conversations(real_text):
    """The dialogues, with a system turn in every other one."""
    roles, found = {"user": "user", "agent": "assistant"}, []
    for number, line in enumerate(open(real_text / "instruction_ja.jsonl", encoding="utf-8")):
        turns = [{"role": roles[said["name"]], "content": said["text"]} for said in json.loads(line)["utterances"]]
        found.append([{"role": "system", "content": "短く、丁寧に答える。"}] * (number % 2) + turns)
    return found


@pytest.mark.parametrize("number", [0, 3])
def test_conversations_have_the_same_ids_and_weights(of_real_text, real_text, tmp_path, number):
    """Read again by us, as a published tokenizer: the marks in its template say what is the assistant's."""
    tokenizer = of_real_text[number]
    exported.write(tmp_path, tokenizer, 64, tuned=True)
    again = load(tmp_path)
    dialogues = conversations(real_text)[:100]
    assert len(dialogues) == 100
    for messages in dialogues:
        assert again.chat_template(messages) == tokenizer.chat_template(messages)
    asked = dialogues[1][:2]
    assert again.chat_template(asked, True) == tokenizer.chat_template(asked, True)


@pytest.mark.parametrize("number", [0, 3])
def test_transformers_reads_the_same_ids(of_real_text, real_text, tmp_path, number):
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    tokenizer = of_real_text[number]
    exported.write(tmp_path, tokenizer, 64, tuned=True)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == tokenizer.end_id and theirs.bos_token_id == tokenizer.bos_id
    for text in ("今日は\n\nいい  天気🐈‍⬛", "", " a", "が\u3099", "a\u2581b", "====================", "<0x41>"):
        assert theirs(text)["input_ids"] == [tokenizer.bos_id, *tokenizer.encode(text)]
        assert theirs.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    options = dict(tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    for messages in conversations(real_text):
        found = theirs.apply_chat_template(messages, **options)
        ids, weights = tokenizer.chat_template(messages)
        assert found["input_ids"] == ids and found["assistant_masks"] == weights
    asked = conversations(real_text)[1][:2]
    prompt = theirs.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert prompt["input_ids"] == tokenizer.chat_template(asked, True)[0]


def test_a_conversation_as_text_has_its_ids(made):
    tokenizer, _, again = made
    messages = [{"role": "system", "content": "短く。"}, {"role": "user", "content": "猫は\n？ \u2581"}]
    text = "<s><|system|>短く。<|end|><|user|>猫は\n？ \u2581<|end|><|assistant|>"
    assert tokenizer.prompt_text(messages) == text == again.prompt_text(messages)
    assert tokenizer.encode_marked(text) == tokenizer.chat_template(messages, add_generation_prompt=True)[0]
    with pytest.raises(UserError, match="role robot is not one of"):
        again.chat_template([{"role": "robot", "content": "a"}])
    text = "a</s>b<|end|>"  # a document with the names of special tokens has none
    assert again.document(text)[:-1] == tokenizer.document(text)[:-1]
    assert again.encode(text) != tokenizer.encode(text)  # of a prompt they become tokens, as in transformers
