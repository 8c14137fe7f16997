"""A template in a child shows what it shows here, and ends where it does not."""

import pytest

from tests.tokenizer.test_chat_template import MARKED, PLAIN, TALK, TOOL_TALK, TOOLS, WITH_TOOLS
from tpullm.system.errors import UserError
from tpullm.system.process.limited import Limited
from tpullm.tokenizer.chat_template import Answer, ChatTemplate, EarlierAnswersChangeError, TemplateChild

HIDDEN = PLAIN.replace("{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] == 'user' else '-' }}")


@pytest.mark.parametrize("source", [MARKED, WITH_TOOLS])
def test_a_child_shows_the_same(source):
    here, child = (kind(source, {"bos_token": "<s>"}, "folder") for kind in (ChatTemplate, TemplateChild))
    assert child.shown(TALK) == here.shown(TALK) and child.prompt(TALK) == here.prompt(TALK)
    assert isinstance(child.shown(TALK)[1][0], Answer)
    if source == WITH_TOOLS:
        assert child.shown(TOOL_TALK, TOOLS) == here.shown(TOOL_TALK, TOOLS)
        assert child.last(TOOL_TALK, TOOLS) == here.last(TOOL_TALK, TOOLS)
        assert child.prompt(TOOL_TALK[:1], TOOLS) == here.prompt(TOOL_TALK[:1], TOOLS)


def test_errors_keep_their_kind():
    with pytest.raises(EarlierAnswersChangeError, match="folder: its chat template changes a conversation"):
        TemplateChild(HIDDEN, {}, "folder").shown(TALK)
    with pytest.raises(UserError, match=r"folder: its chat template can't show these messages \(no\)") as refused:
        TemplateChild("{{ raise_exception('no') }}", {}, "folder").prompt(TALK)
    assert type(refused.value) is UserError


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 'a' * 3000000000 }}", "needs more than 1 GiB of memory"),
        ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "maximum recursion depth exceeded"),
        ("{{ ''.__class__.__mro__ }}", "is unsafe"),
    ],
)
def test_what_a_template_costs_is_bounded(source, message):
    with pytest.raises(UserError, match=message):
        TemplateChild(source, {}, "folder").prompt(TALK)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (None, "gives no text"),
        (["a", []], "gives no text"),
        ([1, [], ""], "gives no text"),
        (["a", {}, ""], "gives no text"),
        (["a", [], None], "gives no text"),
        (["a", [[0, 2, None, False]], ""], "gives no answers"),
        (["a", [[-1, 1, None, False]], ""], "gives no answers"),
        (["a", [[1, 0, None, False]], ""], "gives no answers"),
        (["a", [[0, 1, 7, False]], ""], "gives no answers"),
        (["a", [[0.0, 1, "a", False]], ""], "gives no answers"),
        (["a", [[0, 1, "a", 0]], ""], "gives no answers"),
        (["a", [[0, 1, "a"]], ""], "gives no answers"),
    ],
)
def test_a_child_that_was_taken_over_is_not_believed(reply, message, monkeypatch):
    monkeypatch.setattr(Limited, "call", lambda self, *arguments: reply)
    with pytest.raises(UserError, match=f"folder: its chat template {message}"):
        TemplateChild(PLAIN, {}, "folder").shown(TALK)
