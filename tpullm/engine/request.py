"""What is asked of the engine, the tokens that it emits, and their text as it comes. Without JAX."""

import codecs
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from tpullm.recipe.sampling import Sampling
from tpullm.tokenizer import Tokenizer


@runtime_checkable
class Allowed(Protocol):
    """Of the new ids so far, which token may be next (`[V]` bool)."""

    def __call__(self, ids: tuple[int, ...]) -> np.ndarray:
        """The mask of the next token; it may take long."""

    def is_slow(self) -> bool:
        """Whether masks take so long that others should not wait for them."""

    def is_ready(self, ids: tuple[int, ...]) -> bool:
        """Whether the mask is computed. If not, this begins it in another thread."""


@dataclass(frozen=True)
class Request:
    """A text to continue.

    Args:
        ids: the prompt, at least one token; no longer than the context.
        tokens: the most new tokens; the text also ends where the context is full.
        sampling: how tokens are chosen.
        seed: of sampling: the same seed gives the same text, whatever else is computed beside it.
        stop_ids: tokens that end the text.
        top: how many of the likeliest tokens are emitted with each token, all with log-probabilities; None has none.
        bias: what is added to the logits of tokens, by id.
        presence_penalty: is subtracted from the logit of each token that is among the new ones so far (OpenAI's).
        frequency_penalty: the same, as often as the token is among them.
        echo: how many tokens at the end of the prompt are emitted before the new ones, as if they had been chosen.
        allowed: which tokens may be next; None is all.
        client: who asks: clients take turns.
    """

    __pydantic_config__: ClassVar = {"arbitrary_types_allowed": True}  # hosts tell each other all but `allowed`

    ids: tuple[int, ...]
    tokens: int
    sampling: Sampling
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    top: int | None = None
    bias: Mapping[int, float] = field(default_factory=dict)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    echo: int = 0
    allowed: Allowed | None = None
    client: str = ""

    @cached_property
    def bias_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids of `bias`, and their values: a step adds hundreds at once."""
        return np.array([*self.bias], np.int64), np.array([*self.bias.values()], np.float32)

    @property
    def depends_on_new(self) -> bool:
        """Whether what is added to the logits of the model depends on the new tokens."""
        return bool(self.presence_penalty or self.frequency_penalty or self.allowed)


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Args:
        id: of the token.
        log_probability: by the model alone, before sampling's rules (nats); None where `top` of the request is.
        top: the likeliest tokens and their log-probabilities, the likeliest first.
        ends: `stop` or `length` if this is the last one, else "". The token that stops a text is emitted too.
    """

    id: int
    log_probability: float | None
    top: tuple[tuple[int, float], ...] = ()
    ends: str = ""


class Characters:
    """The text of tokens that come one by one. A character whose bytes are in several tokens comes with the last one.

    Bytes that are not UTF-8 give U+FFFD, as in `Tokenizer.decode`. A space at the start of the first token stays,
    because the text continues another one; Llama 2's tokenizer would remove it as the space that begins every text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._bytes_of = tokenizer.bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """The characters that end with this token."""
        return self._decoder.decode(self._bytes_of(token))

    def rest(self) -> str:
        """What is left after the last token: U+FFFD for part of a character."""
        return self._decoder.decode(b"", final=True)


class Until:
    """The text up to the first of `stops`, without it, part by part. Text that can still become a stop is held back.

    Attributes:
        found: whether a stop came; no part may be added after it.
        held: what was not given: what can still become a stop, or the stop that came and all after it.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops, self.held, self.found = stops, "", False

    def add(self, part: str) -> str:
        """The text that is known to belong to the answer, now that `part` came."""
        held = self.held + part
        found = [held.index(stop) for stop in self._stops if stop and stop in held]
        self.found = bool(found)
        # No more than what is held can begin a stop: stops may be long, and every token asks.
        begun = (n for stop in self._stops for n in range(1, min(len(stop), len(held) + 1)) if held.endswith(stop[:n]))
        keep = len(held) - min(found) if found else max(begun, default=0)
        self.held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """What was held back, if no stop came."""
        return "" if self.found else self.held


def whole_characters(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of each token, and what is left at the end; see `Characters`."""
    text = Characters(tokenizer)
    for token in ids:
        yield text.add(token)
    yield text.rest()


def until_stop_text(parts: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The text up to the first of `stops`, without it; see `Until`."""
    text = Until(stops)
    for part in parts:
        yield text.add(part)
        if text.found:
            return
    yield text.rest()


class Meter:
    """Counts tokens and measures their rate."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._times: list[float] = []

    def watch(self, ids: Iterable[int]) -> Iterator[int]:
        """Yield `ids` unchanged."""
        for token in ids:
            self._times.append(time.perf_counter())
            self.ids.append(token)
            yield token

    @property
    def tokens_per_second(self) -> float | None:
        """The rate after the second token, until which programs are compiled. None for fewer than three tokens."""
        times = self._times
        return (len(times) - 2) / (times[-1] - times[1]) if len(times) > 2 else None
