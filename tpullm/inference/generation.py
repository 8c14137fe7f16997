"""Texts for many prompts at once: the likeliest answers to questions, and sampled continuations."""

from collections.abc import Sequence

from tpullm.inference.decode import decode
from tpullm.inference.sampling_options import Sampling
from tpullm.inference.session import Session
from tpullm.inference.streaming import characters

ANSWER_TOKENS = 48


def answer(session: Session, questions: Sequence[str], batch: int = 64, tokens: int = ANSWER_TOKENS) -> list[str]:
    """The likeliest answer to each question. Each question begins a conversation of its own.

    Args:
        batch: how many questions of similar length are answered at a time.
        tokens: the length at which an answer is cut off.

    Raises:
        UserError: a question is longer than the context.
    """
    tokenizer = session.tokenizer
    asked = [{"role": "user", "content": question} for question in questions]
    prompts = [tokenizer.chat_template([message], add_generation_prompt=True)[0] for message in asked]
    return [tokenizer.decode(ids) for ids in likeliest(session, prompts, batch, tokens)]


def likeliest(
    session: Session, prompts: Sequence[list[int]], batch: int = 64, tokens: int = ANSWER_TOKENS
) -> list[list[int]]:
    """The ids of the likeliest answer to each prompt of ids; the arguments and the error are those of `answer`."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[list[int]] = [[]] * len(prompts)
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        # To fill the last batch costs less than to compile a program of another shape.
        filled = [prompts[index] for index in chosen] + [prompts[chosen[0]]] * (min(batch, len(order)) - len(chosen))
        for index, ids in zip(chosen, decode(session, filled, tokens), strict=False):
            answers[index] = ids
    return answers


def sampled(session: Session, prompts: Sequence[str], tokens: int, seed: int) -> list[str]:
    """A continuation of each prompt, sampled with the defaults of `Sampling`. A prompt is cut to fit the context.

    Args:
        seed: of the first prompt; further ones have the next. With one seed for all, a model that knows little writes
            nearly the same after each.
    """
    tokenizer = session.tokenizer
    ids = [[*tokenizer.begin, *tokenizer.encode(prompt)][: session.context_length - 1] for prompt in prompts]
    written = decode(session, ids, tokens, Sampling(), seeds=range(seed, seed + len(ids))) if ids else []
    return ["".join(characters(tokenizer, new)) for new in written]
