"""Texts that a model writes after given prompts, up to a text that ends them."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tpullm.errors import UserError
from tpullm.inference.generation import BATCH, as_they_end
from tpullm.inference.request import Request
from tpullm.inference.sampling_options import GREEDY, Sampling
from tpullm.inference.session import Session
from tpullm.measuring.shared_prefixes import Ids


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
    if request.tokens < 1:
        raise UserError(
            f"a text of {request.tokens} tokens: ask for 1 or more (in a task of the harness: `max_gen_toks`)"
        )
    if request.tokens >= most:
        raise UserError(
            f"a text of up to {request.tokens} tokens: the model's context holds {most}, the prompt included; ask for "
            "a shorter text (in a task of the harness: `max_gen_toks`)"
        )
    return tuple(request.prompt[-(most - request.tokens) :])


def write(session: Session, requests: Sequence[Writing], done: Callable[[dict[int, list[int]]], None]) -> None:
    """Continue prompts, the longest first; `done` gets the ids of some, by the numbers of the requests, with a stop's.

    With several hosts, all of them call it.
    """
    if not requests:
        return
    ids = [cut(request, session.context_length) for request in requests]
    order = sorted(range(len(requests)), key=lambda number: len(ids[number]), reverse=True)
    stops = tuple(session.tokenizer.stop_ids)
    asked = [
        Request(ids[number], requests[number].tokens, requests[number].sampling, requests[number].seed, stops)
        for number in order
    ]

    def is_over(place: int, new: list[int]) -> bool:
        ends = requests[order[place]].stops
        return bool(ends) and any(stop in session.tokenizer.decode(new) for stop in ends)

    ended = as_they_end(session, asked, BATCH, is_over)
    while some := list(itertools.islice(ended, BATCH)):
        done({order[place]: new for place, new in some})


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
