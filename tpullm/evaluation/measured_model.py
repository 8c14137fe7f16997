"""A model that is measured: it answers requests, and what it answered before is not computed again.

It writes texts after given prompts, up to a text that ends them, and gives likelihoods of continuations. Several hosts
ask the same and fetch whole results; host 0 keeps them.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from typing import Any, NamedTuple

from tpullm.engine.generation import BATCH, as_they_end
from tpullm.engine.request import Request
from tpullm.engine.session import Session
from tpullm.evaluation import likelihoods
from tpullm.evaluation.kept_answers import KeptAnswers, key_of, parameter_hash
from tpullm.evaluation.likelihoods import Continuation, Ids, Likelihood
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.system import log
from tpullm.system.errors import UserError


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


@dataclass
class Counts:
    """What became of the requests so far.

    Args:
        requests: how many there were.
        kept: of these, how many had been answered by an earlier evaluation.
        cut: how many were longer than the context and lost tokens at their left.
    """

    requests: int = 0
    kept: int = 0
    cut: int = 0


@dataclass
class MeasuredModel:
    """A model, and the answers that it gave. With several hosts, all of them ask the same.

    Args:
        session: the model.
        answers: where answers are kept; None keeps none.
        parameters: the hash of the parameters.
        counts: of the requests.
        between: called after each batch of requests; what it raises ends the measurement.
    """

    session: Session
    answers: KeptAnswers | None = None
    parameters: str = ""
    counts: Counts = field(default_factory=Counts)
    between: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.parameters = self.parameters or parameter_hash(self.session)

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        """How likely each continuation is after its context.

        Raises:
            UserError: a continuation is empty, or longer than the context.
        """
        most = self.session.context_length
        for request in requests:
            if not 0 < len(request.continuation) <= most or not request.context:
                what = f"{len(request.continuation)} tokens after {len(request.context)}"
                raise UserError(f"a continuation of {what}: the model scores 1 to {most} tokens after 1 or more")
        self.counts.cut += sum(len(of.context) + len(of.continuation) > most + 1 for of in requests)
        keys = [("likelihood", of.context, of.continuation) for of in requests]
        score = partial(likelihoods.likelihoods, self.session)
        return [Likelihood(*found) for found in self._answered(requests, keys, score, "likelihoods")]

    def written(self, requests: Sequence[Writing]) -> list[str]:
        """What the model writes after each prompt."""
        most = self.session.context_length
        self.counts.cut += sum(len(of.prompt) > len(cut(of, most)) for of in requests)
        keys = [("writing", *of[:3], astuple(of.sampling), of.seed) for of in requests]
        said = self._answered(requests, keys, partial(write, self.session), "texts")
        return [text_of(self.session, ids, of) for ids, of in zip(said, requests, strict=True)]

    def _answered(self, requests: Sequence, keys: Sequence, ask: Callable, what: str) -> list[Any]:
        """The answer to each request, as JSON has it: kept, or asked for now. Equal requests are asked once."""
        keys = [key_of(self.parameters, key) for key in keys]
        kept = self.answers.found(keys) if self.answers else [None] * len(keys)
        answers = {key: answer for key, answer in zip(keys, kept, strict=True) if answer is not None}
        self.counts.requests += len(keys)
        self.counts.kept += sum(answer is not None for answer in kept)
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in answers}
        names = list(missing)
        with log.progress("evaluate", len(names), what) as advance:

            def done(found: dict[int, Any]) -> None:
                new = {names[number]: answer for number, answer in found.items()}
                answers.update(new)
                if self.answers:
                    self.answers.add(new)
                advance(len(new))
                self.between()

            ask(list(missing.values()), done)
        return [answers[key] for key in keys]
