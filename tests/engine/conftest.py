"""A small model of one layer for all tests of its use, and an engine without a model."""

import pytest

from tests.engine.chain import engine, long  # noqa: F401
from tests.small_model import session_of, small_tokenizer  # noqa: F401


@pytest.fixture(scope="session")
def session(small_tokenizer):  # noqa: F811
    return session_of(small_tokenizer, layers=1)
