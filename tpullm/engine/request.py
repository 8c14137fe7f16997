"""What is asked of the engine, and what it emits, token by token. Without JAX."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tpullm.recipe.sampling import Sampling


@dataclass(frozen=True)
class Request:
    """A text to continue.

    Args:
        ids: the prompt, at least one token; no longer than the context.
        tokens: the most new tokens; the text also ends where the context is full.
        sampling: how tokens are chosen.
        seed: of sampling: the same seed gives the same text, whatever else is computed beside it.
        stop_ids: tokens that end the text.
        top: how many of the likeliest tokens are emitted with each token.
        bias: what is added to the logits of tokens, by id.
        presence_penalty: is subtracted from the logit of each token that is among the new ones so far (OpenAI's).
        frequency_penalty: the same, as often as the token is among them.
        echo: how many tokens at the end of the prompt are emitted before the new ones, as if they had been chosen.
        allowed: of the new ids so far, which token may be next (`[V]` bool); None is all.
        client: who asks: clients take turns.
    """

    ids: tuple[int, ...]
    tokens: int
    sampling: Sampling
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    top: int = 0
    bias: Mapping[int, float] = field(default_factory=dict)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    echo: int = 0
    allowed: Callable[[tuple[int, ...]], np.ndarray] | None = None
    client: str = ""

    @property
    def is_biased(self) -> bool:
        """Whether anything is added to the logits of the model."""
        return bool(self.bias or self.depends_on_new)

    @property
    def depends_on_new(self) -> bool:
        """Whether what is added depends on the new tokens."""
        return bool(self.presence_penalty or self.frequency_penalty or self.allowed)


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Args:
        id: of the token.
        log_probability: by the model alone, before sampling's rules (nats).
        top: the likeliest tokens and their log-probabilities, the likeliest first.
        ends: `stop` or `length` if this is the last one, else "". The token that stops a text is emitted too.
    """

    id: int
    log_probability: float
    top: tuple[tuple[int, float], ...] = ()
    ends: str = ""
