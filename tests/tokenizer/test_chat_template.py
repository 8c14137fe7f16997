"""A template shows a conversation as transformers would, and says where the answers are."""

import datetime

import pytest

from tpullm.system.errors import UserError
from tpullm.tokenizer.chat_template import Answer, ChatTemplate, EarlierAnswersChangeError

TALK = [
    {"role": "user", "content": "猫は？"},
    {"role": "assistant", "content": "好き。"},
    {"role": "user", "content": "犬は？"},
    {"role": "assistant", "content": "犬も。"},
]
PLAIN = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
MARKED = PLAIN.replace(
    "{{ m['content'] }}",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}"
    "{{ m['content'] }}{% endif %}",
)


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


def template(source, **tokens):
    return ChatTemplate(source, tokens, "folder")


@pytest.mark.parametrize(("source", "content", "end"), [(PLAIN, True, "\n"), (MARKED, False, "")])
def test_answers_are_found_by_marks_or_by_what_they_add(source, content, end):
    text, answers = template(source).shown(TALK)
    assert text == "u:猫は？\na:好き。\nu:犬は？\na:犬も。\n"
    assert [text[answer.start : answer.end] for answer in answers] == ["好き。" + end, "犬も。" + end]
    assert [answer.content for answer in answers] == (["好き。", "犬も。"] if content else [None, None])


def test_the_last_answer_alone_can_be_asked_for():
    text, answers = template(PLAIN).last(TALK)
    assert answers == [Answer(text.rindex("犬も。"), len(text), "犬も。")]


@pytest.mark.parametrize("source", [PLAIN, MARKED])
def test_a_prompt_has_no_marks(source):
    assert template(source).prompt(TALK[:3]) == "u:猫は？\na:好き。\nu:犬は？\na:"


def test_an_earlier_answer_that_changes_is_told_apart_from_other_faults():
    hidden = PLAIN.replace("{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] == 'user' else '-' }}")
    with pytest.raises(EarlierAnswersChangeError, match="folder: its chat template changes a conversation as it grows"):
        template(hidden).shown(TALK)
    assert template(hidden).shown(TALK[:2])[1] == [Answer(8, 12, "好き。")]


def test_a_template_that_begins_answers_otherwise_when_it_asks_is_refused():
    silent = PLAIN.replace("{% if add_generation_prompt %}a:{% endif %}", "")
    with pytest.raises(UserError, match=r"begins an answer with 'a:好き。.*' and leaves that out"):
        template(silent).shown(TALK[:2])
    none = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"  # nothing to leave out
    assert template(none).shown(TALK[:2])[1] == [Answer(4, 8, "好き。")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ messages | length }}", "<s>4"),
        ("{{ strftime_now('%Y') }}", str(datetime.datetime.now().year)),
        (
            "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m['content'] }}{% endfor %}",
            "猫は？",
        ),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "猫は？"}'),
        ("{{ messages[0] | tojson(indent=1) }}", '{\n "role": "user",\n "content": "猫は？"\n}'),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),  # lines of statements alone leave no trace
        ("{{ tools is none and documents is none }}", "True"),
    ],
)
def test_a_template_has_what_transformers_gives_it(source, expected):
    assert template(source, bos_token="<s>").prompt(TALK) == expected


@pytest.mark.parametrize("source", ["{{ raise_exception('no system') }}", "{{ messages.append(1) }}", "{% if %}"])
def test_a_template_that_fails_says_so(source):
    with pytest.raises(UserError, match="folder: its chat template can't show these messages"):
        template(source).prompt(TALK)


def test_tools_and_their_calls_are_shown_as_jinja_shows_them():
    text, answers = template(WITH_TOOLS).shown(TOOL_TALK, TOOLS)
    described = '{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}'
    calls = '[sky {"in": "東京"}][sky {"in": "京都"}]\n'
    assert text == f"s:{described}\nu:天気は？\na:{calls}t:晴れ\na:晴れです。\n"
    assert [text[answer.start : answer.end] for answer in answers] == [calls, "晴れです。\n"]
    assert [answer[2:] for answer in answers] == [("sky", True), ("晴れです。", False)]
    assert template(WITH_TOOLS).prompt(TOOL_TALK[:3], TOOLS) == text[: answers[1].start]
    assert template(WITH_TOOLS).last(TOOL_TALK, TOOLS) == (text, answers[1:])
    assert template(WITH_TOOLS).last(TOOL_TALK[:2], TOOLS)[1] == answers[:1]


HIDING = {
    "tools": WITH_TOOLS.replace("tools or []", "[]"),
    "tool_calls": WITH_TOOLS.replace("m.tool_calls or []", "[]"),
    "messages of the role `tool`": WITH_TOOLS.replace("in messages", "in messages if m.role != 'tool'"),
}


@pytest.mark.parametrize("what", HIDING)
def test_a_template_that_leaves_tools_out_is_refused(what):
    hiding = template(HIDING[what])
    for show in (hiding.shown, hiding.last, hiding.prompt):
        with pytest.raises(UserError, match=f"folder: its chat template leaves out {what}; take them out"):
            show(TOOL_TALK, TOOLS)
    plain = [said for said in TALK if said["role"] != "tool"]
    assert hiding.shown(plain) == template(WITH_TOOLS).shown(plain), "whoever has no tools may use it"


def test_a_template_that_marks_a_call_and_does_not_show_it_is_refused():
    marking = template(WITH_TOOLS.replace("{{ call.function.name }} {{ call.function.arguments | tojson }}", "call"))
    with pytest.raises(UserError, match="folder: its chat template leaves out tool_calls"):
        marking.shown(TOOL_TALK, TOOLS)


def test_arguments_are_text_where_the_template_appends_them_to_text():
    appending = template(
        WITH_TOOLS.replace("{{ call.function.arguments | tojson }}", "{{ '' + call.function.arguments }}")
    )
    assert appending.shown(TOOL_TALK, TOOLS) == template(WITH_TOOLS).shown(TOOL_TALK, TOOLS)
    failing = template("{{ raise_exception(messages[1].tool_calls[0].function.arguments is string | string) }}")
    with pytest.raises(UserError, match=r"can't show these messages \(True\)"):
        failing.prompt(TOOL_TALK)


def test_a_template_that_fails_without_a_result_does_not_leave_it_out():
    strict = WITH_TOOLS.replace(
        "{% for m in messages %}",
        "{% if messages | selectattr('tool_calls') | list and not messages | selectattr('role', 'equalto', 'tool') "
        "| list and messages | length > 2 %}{{ raise_exception('no result') }}{% endif %}{% for m in messages %}",
    )
    assert template(strict).shown(TOOL_TALK, TOOLS) == template(WITH_TOOLS).shown(TOOL_TALK, TOOLS)


def test_the_last_answer_of_a_template_with_marks_is_the_last_marked():
    text, answers = template(MARKED).shown(TALK)
    assert template(MARKED).last(TALK) == (text, answers[1:])
