"""How a model is asked: in plain text, or as a conversation."""

from types import SimpleNamespace

import pytest

from tpullm.cli import options
from tpullm.evaluation.tasks import Asking
from tpullm.recipe.parsing import Parser, parse
from tpullm.system.errors import UserError


def model(of_run: bool, talks: bool, has_template: bool = True):
    tokenizer = SimpleNamespace(has_template=has_template)
    return SimpleNamespace(model=object() if of_run else None, talks=talks, tokenizer=tokenizer)


TUNED, BASE, PUBLISHED = model(True, True), model(True, False, False), model(False, True)


@pytest.mark.parametrize(
    ("words", "found", "chat"),
    [
        ("", {"tuned": TUNED}, True),
        ("", {"base": BASE}, False),
        ("", {"published": PUBLISHED}, False),  # as the harness asks it by itself
        ("", {"base": BASE, "tuned": TUNED}, False),  # both in one form
        ("--no-chat", {"tuned": TUNED}, False),
        ("--chat", {"published": PUBLISHED}, True),
    ],
)
def test_a_tuned_run_is_asked_in_conversations_and_all_others_in_plain_text(words, found, chat):
    parser = Parser()
    options.add_asking(parser)
    arguments = parse(parser, [*words.split(), "--shots", "2"])
    assert options.in_the_form_of(options.asking_of(arguments), arguments.chat, found) == Asking(shots=2, chat=chat)


def test_a_model_without_a_template_holds_no_conversation():
    with pytest.raises(UserError, match="--chat: base has no chat template"):
        options.in_the_form_of(Asking(), True, {"tuned": TUNED, "base": BASE})
