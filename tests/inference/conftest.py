"""The small model of `tests/small_model.py` for all tests of its use."""

from tests.small_model import session, small_tokenizer  # noqa: F401
