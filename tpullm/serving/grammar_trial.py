"""Tries a grammar in a child with limits: intersections of patterns can take hours before llguidance counts them.

Schemas come from clients. Each of 14 patterns that a text must match together doubles the time; it was 0.7 s for all.
"""

from collections.abc import Callable, Sequence

import llguidance

from tpullm.system.process.child import go_last

CPU_SECONDS = 1
# A tenth of the library's own, for what a schema may cost before the first token, and a quarter for each token.
FEWER = {"initial_lexer_fuel": 100_000, "step_lexer_fuel": 50_000, "max_lexer_states": 25_000}


class Vocabulary:
    """Tokens as llguidance wants them.

    Args:
        tokens: the bytes of each; special ones have none.
        ends: the tokens that end a text.
        begin: the token that begins one.
        encode: the tokens of a text.
    """

    def __init__(self, tokens: list[bytes], ends: Sequence[int], begin: int | None, encode: Callable[[str], list[int]]):
        self.eos_token_id, self.bos_token_id, self._encode = ends[0], begin, encode
        self.special_token_ids = [token for token, held in enumerate(tokens) if not held]
        # llguidance tells special tokens apart by bytes that follow a mark of its own.
        self.tokens = [held or b"%d" % token for token, held in enumerate(tokens)]
        self.wrapped = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self), eos_token=list(ends))

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", errors="replace"))

    def matcher(self, grammar: str) -> llguidance.LLMatcher:
        """What says which tokens a grammar allows, within what it may cost."""
        limits = llguidance.LLParserLimits(**FEWER, max_grammar_size=50_000)
        return llguidance.LLMatcher(self.wrapped, grammar, log_level=0, limits=limits)


def check_grammar(grammar: str, size: int) -> str:
    """In the child: what is wrong with a grammar, with bytes as tokens; empty if nothing is.

    Args:
        size: of the vocabulary: the grammar may name special tokens, by their ids.
    """
    go_last(session=True)
    tokens = [bytes([byte]) for byte in range(256)] + [b""] * max(1, size - 256)
    matcher = Vocabulary(tokens, [256], None, lambda text: list(text.encode())).matcher(grammar)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error()
