"""Tries a grammar in a child with limits: intersections of patterns can take hours before llguidance counts them.

Schemas come from clients. Each of 14 patterns that a text must match together doubles the time; it was 0.7 s for all.
"""

import llguidance

from tpullm.system.process.limited import Limited

CPU_SECONDS = 1
# A tenth of the library's own, for what a schema may cost before the first token, and a quarter for each token.
FEWER = {"initial_lexer_fuel": 100_000, "step_lexer_fuel": 50_000, "max_lexer_states": 25_000}
_END = 256


def limits() -> llguidance.LLParserLimits:
    """What one grammar may cost."""
    return llguidance.LLParserLimits(**FEWER, max_grammar_size=50_000)


class Trial:
    """A child that reads grammars."""

    def __init__(self) -> None:
        self._child = Limited(CPU_SECONDS)

    def error(self, grammar: str, param: str) -> str:
        """What is wrong with a grammar; empty if nothing is.

        Raises:
            UserError: it costs too much; the line begins with `param`.
        """
        return str(self._child.call(param, f"{__name__}:check", grammar))


def check(grammar: str) -> str:
    """In the child: what is wrong with a grammar, with bytes as tokens."""
    tokens = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()), eos_token=[_END])
    matcher = llguidance.LLMatcher(tokens, grammar, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error()


class _Bytes:
    """A tokenizer of bytes."""

    eos_token_id, bos_token_id, special_token_ids = _END, None, (_END,)
    tokens = tuple(bytes([byte]) for byte in range(256)) + (b"",)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)
