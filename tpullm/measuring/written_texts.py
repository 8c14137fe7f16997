"""Texts that a model writes after given prompts, up to a text that ends them."""

from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import NamedTuple

from tpullm.errors import UserError
from tpullm.inference.decode import decode
from tpullm.inference.padding import bucket, fine_bucket
from tpullm.inference.sampling_options import GREEDY, Sampling
from tpullm.inference.session import Session
from tpullm.measuring.shared_prefixes import Ids

ROWS = 64  # prompts that are continued at a time


class Writing(NamedTuple):
    """A request: what does the model write after `prompt` (token ids)?

    Args:
        tokens: the most it writes.
        stops: texts; what it writes ends before the first of them.
        sampling: how tokens are chosen.
        seed: of sampling.
        by_bytes: the text is that of the bytes of the tokens. Some published tokenizers take a space from the beginning
            of a text, and programs need it.
    """

    prompt: Ids
    tokens: int
    stops: tuple[str, ...] = ()
    sampling: Sampling = GREEDY
    seed: int = 0
    by_bytes: bool = False


def cut(request: Writing, most: int) -> Ids:
    """The prompt without the tokens at its left for which a context of `most` tokens has no room.

    Raises:
        UserError: there is no room for any prompt.
    """
    if request.tokens >= most:
        raise UserError(
            f"a text of up to {request.tokens} tokens: the model's context holds {most}, the prompt included; ask for "
            "a shorter text (in a task of the harness: `max_gen_toks`)"
        )
    return request.prompt[-(most - request.tokens) :]


def write(session: Session, requests: Sequence[Writing], done: Callable[[dict[int, list[int]]], None]) -> None:
    """Continue prompts; `done` gets the ids of each batch, by the numbers of the requests, with those of a stop.

    Prompts of similar length are continued together, the longest first. With several hosts, all of them call it.
    """
    order = sorted(range(len(requests)), key=lambda number: _together(session, requests[number]), reverse=True)
    while order:
        first = _kind(requests[order[0]])
        count = next((n for n, number in enumerate(order[:ROWS]) if _kind(requests[number]) != first), ROWS)
        chosen, order = order[:count], order[count:]
        asked = [requests[number] for number in chosen]
        # To fill the last batch costs less than to compile a program of another shape.
        filling = [asked[0]] * (min(ROWS, len(requests)) - len(asked))
        prompts = [list(cut(request, session.context_length)) for request in [*asked, *filling]]
        _, tokens, stops, sampling, *_ = asked[0]

        def is_over(ids: list[int], stops: tuple[str, ...] = stops) -> bool:
            text = session.tokenizer.decode(ids)
            return any(stop in text for stop in stops)

        seeds = [request.seed for request in [*asked, *filling]]
        # To read 32 prompts of up to 288 tokens took 7.3 s of processor time padded to 512, and 3.8 s to 320; to write
        # 64 tokens to each, 2 s (12 M parameters, JAX 0.12).
        length = fine_bucket(max(map(len, prompts)))
        said = decode(session, prompts, tokens, sampling, seeds, is_over=is_over if stops else None, length=length)
        done(dict(zip(chosen, said, strict=False)))


def _kind(request: Writing) -> tuple:
    """What the requests of a batch have in common."""
    return request.tokens, request.stops, astuple(request.sampling)


def _together(session: Session, request: Writing) -> tuple:
    length = len(cut(request, session.context_length))
    return *_kind(request), bucket(length), length


def text_of(session: Session, ids: Sequence[int], request: Writing) -> str:
    """The text of what was written, before the texts that end it: cut at one after the other, as the harness does."""
    tokenizer = session.tokenizer
    if request.by_bytes:
        text = b"".join(map(tokenizer.bytes_of, ids)).decode("utf-8", errors="replace")
    else:
        text = tokenizer.decode(ids)
    for stop in filter(None, request.stops):
        text = text.split(stop)[0]
    return text
