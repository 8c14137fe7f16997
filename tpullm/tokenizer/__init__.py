"""Text to token ids and back: one interface for the tokenizers that we train and for published ones.

`trained.py` reads and writes with a SentencePiece model that `training.py` made, `published.py` with the files of a
published model, `exported.py` turns the first into the second.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from tpullm import storage
from tpullm.errors import UserError
from tpullm.tokenizer.published import PublishedTokenizer
from tpullm.tokenizer.trained import TrainedTokenizer


class Tokenizer(Protocol):
    """What every tokenizer does. Ids run from 0 to `vocabulary_size - 1`.

    Attributes:
        needed_size: rows of an embedding that holds all tokens of text; special ones may lie beyond it (Gemma 3).
        begin: ids that a text begins with: `<s>`, or none.
        bos_id: the token that is called the beginning, if there is one.
        eos_id: what a document ends in.
        stop_ids: ids that end a text or an answer.
        pad_id: what fills a row of a batch.
        has_template: it can show conversations to the model.
    """

    vocabulary_size: int
    needed_size: int
    begin: list[int]
    bos_id: int | None
    eos_id: int
    stop_ids: list[int]
    pad_id: int
    has_template: bool

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without what a text begins and ends with."""

    def document(self, text: str) -> list[int]:
        """Ids of a whole document, its beginning and its end included; no text in it becomes a special token."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens give nothing, bytes that are not UTF-8 give U+FFFD."""

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of one token: none for a special token, part of a character for a byte token."""

    def bytes_per_token(self) -> np.ndarray:
        """How many UTF-8 bytes each token stands for, `[V]`: what bits per byte are divided by."""

    def piece(self, token: int) -> str:
        """How one token is shown."""

    def pieces(self, text: str) -> list[tuple[str, int]]:
        """The split of `text` for display: (what the token shows, its id)."""

    def chat_template(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = False
    ) -> tuple[list[int], list[float]]:
        """The ids of a conversation, and weights: 1 on what the assistant says and its end, 0 elsewhere.

        Args:
            messages: `{"role", "content"}` each.
            add_generation_prompt: end with that after which the model answers.
        """


def load(path: Path | str) -> Tokenizer:
    """The tokenizer in a folder, or the one of a SentencePiece model's file; `UserError` if it is not one."""
    path = storage.local_copy(storage.path(path))
    if (path / "tokenizer.json").is_file():
        return PublishedTokenizer(path)
    file = path / "tokenizer.model" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such tokenizer; make it with `tpullm tokenize`")
    return TrainedTokenizer(file.read_bytes(), str(file))
