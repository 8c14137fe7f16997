"""Text to token ids and back: one interface for the tokenizers that we train and for published ones.

`trainer.py` trains a model of SentencePiece or of byte pairs, and `trained.py` encodes and decodes with it.
`published.py` uses the files of a published model, and `exported.py` writes such files for a trained tokenizer.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.tokenizer.chat_template import Messages, Tools, Weighted
from tpullm.tokenizer.published import PublishedTokenizer
from tpullm.tokenizer.trained import TrainedTokenizer


class Tokenizer(Protocol):
    """What every tokenizer does. Ids run from 0 to `vocabulary_size - 1`.

    Attributes:
        needed_size: the rows of an embedding of all tokens of text; special tokens may lie beyond them (Gemma 3).
        begin: the ids that a text begins with: `<s>`, or none.
        bos_id: the token named as the beginning of a text, if there is one.
        eos_id: the token that ends a document.
        stop_ids: the ids that end a text or an answer.
        pad_id: the token of padding.
        has_template: whether there is a chat template.
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
        """Ids of `text`, without begin and end tokens."""

    def encode_marked(self, text: str) -> list[int]:
        """The same of a text in which the names of special tokens are these tokens, such as `prompt_text` gives."""

    def document(self, text: str) -> list[int]:
        """Ids of a whole document with its begin and end tokens. No text in it becomes a special token."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Special tokens have no text; bytes that are not UTF-8 become U+FFFD."""

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of one token: none for a special token, part of a character for a byte token."""

    def bytes_per_token(self) -> np.ndarray:
        """The UTF-8 bytes that each token stands for, `[V]`: the denominator of bits per byte."""

    def piece(self, token: int) -> str:
        """One token for display."""

    def serialized(self) -> bytes:
        """The model that splits text: one of SentencePiece, or the JSON of the library `tokenizers`."""

    def pieces(self, text: str) -> list[tuple[str, int]]:
        """The tokens of `text` for display: (piece, id)."""

    def chat_template(self, messages: Messages, add_generation_prompt: bool = False, tools: Tools = None) -> Weighted:
        """The ids of a conversation, and weights: 1 on what the assistant says and its end, 0 elsewhere.

        Args:
            messages: `{"role", "content"}` each; an answer may have `tool_calls`.
            add_generation_prompt: end with the tokens after which the model answers.
            tools: the functions that an answer may call.
        """

    def prompt_text(self, messages: Messages, tools: Tools = None) -> str:
        """A conversation up to where the model answers, as text, with the names of special tokens."""

    def last_answer(self, messages: Messages, tools: Tools = None) -> Weighted:
        """The same with weights on the last message alone, which is the assistant's."""


def load(path: Path | str) -> Tokenizer:
    """The tokenizer in a folder, or of a `tokenizer.model`; `UserError` if there is none."""
    path = storage.local_copy(storage.path(path))
    if (path / "tokenizer.json").is_file():
        return PublishedTokenizer(path)
    file = path / "tokenizer.model" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such tokenizer; make it with `tpullm tokenize`")
    return TrainedTokenizer(file.read_bytes(), str(file))


def difference(one: Tokenizer, other: Tokenizer) -> str:
    """What two tokenizers have otherwise, for an error; empty if each id stands for the same in both."""
    if one.vocabulary_size != other.vocabulary_size:
        return f"{one.vocabulary_size:,} tokens and {other.vocabulary_size:,}"
    for token in range(one.vocabulary_size):
        own, its = one.bytes_of(token), other.bytes_of(token)
        if own != its or (not own and one.piece(token) != other.piece(token)):
            return f"token {token} is {one.piece(token)!r} and {other.piece(token)!r}"
    return ""
