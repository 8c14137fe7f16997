"""What a tuned model answers, and what verb a model expects after an object."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tpullm.inference.decode import decode
from tpullm.inference.scoring import text_log_probabilities
from tpullm.inference.session import Session

ANSWER_TOKENS = 48


def answer(session: Session, questions: Sequence[str], batch: int = 64, tokens: int = ANSWER_TOKENS) -> list[str]:
    """The likeliest answer to each question, in the order of the questions, each asked in a conversation of its own.

    Args:
        batch: questions answered at a time, of like lengths.
        tokens: longest answer; a longer one is cut off.

    Raises:
        UserError: a question is longer than the context.
    """
    tokenizer = session.tokenizer
    asked = [{"role": "user", "content": question} for question in questions]
    prompts = [tokenizer.chat_template([message], add_generation_prompt=True)[0] for message in asked]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        # Rows that fill the last batch up cost less than a program of another shape.
        filled = [prompts[index] for index in chosen] + [prompts[chosen[0]]] * (min(batch, len(order)) - len(chosen))
        for index, ids in zip(chosen, decode(session, filled, tokens), strict=False):
            answers[index] = tokenizer.decode(ids)
    return answers


class Swapped(Protocol):
    """What is read of a swap (`tpullm.corpus.tenki.Swap`): two prefixes that differ in one object, and their verbs."""

    prefix: str
    object: str
    other_prefix: str
    other_object: str
    verb: str
    other_verb: str


@dataclass(frozen=True)
class Expectation:
    """Which verb the model expects after a prefix, and how likely it is among all the verbs compared."""

    prefix: str
    object: str
    verb: str
    likeliest: str
    probability: float


@dataclass(frozen=True)
class Counterfactual:
    """`share`: in how many swaps both the likeliest verbs are right. `expectations`: one for each prefix."""

    share: float
    expectations: tuple[Expectation, ...]


def counterfactual(session: Session, swaps: Sequence[Swapped]) -> Counterfactual:
    """Does the likeliest verb follow the object? Every prefix is scored with every verb of the swaps, once."""
    wanted = {}
    for swap in swaps:
        wanted[swap.prefix] = (swap.object, swap.verb)
        wanted[swap.other_prefix] = (swap.other_object, swap.other_verb)
    verbs = sorted({verb for _, verb in wanted.values()})
    texts = [prefix + verb for prefix in wanted for verb in verbs]
    scores = np.reshape(text_log_probabilities(session, texts), (len(wanted), len(verbs)))
    shares = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    found = {
        prefix: Expectation(prefix, thing, verb, verbs[row.argmax()], float(row.max()))
        for (prefix, (thing, verb)), row in zip(wanted.items(), shares, strict=True)
    }
    right = {prefix: expectation.likeliest == expectation.verb for prefix, expectation in found.items()}
    share = float(np.mean([right[swap.prefix] and right[swap.other_prefix] for swap in swaps]))
    return Counterfactual(share, tuple(found.values()))
