"""A published tokenizer is used as it is: the library's ids, the template's text, the right tokens in the loss."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.huggingface.published import CHATML, change, directory
from tpullm.errors import UserError
from tpullm.tokenizer.published import PublishedTokenizer

CONVERSATION = [
    {"role": "system", "content": "短く。"},
    {"role": "user", "content": "猫は？"},
    {"role": "assistant", "content": "好きです。"},
    {"role": "user", "content": "犬は？"},
    {"role": "assistant", "content": "犬も、好きです。"},
]
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return directory(tmp_path_factory.mktemp("published") / "model")


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_text_comes_back_from_the_bytes_of_its_tokens(folder, text):
    tokenizer = _tokenizer(folder)
    ids = tokenizer.encode(text)
    special = any(token in text for token in ("<|im_end|>", "<|im_start|>", "<|endoftext|>"))
    if not special:
        assert b"".join(map(tokenizer.bytes_of, ids)).decode() == text == tokenizer.decode(ids)


_kept = {}


def _tokenizer(folder):
    return _kept.setdefault(folder, PublishedTokenizer(folder))


def spoken(tokenizer):
    """What is in the loss, as text with its special tokens."""
    ids, weights = tokenizer.chat_template(CONVERSATION)
    parts, last = [], 0.0
    for token, weight in zip(ids, weights, strict=True):
        if weight and not last:
            parts.append([])
        if weight:
            parts[-1].append(token)
        last = weight
    return [tokenizer._tokenizer.decode(part, skip_special_tokens=False) for part in parts]


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["by what is added", "by marks"])
def test_the_loss_is_on_the_answers_and_their_ends(tmp_path, template):
    made = directory(tmp_path / "model")
    change(made / "tokenizer_config.json", chat_template=template)
    assert spoken(PublishedTokenizer(made)) == ["好きです。<|im_end|>", "犬も、好きです。<|im_end|>"]


def test_a_template_that_hides_answers_is_refused(tmp_path):
    made = directory(tmp_path / "model")
    counted = CHATML.replace("<|im_start|>{{", "<|im_start|>{{ messages | length }}{{")
    change(made / "tokenizer_config.json", chat_template=counted)
    with pytest.raises(UserError, match="changes a conversation as it grows"):
        PublishedTokenizer(made).chat_template(CONVERSATION)


def test_special_tokens_are_found(folder):
    tokenizer = PublishedTokenizer(folder)
    assert [tokenizer.piece(token) for token in tokenizer.stop_ids] == ["<|im_end|>", "<|endoftext|>"]
    assert tokenizer.begin == [] and tokenizer.bytes_of(tokenizer.eos_id) == b""


def test_ids_are_those_of_transformers(folder):
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), PublishedTokenizer(folder)
    for text in ("今日は\n\nいい  天気🐈‍⬛", "", " a", "が\u3099", "<|im_end|>x"):
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    for prompted in (False, True):
        ids = theirs.apply_chat_template(CONVERSATION, add_generation_prompt=prompted, tokenize=True, return_dict=True)
        assert ours.chat_template(CONVERSATION, prompted)[0] == ids["input_ids"]
