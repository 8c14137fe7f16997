"""The small model of `tests/small_model.py`, and one like it with a context that holds whole prompts."""

import dataclasses

import jax
import pytest

from tests.small_model import session, small_tokenizer  # noqa: F401
from tpullm.engine.session import Session
from tpullm.model.architecture import Architecture


@pytest.fixture(scope="session")
def wide(session):  # noqa: F811
    """The same parameters with a context of 512 tokens: positions are rotary, so none depends on it."""
    config = dataclasses.replace(session.architecture.config, context_length=512)
    return dataclasses.replace(session, architecture=Architecture(config), _quantized={})


@pytest.fixture(scope="session")
def other(session):  # noqa: F811
    """A model with other parameters."""
    params = session.params | {"embedding": session.params["embedding"] * 0.5}
    return Session(session.tokenizer, session.architecture, jax.block_until_ready(params), session.mesh, session.dtype)
