"""The exact distribution of tenki documents: sampling, probability and entropy.

The text of a document determines how it was made. The text of a sentence determines its outline and the mode of the
document (tests hold that no two sentences are alike), and the closing sentence is about the last topic. So no hidden
state is summed over, and every figure is exact up to rounding.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from tpullm.corpus.tenki import vocabulary as w
from tpullm.corpus.tenki.grammar import (
    MODES,
    Context,
    Kind,
    Mode,
    Outline,
    advance,
    closing,
    closing_probability,
    outline,
    topic_of,
)
from tpullm.corpus.tenki.wording import wording

VERSION = 1  # of the documents; see `documents`
NEVER = -math.inf
_UNIFORMS = 1 + 3 * max(w.CLOSING_AT)


class Sentence(NamedTuple):
    """One way to word one outline; `log_share` is the log-probability of the wording given outline and mode."""

    mode: Mode
    said: Outline
    words: tuple[str, ...]
    log_share: float


# ---------------------------------------------------------------- sampling


def documents(count: int, seed: int) -> Iterator[str]:
    """`count` independent documents. Fewer documents are the beginning of more, for the same seed.

    `VERSION` stands for them all: `collect` samples again when it changes. A test holds the number beside a recorded
    hash of documents, so whoever changes a document raises the number. A hash that `collect` takes at each start would
    need no number, but would sample documents each time and find no more changes than the test.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        uniforms = iter(rng.random(_UNIFORMS).tolist())
        context, words, closes = Context(MODES.pick(next(uniforms))), [], False
        while not closes:
            closes = next(uniforms) < closing_probability(context)
            said = closing(context) if closes else outline(context).pick(next(uniforms))
            words += wording(said, context.mode).pick(next(uniforms))
            context = advance(context, said)
        yield "".join(words)


# ---------------------------------------------------------------- probability


def outlines(mode: Mode) -> list[Outline]:
    """Every outline in documents of this mode, except the closing ones."""
    first = advance(Context(mode), Outline(Kind.ACTION_DATED, next(iter(w.THINGS))))
    todo, found = [Context(mode)], {}
    while todo:
        context = todo.pop()
        for said in outline(context).outcomes:
            if said not in found:
                found[said] = None
                todo.append(first._replace(last=said))
    return list(found)


def sentences() -> Iterator[Sentence]:
    """Every sentence of the language except the closing ones, with its outline and mode."""
    for mode in MODES.outcomes:
        for said in outlines(mode):
            for words, probability in wording(said, mode).probability.items():
                yield Sentence(mode, said, words, math.log(probability))


@cache
def _sentence_index() -> dict[str, Sentence]:
    return {"".join(sentence.words): sentence for sentence in sentences()}


@cache
def closing_sentences(topic: str, mode: Mode) -> dict[str, Sentence]:
    """The closing sentences of a topic and a mode, by their text."""
    said = Outline(Kind.CLOSING, topic)
    choices = wording(said, mode).probability.items()
    return {"".join(words): Sentence(mode, said, words, math.log(p)) for words, p in choices}


def derivation(text: str) -> tuple[float, list[Sentence], Context | None]:
    """Log-probability that a document begins with `text`, its sentences, and the context after (None: it has ended)."""
    *surfaces, rest = text.replace("。", "。\n").split("\n")
    if rest or not surfaces or surfaces[0] not in _sentence_index():
        return NEVER, [], None
    context: Context | None = Context(_sentence_index()[surfaces[0]].mode)
    total, parsed = math.log(MODES.probability[context.mode]), []
    for surface in surfaces:
        if context is None:
            return NEVER, [], None
        end = closing_probability(context)
        closings = closing_sentences(topic_of(context.last.focus), context.mode) if end > 0.0 else {}
        if sentence := closings.get(surface):
            probability, context = end, None
        else:
            sentence = _sentence_index().get(surface)
            if sentence is None or sentence.mode != context.mode:
                return NEVER, [], None
            probability = (1.0 - end) * outline(context).probability.get(sentence.said, 0.0)
            context = advance(context, sentence.said)
        if probability == 0.0:
            return NEVER, [], None
        total += math.log(probability) + sentence.log_share
        parsed.append(sentence)
    return total, parsed, context


def log_probability(document: str) -> float:
    """Natural logarithm of the probability of a whole document, including its end; -inf outside the language."""
    total, _, context = derivation(document)
    return total if context is None else NEVER


# ---------------------------------------------------------------- entropy


@cache
def entropy() -> float:
    """Entropy of the distribution over documents in nats, by the chain rule over the Markov chain of contexts."""
    levels = []
    # The probability of each context after so many sentences, if the document has not ended.
    level = {Context(mode): probability for mode, probability in MODES.probability.items()}
    while level:
        after: dict[Context, float] = defaultdict(float)
        for context, mass in level.items():
            # Of the next sentence: whether it closes the document, its outline and its wording.
            end, own, nexts = closing_probability(context), 0.0, outline(context)
            if 0.0 < end < 1.0:
                own -= end * math.log(end) + (1.0 - end) * math.log(1.0 - end)
            if end > 0.0:
                own += end * wording(closing(context), context.mode).entropy
            words = math.fsum(p * wording(said, context.mode).entropy for said, p in nexts.probability.items())
            levels.append(mass * (own + (1.0 - end) * (nexts.entropy + words)))
            left = mass * (1.0 - end)
            for said, probability in nexts.probability.items() if left > 0.0 else ():
                after[advance(context, said)] += left * probability
        level = after
    return MODES.entropy + math.fsum(levels)
