"""Answers to a prompt, tokenized by the chat template: what preferences, judged answers and rollouts are trained on.

The tokens of a prompt and its answer are those of the whole conversation, tokenized at once. So they are what the model
sees in tuning on conversations, and what it is asked with.
"""

from typing import NamedTuple

from tpullm.data.examples import Judged, Preference
from tpullm.errors import UserError
from tpullm.tokenizer import Tokenizer
from tpullm.tokenizer.chat_template import Message, Messages, Tools


class Pair(NamedTuple):
    """The ids of a preference. `prompt + chosen` and `prompt + rejected` are the two conversations."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def pair(preference: Preference, tokenizer: Tokenizer, name: str) -> Pair:
    """The ids of a preference, whose answers end with their end tokens.

    Args:
        name: the stage or the file, for errors.

    Raises:
        UserError: the template hides where an answer begins or ends, or shows both answers alike.
    """
    asked, tools = preference.prompt, preference.tools
    prompt, chosen = _answer(asked, preference.chosen, tools, tokenizer, name)
    before_other, rejected = _answer(asked, preference.rejected, tools, tokenizer, name)
    if prompt != before_other:
        raise _error(name, asked, "the chat template shows the prompt otherwise before its other answer")
    if chosen == rejected:
        raise _error(name, asked, "the chat template shows both answers alike, so none is preferred; remove the pair")
    return Pair(prompt, chosen, rejected)


def answer(judged: Judged, tokenizer: Tokenizer, name: str) -> tuple[list[int], list[int]]:
    """The ids of a prompt and of its answer with its end token; it raises what `pair` raises."""
    return _answer(judged.prompt, judged.answer, judged.tools, tokenizer, name)


def _answer(
    prompt: Messages, said: Message, tools: Tools, tokenizer: Tokenizer, name: str
) -> tuple[list[int], list[int]]:
    try:
        ids, weights = tokenizer.last_answer([*prompt, said], tools)
    except UserError as error:
        raise _error(name, prompt, str(error)) from None
    if 1.0 not in weights:
        raise _error(name, prompt, "the chat template shows nothing of the answer; give another chat_template")
    start, end = weights.index(1.0), len(weights) - weights[::-1].index(1.0)
    if tokenizer.bytes_of(ids[end - 1]):
        piece = tokenizer.piece(ids[end - 1])
        hides = f"the chat template hides where an answer ends (in {piece!r}, which is no special token)"
        raise _error(name, prompt, f"{hides}; give another chat_template")
    return ids[:start], ids[start:end]


def _error(name: str, prompt: Messages, what: str) -> UserError:
    return UserError(f"{name}: the prompt that begins with {prompt[0]['content'][:20]!r}: {what}")
