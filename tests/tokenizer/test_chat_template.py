"""A template shows a conversation as transformers would, and says where the answers are."""

import datetime

import pytest

from tpullm.errors import UserError
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
