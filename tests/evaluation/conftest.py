"""The small model of `tests/small_model.py`, one with a context that holds whole prompts, and stand-ins for models."""

import dataclasses
import zlib

import pytest

from tests.small_model import session, small_tokenizer  # noqa: F401
from tpullm.evaluation.likelihoods import Likelihood
from tpullm.evaluation.measured_model import KeptAnswers, MeasuredModel
from tpullm.model.architecture import Architecture


@pytest.fixture(scope="session")
def wide(session):  # noqa: F811
    """The same parameters with a context of 512 tokens: positions are rotary, so none depends on it."""
    config = dataclasses.replace(session.architecture.config, context_length=512)
    return dataclasses.replace(session, architecture=Architecture(config), _quantized={})


def guess(context, continuation) -> float:
    """The log-probability of a continuation: of each token after all before it."""
    ids = [*context, *continuation]
    return -sum(zlib.crc32(repr(ids[: at + 1]).encode()) % 997 for at in range(len(context), len(ids))) / 100


class Guesses(MeasuredModel):
    """Its answer to a request depends on the request alone. `says` is what it writes to all in turn, or to each."""

    def __init__(self, session, says=(), answers=None):  # noqa: F811
        super().__init__(session, answers or KeptAnswers(), parameters="x")
        self.says = says

    def likelihoods(self, requests):
        most = self.session.context_length + 1
        assert all(of.context and len(of.context) + len(of.continuation) <= most for of in requests)
        return [Likelihood(guess(*of), False) for of in requests]

    def written(self, requests):
        self.asked = requests
        return list(map(self.says, requests)) if callable(self.says) else [*self.says, *[""] * 99][: len(requests)]
