"""A template shows a conversation as transformers would, and says where the answers are; in a child as well."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.system.errors import UserError
from tpullm.system.process.limited import Limited
from tpullm.tokenizer.chat_template import (
    Answer,
    ChatTemplate,
    EarlierAnswersChangeError,
    TemplateChild,
    without_old_turns,
)

SAID = {"猫は？": "user", "好き。": "assistant", "犬は？": "user", "犬も。": "assistant"}
TALK = [{"role": role, "content": content} for content, role in SAID.items()]
PLAIN = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
CONTENT = "{{ m['content'] }}"
ANSWER = "{% if m['role'] == 'assistant' %}{% generation %}" + CONTENT + "{% endgeneration %}{% else %}"
MARKED = PLAIN.replace(CONTENT, ANSWER + CONTENT + "{% endif %}")
TOOLS = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}]
CALLS = [{"type": "function", "function": {"name": "sky", "arguments": {"in": place}}} for place in ("東京", "京都")]
TOOL_TALK = [
    {"role": "user", "content": "天気は？"},
    {"role": "assistant", "content": "", "tool_calls": CALLS},
    {"role": "tool", "content": "晴れ"},
    {"role": "assistant", "content": "晴れです。"},
]
WITH_TOOLS = (
    "{% for tool in tools or [] %}s:{{ tool | tojson + '\n' }}{% endfor %}"
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


def show(what, source, messages, tools=None, kind=ChatTemplate):
    return kind(source, {"bos_token": "<s>"}, "folder").show(what, messages, tools)


@pytest.mark.parametrize(("source", "content", "end"), [(PLAIN, True, "\n"), (MARKED, False, "")])
def test_answers_are_found_by_marks_or_by_what_they_add(source, content, end):
    text, answers = show("answers", source, TALK)
    assert text == "u:猫は？\na:好き。\nu:犬は？\na:犬も。\n"
    assert [text[answer.start : answer.end] for answer in answers] == ["好き。" + end, "犬も。" + end]
    assert [answer.content for answer in answers] == (["好き。", "犬も。"] if content else [None, None])
    assert show("last", source, TALK) == (text, answers[1:])
    assert show("prompt", source, TALK[:3]) == ("u:猫は？\na:好き。\nu:犬は？\na:", [])


HIDDEN = PLAIN.replace("{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] == 'user' else '-' }}")


@pytest.mark.parametrize("kind", [ChatTemplate, TemplateChild])
def test_an_earlier_answer_that_changes_is_told_apart_from_other_faults(kind):
    with pytest.raises(EarlierAnswersChangeError, match="folder: its chat template changes a conversation as it grows"):
        show("answers", HIDDEN, TALK, kind=kind)
    assert show("answers", HIDDEN, TALK[:2], kind=kind)[1] == [Answer(8, 12, "好き。")]
    with pytest.raises(UserError, match=r"folder: its chat template can't show these messages \(no\)") as refused:
        show("prompt", "{{ raise_exception('no') }}", TALK, kind=kind)
    assert type(refused.value) is UserError


def test_a_template_that_begins_answers_otherwise_when_it_asks_is_refused():
    silent = PLAIN.replace("{% if add_generation_prompt %}a:{% endif %}", "")
    with pytest.raises(UserError, match=r"begins an answer with 'a:好き。.*' and leaves that out"):
        show("answers", silent, TALK[:2])
    none = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"  # nothing to leave out
    assert show("answers", none, TALK[:2])[1] == [Answer(4, 8, "好き。")]


GIVEN = {
    "{{ bos_token }}{{ messages | length }}": "<s>4",
    "{{ strftime_now('%Y') }}": str(datetime.datetime.now().year),
    "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m['role'][0] }}{% endfor %}": "uau",
    "{{ messages[0] | tojson }}": '{"role": "user", "content": "猫は？"}',
    "{{ messages[0] | tojson(indent=1) }}": '{\n "role": "user",\n "content": "猫は？"\n}',
    "a\n  {% if true %}\nb\n  {% endif %}\nc": "a\nb\nc",  # lines of statements alone leave no trace
    "{{ tools is none and documents is none }}": "True",
}


def test_a_template_has_what_transformers_gives_it_and_one_that_fails_says_so():
    assert {source: show("prompt", source, TALK)[0] for source in GIVEN} == GIVEN
    for source in ("{{ messages.append(1) }}", "{% if %}", "{{ 1 / 0 }}"):
        with pytest.raises(UserError, match="folder: its chat template can't show these messages"):
            show("prompt", source, TALK)


@pytest.mark.parametrize("kind", [ChatTemplate, TemplateChild])
def test_tools_and_their_calls_are_shown_as_jinja_shows_them(kind):
    text, answers = show("answers", WITH_TOOLS, TOOL_TALK, TOOLS, kind)
    described = '{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}'
    calls = '[sky {"in": "東京"}][sky {"in": "京都"}]\n'
    assert text == f"s:{described}\nu:天気は？\na:{calls}t:晴れ\na:晴れです。\n"
    assert [text[answer.start : answer.end] for answer in answers] == [calls, "晴れです。\n"]
    assert [answer[2:] for answer in answers] == [("sky", True), ("晴れです。", False)]
    assert show("prompt", WITH_TOOLS, TOOL_TALK[:3], TOOLS, kind)[0] == text[: answers[1].start]
    assert show("last", WITH_TOOLS, TOOL_TALK, TOOLS, kind) == (text, answers[1:])
    assert show("last", WITH_TOOLS, TOOL_TALK[:2], TOOLS, kind)[1] == answers[:1]


HIDING = {
    "tools": WITH_TOOLS.replace("tools or []", "[]"),
    "tool_calls": WITH_TOOLS.replace("m.tool_calls or []", "[]"),
    "messages of the role `tool`": WITH_TOOLS.replace("in messages", "in messages if m.role != 'tool'"),
}


@pytest.mark.parametrize("what", HIDING)
def test_a_template_that_leaves_tools_out_is_refused(what):
    for asked in ("answers", "last", "prompt"):
        with pytest.raises(UserError, match=f"folder: its chat template leaves out {what}; take them out"):
            show(asked, HIDING[what], TOOL_TALK, TOOLS)
    assert show("answers", HIDING[what], TALK) == show("answers", WITH_TOOLS, TALK), "whoever has no tools may use it"


def test_arguments_are_text_where_the_template_appends_them_to_text_and_a_call_has_to_be_shown():
    marking = WITH_TOOLS.replace("{{ call.function.name }} {{ call.function.arguments | tojson }}", "call")
    with pytest.raises(UserError, match="folder: its chat template leaves out tool_calls"):
        show("answers", marking, TOOL_TALK, TOOLS)
    appending = WITH_TOOLS.replace("{{ call.function.arguments | tojson }}", "{{ '' + call.function.arguments }}")
    assert show("answers", appending, TOOL_TALK, TOOLS) == show("answers", WITH_TOOLS, TOOL_TALK, TOOLS)
    failing = "{{ raise_exception(messages[1].tool_calls[0].function.arguments is string | string) }}"
    with pytest.raises(UserError, match=r"can't show these messages \(True\)"):
        show("prompt", failing, TOOL_TALK)
    # A template that fails without a result does not leave it out.
    strict = WITH_TOOLS.replace(
        "{% for m in messages %}",
        "{% if messages | selectattr('tool_calls') | list and not messages | selectattr('role', 'equalto', 'tool') "
        "| list and messages | length > 2 %}{{ raise_exception('no result') }}{% endif %}{% for m in messages %}",
    )
    assert show("answers", strict, TOOL_TALK, TOOLS) == show("answers", WITH_TOOLS, TOOL_TALK, TOOLS)


def test_what_a_template_costs_is_bounded():
    costs = {"{{ 'a' * 3000000000 }}": "needs more than 1 GiB of memory", "{{ ''.__class__.__mro__ }}": "is unsafe"}
    for source, message in costs.items():
        with pytest.raises(UserError, match=message):
            show("prompt", source, TALK, kind=TemplateChild)


ANSWERS = [[0, 2, "a", False], [-1, 1, "a", False], [1, 0, "a", False], [0, 1, 7, False], [0.5, 1, "a", False]]
REPLIES = [None, ["a", []], [1, [], ""], ["a", {}, ""], ["a", [], None], *(["a", [answer], ""] for answer in ANSWERS)]


def test_a_child_that_was_taken_over_is_not_believed(monkeypatch):
    for reply in REPLIES:
        monkeypatch.setattr(Limited, "call", lambda self, *arguments, reply=reply: reply)
        with pytest.raises(UserError, match="folder: its chat template gives no (text|answers)"):
            show("answers", PLAIN, TALK, kind=TemplateChild)


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), st.integers(1, 3))),
    st.integers(2, 16),
    st.integers(1, 16),
)
def test_as_few_turns_as_possible_are_left_out(lengths, context, tokens):
    """Against all ways to leave some out, by the messages' lengths."""
    messages = [{"role": role, "content": "a" * length} for role, length in lengths]
    room = context - min(tokens, context // 2)

    def length_of(kept):
        return sum(len(message["content"]) for message in kept)

    kept, left_out = without_old_turns(messages, length_of, context, tokens)
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    ways = [messages[: users[0]] + messages[begin:] for begin in users] or [messages]
    fitting = [way for way in ways if length_of(way) <= room]
    assert kept == (fitting or ways[-1:])[0]
    assert ways[left_out] == kept
