"""What the Python API returns: each is one line as text, and a picture in a notebook."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tpullm.corpus.tenki.blanks import total_variation
from tpullm.report import pictures
from tpullm.report.pictures import attention_html
from tpullm.report.run_data import RunData


@dataclass(frozen=True, repr=False)
class Split:
    """A text as its tokens.

    Args:
        tokens: the text of each token, and its id.
    """

    tokens: tuple[tuple[str, int], ...]

    @property
    def ids(self) -> list[int]:
        """The ids of the tokens."""
        return [token for _, token in self.tokens]

    def __repr__(self) -> str:
        return "/".join(piece for piece, _ in self.tokens)

    def _repr_html_(self) -> str:
        return pictures.pieces(self.tokens)


@dataclass(frozen=True, repr=False)
class Blank:
    """The words that fit 【?】.

    Args:
        text: the text with its blank.
        words: each word and its probability, likeliest first.
        truth: the true probabilities, if they are known.
    """

    text: str
    words: tuple[tuple[str, float], ...]
    truth: Mapping[str, float] | None = None

    @property
    def total_variation(self) -> float | None:
        """The share of probability on wrong words: 0 is perfect. None if the truth is not known."""
        return None if self.truth is None else total_variation(dict(self.words), self.truth)

    def __repr__(self) -> str:
        return ", ".join(f"{word} {probability:.1%}" for word, probability in self.words[: pictures.WORDS])

    def _repr_html_(self) -> str:
        return pictures.words(self.text, self.words, self.truth)


@dataclass(frozen=True, eq=False, repr=False)
class Attention:
    """How much each token attends to each earlier one.

    Args:
        tokens: the text of each token, T of them.
        weights: `[L, N, T, T]`, by layer and head: how much token t attends to token s; each row sums to 1.
    """

    tokens: tuple[str, ...]
    weights: np.ndarray

    def __repr__(self) -> str:
        return f"attention of {'/'.join(self.tokens)}"

    def _repr_html_(self) -> str:
        return attention_html(list(self.tokens), self.weights)


@dataclass(frozen=True, repr=False)
class Loss:
    """The loss of pretraining, as the report draws it.

    Args:
        data: the data of the run so far.
    """

    data: RunData

    @property
    def losses(self) -> list[tuple[int, float]]:
        """The step and the training loss, in nats a token, of each line of the log."""
        return [(row["step"], row["loss"]) for row in self.data.pretrain if "loss" in row]

    def __repr__(self) -> str:
        return f"loss {self.losses[0][1]:.2f} to {self.losses[-1][1]:.2f} nats a token"

    def _repr_html_(self) -> str:
        return pictures.loss(self.data)
