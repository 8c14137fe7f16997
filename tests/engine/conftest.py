"""The small model of `tests/small_model.py` for all tests of its use, and one with an engine."""

from tests.engine.engine_texts import engine, long  # noqa: F401
from tests.small_model import session, small_tokenizer  # noqa: F401
