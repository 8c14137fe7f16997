"""Examples are read from files of any shape, or named with their place, and held out by hash."""

import hashlib
import itertools
import json
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.data.test_conversations import CHATS, say, write
from tpullm.corpus import tenki
from tpullm.corpus.question import messages
from tpullm.data.examples import Conversation, Judged, Preference, Prompt, identity, read, split
from tpullm.data.examples.shapes import Columns, examples
from tpullm.system.errors import UserError

TALKS, ROWS = [Conversation(chat) for chat in CHATS], [{"messages": chat} for chat in CHATS]


def all_of(*names, kind=Conversation, columns=None):
    learned, held_out = read([str(name) for name in names], kind, columns or {}, 0.0, seed=0)
    assert held_out == []
    return learned


def made(row, kind=Conversation, columns=None):
    ((_, example),) = examples([("here", row)], kind, Columns(columns or {}, kind))
    return example


GOOD = {"messages": say("今日は?", "いい天気です。")}
CALL = {"type": "function", "function": {"name": "sky", "arguments": {"in": "東京"}}}


def answered(**answer):
    return {"messages": [*say("今日は?"), {"role": "assistant", "content": "はい", **answer}]}


TALK, SYSTEM = {"messages": say("今日は?", "いい")}, {"role": "system", "content": "短く。"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"messages": [', "is not JSON"),
        ("[" * 10**6, "is nested too deeply"),
        ('{"messages": 1' + "0" * 5000 + "}", "is not JSON"),
        ("[]", "is not an object"),
        (TALK | {"tools": 1}, "tools is not a list"),
        (TALK | {"tools": "{"}, "tools: is not JSON"),
        (TALK | {"tools": [{"a": "\ud800"}]}, "tools holds half of a surrogate"),
        (TALK | {"tools": [{"a": json.loads("[" * 32 + "]" * 32)}]}, "tools: is nested more than 32 levels"),
        ({"conversations": GOOD["messages"]}, "has no 'messages', which the first example of the file has"),
        ({"messages": []}, "has no messages"),
        ({"messages": ["いい天気"]}, "message 1: is not an object"),
        ({"messages": say("今日は?")}, "no turn of the assistant"),
        ({"messages": [{"role": "robot", "content": "はい"}]}, "message 1: the role 'robot' is unknown; use system, "),
        ({"messages": [{"role": ["user"], "content": "はい"}]}, r"message 1: the role \['user'\] is unknown"),
        ({"messages": [{"role": "assistant"}]}, "message 1: has no content"),
        ({"messages": say("今日は?", "\ud800")}, "message 2: its content holds half of a surrogate"),
        ({"messages": say("今日は?", [{"type": "image_url"}])}, "its content is of type 'image_url' and not text"),
        ({"messages": say("今日は?", [{"type": "text", "text": None}])}, "its content is of type NoneType"),
        (answered(weight=0), "message 2: has weight 0"),
        (answered(tool_calls="f"), "message 2: tool_calls is not a list"),
        (answered(tool_calls=[CALL, {"function": {"name": " "}}]), "tool call 2: has no function with a name"),
        (answered(tool_calls=[{"name": "f", "arguments": "{"}]), "tool call 1: its arguments: is not JSON"),
        (answered(tool_calls=[{"name": "f", "arguments": "[]"}]), "tool call 1: its arguments are no object"),
        (answered(reasoning_content="\udfff"), "message 2 holds half of a surrogate"),
        (TALK | {"system": "\udfff"}, "system: its content holds half"),
        ({"messages": [SYSTEM, *say("a", "b")], "system": "短く。"}, "has `system` and a"),
    ],
)
def test_a_broken_line_is_refused_with_file_and_line(tmp_path, line, told):
    path = write(tmp_path / "chats.jsonl", GOOD, "", line, GOOD)
    with pytest.raises(UserError, match=rf"chats\.jsonl: line 3.*{told}"):
        all_of(path)


OTHER_SHAPES = [
    ({"text": "いい天気"}, "its keys are 'text', which is no shape of conversations"),
    ({}, "its keys are none, which is no shape"),
    ({"k" * 99: 1}, f"its keys are '{'k' * 39}, which is no shape"),
    ({"conversations": [{"from": "gptx", "value": "a"}]}, "message 1: the role 'gptx'"),
    ({"instruction": "a", "output": ""}, "output: has no content; write what the assistant says"),
    ({"instruction": "a", "input": 5, "output": "b"}, "its instruction or input is not text"),
    ({"prompt": "a", "completion": 1}, "completion: has no messages"),
    ({"prompt": "a", "completion": "b", "label": True}, "its `label` judges the answer"),
    ({"prompt": say("a", "b"), "completion": "b"}, "prompt: what is asked ends with the assistant"),
    ({"prompt": "\n\nHuman:", "completion": "b"}, "prompt, message 1: has no content"),
]
PAIRS = [
    ({"prompt": "a", "chosen": "b", "rejected": "b "}, "both answers are equal"),
    ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected: has no content"),
    ({"prompt": "a", "chosen": "b"}, "its keys are 'prompt', 'chosen', which is no shape of preferences"),
    ({"chosen": "b", "rejected": "c"}, "has no prompt, and its two answers have nothing in common; add a `prompt`"),
    ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: b\n\nAssistant: c"}, "nothing in common"),
    ({"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: c"}, "chosen: ends without an"),
    ({"chosen": say("a", "b"), "rejected": say("a", "b", "c", "d")}, "rejected: is not one turn of the assistant"),
    ({"prompt": "x", "chosen": say("a", "b"), "rejected": say("a", "c")}, "answers begin with another conversation"),
    ({"prompt": "x", "chosen": say("a", "b"), "rejected": say("y", "c")}, "chosen: is not one turn of the assistant"),
    ({"chosen": say("a", "b")[::-1], "rejected": say("a", "c")[::-1]}, "chosen: ends without an answer"),
    ({"chosen": say("a", "b")[1:] * 2, "rejected": [say("a", "b")[1], say("a", "c")[1]]}, "ends with the assistant"),
    ({"prompt": "a", "chosen": {"role": "user", "content": "b"}, "rejected": "c"}, "chosen: ends without an answer"),
]
JUDGED = [
    ({"prompt": "a", "completion": "b", "label": "yes"}, "its label is 'yes'; write true"),
    ({"prompt": "a", "completion": "b", "label": []}, r"its label is \[\]"),
    ({"prompt": "a", "completion": say("a", "b"), "label": 1}, "completion: is not one turn of the assistant"),
    ({"prompt": "a", "completion": "", "label": 1}, "completion: has no content"),
    ({"prompt": "a", "completion": "b"}, "no shape of judged answers"),
]
PROMPTS = [
    ({"question": "a"}, "its keys are 'question', which is no shape of prompts"),
    ({"prompt": ""}, "prompt: has no content"),
    ({"prompt": "a", "answer": ["\ud800"]}, "holds half of a surrogate"),
    ({"messages": say("a", "b")[1:]}, "nothing comes before its last answer"),
    ({"messages": [{"role": "system", "content": "a"}, *say("a", "b")[1:]]}, "what is asked ends with the system"),
]


WRONG = {Conversation: OTHER_SHAPES, Preference: PAIRS, Judged: JUDGED, Prompt: PROMPTS}


@pytest.mark.parametrize(("kind", "row", "told"), [(kind, *case) for kind in WRONG for case in WRONG[kind]])
def test_a_wrong_row_of_every_kind_is_refused_with_its_place(kind, row, told):
    with pytest.raises(UserError, match=f"^here.*{told}"):
        made(row, kind)


# What a person says, in the files of others: no half of a pair, and more than white space.
SAID = st.text(min_size=1, max_size=20).filter(str.strip)
PLAIN = SAID.map(str.strip).filter(lambda text: "\n\nHuman:" not in text and "\n\nAssistant:" not in text)
NAMES = {
    "messages": ("role", "content", {"system": "developer"}),
    "conversations": ("from", "value", {"user": "human", "assistant": "gpt"}),
    "utterances": ("name", "text", {"assistant": "agent"}),
}


@st.composite
def talks(draw, said=SAID, most=3):
    """A conversation of whole exchanges, perhaps with a system."""
    exchanges = draw(st.lists(st.tuples(said, said), min_size=1, max_size=most))
    messages = say(*itertools.chain.from_iterable(exchanges))
    return [*([{"role": "system", "content": draw(said)}] if draw(st.booleans()) else []), *messages]


def turned(messages, role, content, names):
    return [{role: names.get(said["role"], said["role"]), content: said["content"]} for said in messages]


@given(talks(), st.integers(0, 20))
def test_a_conversation_is_the_same_in_every_shape(messages, place):
    expected = Conversation(messages)
    for key, (role, content, names) in NAMES.items():
        assert made({key: turned(messages, role, content, names)}) == expected
        assert made({"messages": turned(messages, role, content, names)}) == expected, "the keys of turns may be mixed"
    cut = lambda text: [{"type": "text", "text": text[:place]}, text[place:]]  # noqa: E731
    assert made({"messages": [said | {"content": cut(said["content"])} for said in messages]}) == expected
    assert made({"prompt": messages[:-1], "completion": messages[-1:], "text": "x"}) == expected
    assert made({"prompt": messages[:-1], "completion": messages[-1]["content"]}) == expected
    columns = {"messages": "talk", "role": "who", "content": "says"}
    assert made({"talk": turned(messages, "who", "says", {}), "messages": "x"}, columns=columns) == expected
    if messages[0]["role"] == "system":
        assert made({"conversations": messages[1:], "system": messages[0]["content"], "tools": []}) == expected


@given(SAID, SAID, SAID)
def test_a_question_with_an_answer_is_the_same_in_every_shape(asked, about, answer):
    expected = Conversation(say(asked, answer))
    for more in ({}, {"input": ""}, {"input": None, "system": ""}, {"tools": None}):
        assert made({"instruction": asked, "output": answer, **more}) == expected
        assert made({"q": asked, "output": answer, **more}, columns={"instruction": "q"}) == expected
    assert made({"prompt": asked, "completion": answer}) == expected
    assert made({"prompt": asked, "completion": [{"from": "gpt", "value": answer}]}) == expected
    whole = Conversation(say(f"{asked}\n\n{about}", answer))
    assert made({"instruction": asked, "input": about, "output": answer}) == whole


@given(talks(), SAID)
def test_a_pair_is_the_same_in_every_shape(messages, other):
    chosen, rejected = messages[-1], messages[-1] | {"content": other + "x" + messages[-1]["content"]}
    expected = Preference(messages[:-1], chosen, rejected)
    contents = {"chosen": chosen["content"], "rejected": rejected["content"]}
    assume(not all(text.startswith(messages[-2]["content"]) for text in contents.values()))  # a prompt, repeated
    alone = {"chosen": [chosen], "rejected": {"from": "gpt", "value": rejected["content"]}}
    whole = {"chosen": messages, "rejected": [*messages[:-1], rejected]}
    for sides in (contents, alone, whole):
        assert made({"prompt": messages[:-1], **sides, "score": 1}, Preference) == expected
    assert made(whole, Preference) == expected
    assert made({"prompt": messages[-2]["content"], **whole}, Preference) == expected
    if len(messages) == 2:
        for sides in (contents, alone, whole):
            assert made({"prompt": messages[0]["content"], **sides}, Preference) == expected
            assert made({"instruction": messages[0]["content"], **sides}, Preference) == expected


@given(talks(PLAIN), PLAIN)
def test_a_transcript_is_the_same_pair(messages, other):
    messages = [said for said in messages if said["role"] != "system"]
    rejected = messages[-1] | {"content": f"{other}x{messages[-1]['content']}"}
    expected = Preference(messages[:-1], messages[-1], rejected)
    sides = {"chosen": transcribed(messages), "rejected": transcribed([*messages[:-1], rejected])}
    assert made(sides, Preference) == expected
    asked = transcribed(messages[:-1]) + "\n\nAssistant:"
    assert made({"prompt": asked, **sides}, Preference) == expected
    answers = {"chosen": messages[-1]["content"], "rejected": rejected["content"]}
    assert made({"prompt": asked, **answers}, Preference) == expected
    assert made({"prompt": asked, "completion": answers["chosen"]}).messages == messages


def transcribed(messages):
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[said['role']]}: {said['content']}" for said in messages)


@given(SAID, PLAIN, PLAIN, st.sampled_from(["\n", " ", "\n\n"]))
def test_texts_may_repeat_their_prompt(asked, chosen, other, between):
    rejected = f"{chosen}{other}"
    expected = Preference(say(asked), say("", chosen)[1], say("", rejected)[1])
    sides = {"chosen": f"{asked}{between}{chosen}", "rejected": f"{asked}{between}{rejected}"}
    assert made({"prompt": asked, **sides}, Preference) == expected
    once = made({"prompt": asked, "chosen": sides["chosen"], "rejected": f"x{rejected}"}, Preference)
    assert once.chosen["content"] == sides["chosen"], "one answer alone may begin like its prompt"
    grown = made({"prompt": asked, "chosen": f"{asked}{chosen}", "rejected": f"{asked}x{rejected}"}, Preference)
    assert grown.chosen["content"] == f"{asked}{chosen}", "both may, without white space"


@given(talks(), st.booleans())
def test_a_judged_answer_is_the_same_in_every_shape(messages, good):
    expected = Judged(messages[:-1], messages[-1], good)
    for label in (good, int(good), float(good)):
        for completion in (messages[-1]["content"], messages[-1:], messages[-1]):
            assert made({"prompt": messages[:-1], "completion": completion, "label": label}, Judged) == expected


def test_a_prompt_keeps_its_further_fields():
    fields = {"answer": 2, "level": {"name": ["易しい", None, 1.5]}}
    row = {"prompt": "1 + 1 は?", "system": "短く。", "tools": "[]"} | fields
    assert made(row, Prompt) == Prompt([SYSTEM, *say("1 + 1 は?")], fields)
    renamed = {"q": row["prompt"], "solution": 2, "prompt": "x"}
    assert made(renamed, Prompt, {"prompt": "q", "answer": "solution"}) == Prompt(say("1 + 1 は?"), {"answer": 2})


def test_conversations_are_prompts_before_their_last_answer():
    expected = Prompt(say("a", "b", "c"), {"answer": "d", "id": 1})
    assert made({"messages": say("a", "b", "c", "d"), "id": 1}, Prompt) == expected
    assert made({"messages": say("a", "b", "c", "d", "e"), "id": 1}, Prompt) == expected
    assert made({"messages": say("a", "b"), "answer": "x"}, Prompt) == Prompt(say("a"), {"answer": "x"})
    alpaca = {"instruction": "a", "input": "c", "output": "b", "system": "短く。"}
    assert made(alpaca, Prompt) == Prompt([SYSTEM, *say("a\n\nc")], {"answer": "b"})
    assert made({"messages": say("a", "b"), "input": "c"}, Prompt).fields == {"answer": "b", "input": "c"}


def test_calls_of_tools_are_as_chat_templates_expect_them():
    tools = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}]
    result = {"role": "tool", "content": "", "name": "sky", "tool_call_id": "1"}
    calls = [{"id": "1", **CALL}]
    called = {"role": "assistant", "content": "", "tool_calls": calls}
    messages = [*say("東京は?"), called, result, *say("", "晴れ")[1:]]
    expected = Conversation(messages, tools)
    texts = [{"id": "1", "function": {"name": "sky", "arguments": '{"in": "東京"}'}, "index": 0}]
    for each in (calls, texts):
        for content in ("", None, []):
            said = messages[1] | {"content": content, "tool_calls": each, "refusal": None, "name": "bot", "weight": 1}
            row = {"messages": [messages[0] | {"weight": 0, "id": 5}, said, *messages[2:]]}
            assert made(row | {"tools": tools}) == made(row | {"tools": json.dumps(tools)}) == expected
    (bare,) = made(answered(tool_calls=[{"name": "f"}])).messages[1]["tool_calls"]
    assert bare == {"type": "function", "function": {"name": "f", "arguments": {}}}
    thought = answered(reasoning_content="うーん", tool_calls=[])
    assert made(thought).messages[1] == say("", "はい")[1] | {"reasoning_content": "うーん"}
    assert made({"prompt": "a", "chosen": "b", "rejected": "c", "tools": tools}, Preference).tools == tools
    assert made({"prompt": "a", "completion": "b", "label": 0, "tools": tools}, Judged).tools == tools
    assert made({"prompt": "a", "tools": tools}, Prompt) == Prompt(say("a"), {}, tools)
    seen = [{"from": "human", "value": "a"}, {"from": "observation", "value": "b"}, *say("", "c")[1:]]
    assert made({"conversations": seen}).messages[1] == {"role": "tool", "content": "b"}


def test_columns_are_checked(tmp_path):
    with pytest.raises(UserError, match=r"^columns\.mesages: is no key of conversations; the nearest is messages$"):
        Columns({"mesages": "talk"}, Conversation)
    path, other = write(tmp_path / "a.jsonl", {"talk": GOOD["messages"]}), write(tmp_path / "b.jsonl", GOOD)
    assert all_of(path, other, columns={"messages": "talk"}) == [Conversation(GOOD["messages"])] * 2
    for ours in ("messages", "content"):
        with pytest.raises(UserError, match=rf"columns\.{ours}: no file has 'talks'; correct its name or remove it"):
            all_of(other, columns={ours: "talks"})
    tools = [{"function": {"name": "f", "parameters": {}}, "name": "user"}]
    assert made({**GOOD, "tools": tools}, columns={"role": "name"}).tools == tools, "only turns are renamed"


@given(fraction=st.floats(0, 1))
def test_a_conversation_is_held_out_by_its_hash_alone(fraction):
    _, held_out = split(TALKS, fraction)
    for talk in TALKS:
        said = json.dumps([[message["role"], message["content"]] for message in talk.messages], ensure_ascii=False)
        place = int(hashlib.sha256(said.encode()).hexdigest()[:16], 16) / 2**64
        assert (talk in held_out) == (place < fraction)
        assert split([talk], place) == ([talk], [])


def test_all_examples_of_a_prompt_are_of_one_group_and_what_it_calls_is_part_of_a_conversation():
    asked, said = say("a"), say("", "b")[1]
    kinds = Preference(asked, said, say("", "c")[1]), Judged(asked, said, True), Prompt(asked, {"answer": 1})
    assert {one.group for one in kinds} == {identity(asked)}
    plain, called = answered()["messages"], answered(tool_calls=[CALL])["messages"]
    tools = [{"name": "f", "parameters": {}}]
    assert len({identity(plain), identity(called), identity(plain, tools), identity(called, tools)}) == 4
    assert identity(plain, [{"parameters": {}, "name": "f"}]) == identity(plain, tools)


def test_the_conversations_of_a_recipe_are_its_files_and_the_questions_of_tenki(tmp_path):
    path = write(tmp_path / "chats.jsonl", *ROWS)
    learned, held_out = read(["tenki", str(path)], Conversation, {}, 0.25, seed=3)
    of_file, questions = split(TALKS, 0.25), tenki.split_questions(0.25, seed=3)
    of_tenki = [[Conversation(messages(talk)) for talk in tenki.conversations(part, 3)] for part in questions]
    assert (learned, held_out) == (of_tenki[0] + of_file[0], of_tenki[1] + of_file[1])
    prompts, held_prompts = read(["tenki"], Prompt, {}, 0.25, seed=3)
    assert [prompt.messages for prompt in prompts] == [messages([question])[:1] for question in questions[0]]
    wanted = [{"answers": list(question.answers), "kind": question.kind} for question in questions[1]]
    assert [prompt.fields for prompt in held_prompts] == wanted
    with pytest.raises(UserError, match="tenki: has conversations and prompts, but no preferences; name a file"):
        read(["tenki"], Preference, {}, 0.25, seed=3)


SEEDS = {
    Conversation: [
        GOOD,
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "[]"},
        {"instruction": "a", "input": "b", "output": "c", "system": "d"},
        answered(tool_calls=[CALL]) | {"tools": [CALL]},
    ],
    Preference: [
        {"prompt": "a", "chosen": say("a", "b"), "rejected": say("a", "c")},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    ],
    Judged: [{"prompt": say("a"), "completion": say("", "b")[1:], "label": True}],
    Prompt: [{"prompt": "a", "answer": {"b": [1, 2.5]}}],
}
ODD = [None, True, 0, -1, 1e400, float("nan"), "", "\ud800", "\0", [], {}, [[]], [None], {"": ""}, "\n\nHuman:", 10**40]


def mutated_value(value, choose):
    if choose.random() < 0.25 or not value or not isinstance(value, dict | list):
        return choose.choice(ODD)
    place = choose.choice([*value] if isinstance(value, dict) else range(len(value)))
    return (value | {place: mutated_value(value[place], choose)}) if isinstance(value, dict) else [
        *value[:place], mutated_value(value[place], choose), *value[place + 1 :]
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_a_mutated_file_is_read_or_refused_in_one_line(tmp_path, seed):
    choose, refused = random.Random(seed), 0
    for _ in range(100):
        kind = choose.choice([*SEEDS])
        lines = [choose.choice(SEEDS[kind])] * 2
        lines[1] = mutated_value(lines[1], choose)
        name = choose.choice(["a.jsonl", "a.json", "b.json"])
        written = {"a.jsonl": "\n".join(map(json.dumps, lines)), "a.json": json.dumps(lines)}
        (tmp_path / name).write_text(written.get(name, json.dumps({"data": lines}, indent=1)))
        try:
            for example in all_of(tmp_path / name, kind=kind):
                json.dumps(vars(example), ensure_ascii=False).encode()
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(tmp_path / name)) and "\n" not in str(error) and len(str(error)) < 900
    assert 30 < refused < 90
