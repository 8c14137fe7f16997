"""A model that is measured: it answers requests, and what it answered before is not computed again."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from typing import Any

from tpullm import log
from tpullm.errors import UserError
from tpullm.inference.session import Session
from tpullm.measuring import likelihoods, written_texts
from tpullm.measuring.kept_answers import KeptAnswers, key_of
from tpullm.measuring.likelihoods import Continuation, Likelihood
from tpullm.measuring.parameter_hash import parameter_hash
from tpullm.measuring.written_texts import Writing


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
        self.counts.cut += sum(len(of.prompt) > len(written_texts.cut(of, most)) for of in requests)
        keys = [("writing", *of[:3], astuple(of.sampling), of.seed) for of in requests]
        said = self._answered(requests, keys, partial(written_texts.write, self.session), "texts")
        return [written_texts.text_of(self.session, ids, of) for ids, of in zip(said, requests, strict=True)]

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
