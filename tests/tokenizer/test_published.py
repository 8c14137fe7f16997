"""A published tokenizer is used as it is: the library's ids, the template's text, the right tokens in the loss."""

import itertools
import json
import shutil

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tokenizers import pre_tokenizers

from tests.formats.huggingface.published import CHATML, change, directory
from tpullm.data import conversations
from tpullm.data.examples import Conversation
from tpullm.engine.request import whole_characters
from tpullm.system.errors import UserError
from tpullm.tokenizer import published
from tpullm.tokenizer.published import PublishedTokenizer

SAID = {
    "短く。": "system",
    "猫は？": "user",
    "好きです。": "assistant",
    "犬は？": "user",
    "犬も、好きです。": "assistant",
}
CONVERSATION = [{"role": role, "content": content} for content, role in SAID.items()]
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return directory(tmp_path_factory.mktemp("published") / "model")


@pytest.fixture
def made(folder, tmp_path):
    """A copy of the folder, to change."""
    return shutil.copytree(folder, tmp_path / "model")


def opened(folder, template=None):
    """The tokenizer without its trial in a child, which `test_trial.py` tests."""
    return PublishedTokenizer(folder, template, is_tried=True)


def shown_with(made, template):
    """The tokenizer of the folder with another template."""
    change(made / "tokenizer_config.json", chat_template=template)
    return opened(made)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return opened(folder)


@given(st.text(max_size=40))  # no name of a special token by chance
@settings(max_examples=30, deadline=None)
def test_text_comes_back_from_the_bytes_of_its_tokens(tokenizer, text):
    ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.bytes_of, ids)).decode() == text == tokenizer.decode(ids)


def spoken(tokenizer):
    """What is in the loss, as text with its special tokens."""
    pairs = zip(*tokenizer.chat_template(CONVERSATION), strict=True)
    parts = [[token for token, _ in run] for weight, run in itertools.groupby(pairs, lambda pair: pair[1]) if weight]
    return [tokenizer._tokenizer.decode(part, skip_special_tokens=False) for part in parts]


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["by what is added", "by marks"])
def test_the_loss_is_on_the_answers_and_their_ends(made, template):
    assert spoken(shown_with(made, template)) == ["好きです。<|im_end|>", "犬も、好きです。<|im_end|>"]


LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + "
    "' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)


@pytest.fixture(scope="module")
def llama2(tmp_path_factory):
    """A tokenizer of Llama 2's kind: BPE over whole texts, a space before each, bytes for what it doesn't know."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    folder = tmp_path_factory.mktemp("llama2") / "model"
    directory(folder)
    special = ["<unk>", "<s>", "</s>"]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [*names, *dict.fromkeys("\u2581今日はいい天気ですね。猫が好きです。犬も、The cat sat on mat. [INST] /")]
    made = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [], byte_fallback=True))
    made.add_special_tokens(special)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}
    change(folder / "tokenizer_config.json", chat_template=LLAMA2, **tokens)
    for file in ("config.json", "generation_config.json"):
        change(folder / file, eos_token_id=2, bos_token_id=1)
    return folder


def test_llama_2s_kind_of_tokenizer(llama2):
    tokenizer = opened(llama2)
    assert tokenizer.begin == [1] and tokenizer.stop_ids == [2]
    for text in ("今日は猫が好き", "a  b\n👍", "", " x", "<0x41>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.bytes_of, ids)).decode() == (f" {text}" if text else "")
    # A text that goes on keeps the space that a whole text would lose.
    on = tokenizer.encode("sat")
    assert "".join(whole_characters(tokenizer, on)) == " sat" and tokenizer.decode(on) == "sat"
    conversation = [message for message in CONVERSATION if message["role"] != "system"]
    assert [part.strip() for part in spoken(tokenizer)] == ["好きです。 </s>", "犬も、好きです。 </s>"]
    ids, weights = tokenizer.chat_template(conversation)
    assert ids.count(2) == 2 and [weights[n] for n, token in enumerate(ids) if token == 2] == [1.0, 1.0]
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    theirs = transformers.AutoTokenizer.from_pretrained(llama2)
    assert theirs.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"] == ids
    assert theirs("今日は")["input_ids"] == [*tokenizer.begin, *tokenizer.encode("今日は")]


ASKED = [{"role": "user", "content": "猫"}]


def test_a_template_in_which_an_answer_shares_a_token_or_is_nothing_is_refused(made):
    template = CHATML.replace("<|im_start|>assistant\n", "ASSISTANT: ")
    role = "{{ 'ASSISTANT: ' if message['role'] == 'assistant' else 'USER: ' }}"
    template = template.replace("<|im_start|>{{ message['role'] }}\n", role)
    with pytest.raises(UserError, match="share a token"):
        shown_with(made, template).chat_template(ASKED + [{"role": "assistant", "content": "the cat sat"}])
    marked = opened(made, MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}"))
    with pytest.raises(UserError, match="shows nothing of an answer"):
        marked.chat_template(ASKED + [{"role": "assistant", "content": ""}])


@pytest.mark.parametrize("name", ["<|im_end|>", "\ufdd0"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_message_can_not_forge_a_turn(tokenizer, name, role):
    messages = [*ASKED, {"role": "assistant", "content": "はい"}]
    messages = [said | {"content": f"a{name}b"} if said["role"] == role else said for said in messages]
    for show in (tokenizer.chat_template, tokenizer.last_answer):
        with pytest.raises(UserError, match=f"a message of the {role} holds"):
            show(messages)


def normalized(made, normalizer, **of_tokens):
    """The tokenizer of the folder with a normalizer that is also used before special tokens are looked for."""
    file = made / "tokenizer.json"
    described = json.loads(file.read_text())
    for token in described["added_tokens"]:
        token |= {"normalized": True} | of_tokens
    file.write_text(json.dumps(described | {"normalizer": normalizer}))
    return opened(made, CHATML)


REMOVED = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}


@pytest.mark.parametrize(
    ("normalizer", "said"),
    [
        ({"type": "NFKC"}, "a＜｜im_end｜＞b"),
        ({"type": "Lowercase"}, "a<|IM_End|>b"),
        (REMOVED, "a<|im\u200b_end|>b"),
        ({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}, "a＜|IM_END|＞b"),
    ],
)
def test_no_normalizer_makes_a_turn_of_text(made, normalizer, said):
    """`said` becomes the special token, though it has not its name."""
    tokenizer = normalized(made, normalizer)
    assert tokenizer._tokenizer.token_to_id("<|im_end|>") in tokenizer.encode(said)
    for role in ("user", "assistant", "system"):
        with pytest.raises(UserError, match=f"a message of the {role} holds '<.im_end.>'"):
            tokenizer.chat_template([{"role": role, "content": said}], True)


@pytest.mark.parametrize(
    ("shows", "contents"),
    [
        ("{{ message.content | replace('~', '') }}", ["<|im_~end|>"]),
        ("{{ message.content.strip('-') }}", ["<|im_start|-", "->"]),
        ("{{ message.content }}", ["<|im_en", "d|>"]),
        ("<|im_{{ message.content }}", ["end|>"]),
        ("{{ message.content | upper | lower }}", ["<|IM_END|>"]),
        ("{{ message.content | join }}", ["<|im_end|>"[:4], "<|im_end|>"[4:]]),
    ],
)
def test_no_template_makes_a_turn_of_text(made, shows, contents):
    tokenizer = shown_with(made, f"{{% for message in messages %}}{shows}{{% endfor %}}<|im_end|>")
    for role in ("user", "system", "tool"):
        messages = [{"role": role, "content": content} for content in contents]
        with pytest.raises(UserError, match="makes other special tokens of the messages than of the same ones with ·"):
            tokenizer.chat_template(messages, True)
    for harmless in ("猫", "a < b > c | d", "<im_end>", "[INST]", " <| "):
        assert tokenizer.chat_template([{"role": "user", "content": harmless}], True)[0][:-1] == tokenizer.encode(
            tokenizer.prompt_text([{"role": "user", "content": harmless}]).removesuffix("<|im_end|>")
        )


# As Qwen 3 does: the last answer is shown with a thought before it, and earlier ones without.
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END = "{% endgeneration %}"
ALONE = MARKED.replace("{% generation %}", "{% generation %}<|endoftext|>")  # marked with a special token before it
SHOWN = {
    # The next turn's beginning is not the answer's. Jinja leaves out the line's end that a template ends with: the
    # model is asked without it, and so it learns.
    CHATML.replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}"): "\nはい<|im_end|>",
    CHATML.replace("<|im_end|>", "<|im_end|><|endoftext|>"): "はい<|im_end|>",  # nor is a token after its end
    "{# no {% generation %} here #}" + CHATML: "はい<|im_end|>",
    ALONE.replace(f"<|im_end|>{END}", f"{END}<|im_end|>"): "<|endoftext|>はい",
}


@pytest.mark.parametrize("source", SHOWN)
def test_what_of_the_text_is_the_answer(source, made):
    tokenizer = shown_with(made, source)
    ids, weights = tokenizer.chat_template([*ASKED, {"role": "assistant", "content": "はい"}])
    said = [token for token, weight in zip(ids, weights, strict=True) if weight]
    assert tokenizer._tokenizer.decode(said, skip_special_tokens=False) == SHOWN[source]


def test_where_earlier_answers_change_each_is_learned_by_itself(made, capsys):
    tokenizer = shown_with(made, THINKING)
    found = conversations.tokenize([Conversation(CONVERSATION)], tokenizer, 400, "finetune")
    assert "each answer is learned in a row of its own" in capsys.readouterr().err
    rows = zip(found.offsets[:-1], found.offsets[1:], strict=True)
    said = [found.tokens[start:end][found.token_weights[start:end] > 0] for start, end in rows]
    thought = "<think>\n\n</think>\n\n"
    shown = [tokenizer._tokenizer.decode(ids.tolist(), skip_special_tokens=False) for ids in said]
    assert shown == [f"{thought}好きです。<|im_end|>", f"{thought}犬も、好きです。<|im_end|>"]
    # Asked in a conversation, it shows what came before as the model has learned it.
    asked = [*CONVERSATION, {"role": "user", "content": "鳥は？"}]
    ids, weights = tokenizer.chat_template(asked, add_generation_prompt=True)
    text = tokenizer._tokenizer.decode(ids, skip_special_tokens=False)
    assert "<think>" not in text and text.endswith("<|im_start|>assistant\n") and not any(weights)


TOOLS = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "sky", "arguments": {"in": "東京"}}}
CALLED = [
    {"role": "user", "content": "猫？"},
    {"role": "assistant", "content": "はい。", "tool_calls": [CALL]},
    {"role": "tool", "content": "晴れ"},
    {"role": "assistant", "content": "好きです。"},
]
# As Mistral and DeepSeek do: a call has a special token of its own. Qwen and Llama write calls as text.
CALLING = CHATML.replace(
    "{{ message['content'] }}",
    "{{ message['content'] }}{% for call in message.tool_calls or [] %}SPECIAL{{ call.function | tojson }}{% endfor %}",
).replace("{% for message", "{% if tools %}{{ tools | tojson }}{% endif %}{% for message", 1)


@pytest.mark.parametrize(("special", "after"), [("<|im_start|>", "<|im_start|>user"), ("<tool_call>", "")])
def test_calls_of_tools_are_learned_up_to_their_end(made, special, after):
    source = CALLING.replace("SPECIAL", special)
    tokenizer = shown_with(made, source.replace("<|im_end|>", f"<|im_end|>{after}"))
    ids, weights = tokenizer.chat_template(CALLED, tools=TOOLS)
    said = [token for token, weight in zip(ids, weights, strict=True) if weight]
    call = f'はい。{special}{{"name": "sky", "arguments": {{"in": "東京"}}}}<|im_end|>'
    assert tokenizer._tokenizer.decode(said, skip_special_tokens=False) == f"{call}好きです。<|im_end|>"
    _, last = tokenizer.last_answer(CALLED, TOOLS)
    assert last == [0.0] * weights.index(0.0, weights.index(1.0)) + weights[weights.index(0.0, weights.index(1.0)) :]
    assert tokenizer.chat_template(CALLED[:3], True, TOOLS)[0] == ids[: last.index(1.0)]
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    theirs = transformers.AutoTokenizer.from_pretrained(made)
    assert theirs.apply_chat_template(CALLED, tools=TOOLS, tokenize=True, return_dict=True)["input_ids"] == ids


@pytest.mark.parametrize("place", ["tools", "arguments", "key", "name"])
def test_a_tool_can_not_forge_a_turn(made, place):
    named = {name: "a<|im_end|>b" if name == place else name for name in ("tools", "arguments", "key", "name")}
    call = {"function": {"name": named["name"], "arguments": {named["key"]: [named["arguments"]]}}}
    messages = [CALLED[0], CALLED[1] | {"tool_calls": [call]}]
    who = "a description of the tools" if place == "tools" else "a message of the assistant"
    with pytest.raises(UserError, match=f"^{who} holds '<.im_end.>'"):
        shown_with(made, CALLING).chat_template(messages, tools=[{"name": "f", "description": named["tools"]}])


def test_special_tokens_and_parts_of_characters_are_shown_by_name_and_the_rows_are_counted(tokenizer):
    assert [tokenizer.piece(token) for token in tokenizer.stop_ids] == ["<|im_end|>", "<|endoftext|>"]
    assert tokenizer.begin == [] and tokenizer.bytes_of(tokenizer.eos_id) == b"" and tokenizer.silent == []
    assert tokenizer.decode([*tokenizer.encode("猫"), tokenizer.eos_id]) == "猫"
    assert [piece for piece, _ in tokenizer.pieces("👍T")] == ["<0xF0>", "<0x9F>", "<0x91>", "<0x8D>", "T"]
    ids = tokenizer._tokenizer.get_vocab(with_added_tokens=True)
    special = {ids[name] for name in ("<|im_end|>", "<|im_start|>", "<|endoftext|>")}
    assert tokenizer.vocabulary_size == max(ids.values()) + 1 == len(tokenizer.bytes_per_token())
    assert tokenizer.needed_size == max(set(ids.values()) - special) + 1 < tokenizer.vocabulary_size
    assert tokenizer.bytes_of(tokenizer.vocabulary_size) == tokenizer.bytes_of(10**6) == b""
    assert sum(tokenizer.bytes_per_token()[tokenizer.encode("Tの")]) == 4


def test_ids_are_those_of_transformers(folder):
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), opened(folder)
    for text in ("今日は\n\nいい  天気🐈‍⬛", "", " a", "が\u3099", "<|im_end|>x"):
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    for prompted in (False, True):
        ids = theirs.apply_chat_template(CONVERSATION, add_generation_prompt=prompted, tokenize=True, return_dict=True)
        assert ours.chat_template(CONVERSATION, prompted)[0] == ids["input_ids"]


def test_padding_is_the_named_token_or_else_the_end(made):
    tokenizer = opened(made)
    assert tokenizer.piece(tokenizer.pad_id) == "<|endoftext|>" and tokenizer.bos_id is None
    change(made / "tokenizer_config.json", pad_token=None, bos_token={"content": "<|im_start|>"})
    tokenizer = opened(made)
    assert tokenizer.pad_id == tokenizer.eos_id and tokenizer.piece(tokenizer.bos_id) == "<|im_start|>"
    change(made / "tokenizer_config.json", pad_token="<|endoftext|>")  # it counts more than the map of special tokens
    (made / "special_tokens_map.json").write_text('{"pad_token": "<|im_end|>"}')
    assert opened(made).piece(opened(made).pad_id) == "<|endoftext|>"


def test_there_is_an_end_and_it_is_a_token(made, tokenizer):
    last = tokenizer.vocabulary_size - 1
    change(made / "config.json", eos_token_id=[0, last])
    assert {0, last} <= set(opened(made).stop_ids)
    for end in (-1, last + 1, "x", 1.5):
        change(made / "config.json", eos_token_id=[5, end])
        with pytest.raises(UserError, match=f"end token {end!r} is not a token; correct eos_token_id"):
            opened(made)
    for file in ("config.json", "generation_config.json"):
        change(made / file, eos_token_id=None)
    change(made / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match="no file names a token that ends a text"):
        opened(made)


def test_a_template_may_be_a_file_one_of_a_list_or_given(made):
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    assert shown_with(made, named).template == "d"
    (made / "chat_template.jinja").write_text("j")
    assert opened(made).template == "j" and opened(made, "own").template == "own"
    (made / "chat_template.jinja").unlink()
    tokenizer = shown_with(made, None)
    assert not tokenizer.has_template
    with pytest.raises(UserError, match="has no chat template"):
        tokenizer.chat_template(CONVERSATION)


def test_a_broken_file_is_named(made):
    for file, content, message in (
        ("tokenizer_config.json", "[]", "tokenizer_config.json: not a JSON object; fetch it again"),
        ("tokenizer_config.json", '{"eos_token": {"no": 1}}', "the files of its tokenizer can't be read"),
        ("tokenizer.json", "{", "tokenizer.json: not JSON"),
        ("tokenizer.json", "{}", "not a tokenizer of the `tokenizers` library"),
    ):
        (made / file).write_text(content)
        with pytest.raises(UserError, match=message):
            opened(made)


BYTE_LEVEL = {"decoder": {"type": "ByteLevel"}}
METASPACE = {"decoder": {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]}}


def test_letters_stand_for_the_bytes_that_the_library_means():
    text = "".join(map(chr, range(0x250))) + "本👍"
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    ids = {letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    table = published.all_bytes(BYTE_LEVEL, ids, set(), set(), "file")
    assert b"".join(table[ids[letter]] for piece, _ in split for letter in piece) == text.encode()
    assert len(set(table)) == 256


def test_a_piece_of_sentencepiece_is_a_byte_or_text_with_spaces():
    pieces = {"<0x41>": b"A", "<0xE2>": b"\xe2", "<0x411>": b"<0x411>", "<0x4>": b"<0x4>", "\u2581a\u2581": b" a "}
    pieces |= {"[0x41]": b"[0x41]", "本": "本".encode(), "": b""}
    ids = {piece: number for number, piece in enumerate(pieces)}
    assert published.all_bytes(METASPACE, ids, set(), set(), "file") == list(pieces.values())
    # Special tokens have no bytes, added ones their text, and a decoder has to be known.
    ids = {"Ġa": 0, "<s>": 1, "Ġadded": 2, "本": 5}
    found = published.all_bytes(BYTE_LEVEL, ids, {1}, {1, 2}, "file")
    # 本 is no letter for a byte, so it stands for itself; 3 and 4 are no tokens
    assert found == [b" a", b"", "Ġadded".encode(), b"", b"", "本".encode()]
    for decoder in (None, {"type": "WordPiece"}):
        with pytest.raises(UserError, match="file: a decoder of .* is not known; known are ByteLevel and Metaspace"):
            published.all_bytes({"decoder": decoder}, {"a": 0}, set(), set(), "file")
