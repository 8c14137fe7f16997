"""A trained tokenizer: SentencePiece or byte-level BPE, lossless on every string, with one chat template.

A token stands for some bytes of UTF-8, and a text is the concatenated bytes of its tokens. Special tokens stand for no
bytes, and no text becomes one.
"""

import re
from collections.abc import Iterable

import numpy as np

from tpullm.system.errors import UserError
from tpullm.tokenizer.byte_pairs import BytePairs
from tpullm.tokenizer.chat_template import Messages, Tools, Weighted
from tpullm.tokenizer.sentence_pieces import SentencePieces

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL = [PAD, BOS, EOS, UNKNOWN, SYSTEM, USER, ASSISTANT, END]
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
_NO_TOOLS = (
    "the chat template of this model shows no tools, calls of tools or their results; take them out of the examples, "
    "or tune a published model whose template does"
)


class TrainedTokenizer:
    """Implements `tpullm.tokenizer.Tokenizer` with a model of `tpullm tokenize`.

    Attributes:
        splitter: what splits a text.
        names: how each token is shown: its text, `<0x..>` for a byte token, or the name of a special token.
    """

    has_template = True

    def __init__(self, model: bytes, name: str = "the tokenizer"):
        """Load a serialized model; `UserError` (with `name`) if tpullm did not make it."""
        self.splitter = (BytePairs if model.startswith(b"{") else SentencePieces)(model, name)
        self.names, self._bytes = self.splitter.names, self.splitter.bytes
        self.vocabulary_size = self.needed_size = len(self._bytes)
        self._special = {piece: n for n, piece in enumerate(self.names) if not self._bytes[n]}
        if missing := [piece for piece in SPECIAL if piece not in self._special]:
            raise UserError(f"{name}: not a tokenizer of tpullm (it has no {' '.join(missing)}); make it again")
        ids = [self._special[piece] for piece in SPECIAL]
        self.pad_id, self.bos_id, self.eos_id, self.unknown_id = ids[:4]
        self.system_id, self.user_id, self.assistant_id, self.end_id = ids[4:]
        self.begin = [self.bos_id]
        self.stop_ids = [self.eos_id, self.end_id]
        longest_first = sorted(self._special, key=len, reverse=True)
        self._marks = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without `<s>` and `</s>`. `decode` returns exactly `text`.

        Raises:
            UserError: `text` holds a lone surrogate, which no UTF-8 file can hold.
        """
        try:
            return self.splitter.encode(text)
        except (RuntimeError, TypeError, UnicodeEncodeError):
            found = re.search("[\ud800-\udfff]", text)
            where = f"character {found.start()} is U+{ord(found.group()):04X}, " if found else ""
            raise UserError(
                f"text to tokenize: {where}half of a surrogate pair and not a character; repair the text's encoding"
            ) from None

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a text in which the names of special tokens are these tokens, as in an exported tokenizer."""
        parts = self._marks.split(text)
        ids = [[self._special[part]] if n % 2 else self.encode(part) for n, part in enumerate(parts)]
        return [token for part in ids for token in part]

    def document(self, text: str) -> list[int]:
        """`<s>`, the ids of `text`, `</s>`."""
        return [self.bos_id, *self.encode(text), self.eos_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Special tokens have no text; bytes that are not UTF-8 become U+FFFD."""
        return b"".join([self._bytes[token] for token in ids]).decode("utf-8", errors="replace")

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of one token: none for a special token, part of a character for a byte token."""
        return self._bytes[token]

    def bytes_per_token(self) -> np.ndarray:
        """The UTF-8 bytes that each token stands for, `[V]`: the denominator of bits per byte."""
        return np.array(list(map(len, self._bytes)), np.float64)

    def piece(self, token: int) -> str:
        """One token for display: its text, `<0x..>` for a byte token, or the name of a special token (`<|user|>`)."""
        return self.names[token]

    def pieces(self, text: str) -> list[tuple[str, int]]:
        """The tokens of `text` for display: (piece, id)."""
        return [(self.piece(token), token) for token in self.encode(text)]

    def chat_template(self, messages: Messages, add_generation_prompt: bool = False, tools: Tools = None) -> Weighted:
        """The ids and weights of a conversation: `<s> <|user|> content <|end|> <|assistant|> content <|end|> ...`.

        A weight is 1 on an answer and its `<|end|>`, and 0 elsewhere. `add_generation_prompt` appends the
        `<|assistant|>` after which the model answers. The model stops at `<|end|>`.

        Raises:
            UserError: a message is not {"role", "content"}, or its role is not one of `ROLES`, or there are tools.
        """
        if tools:
            raise UserError(_NO_TOOLS)
        ids, weights = [self.bos_id], [0.0]
        for message in messages:
            keys = ("role", "content")
            role, content = map(message.get, keys) if isinstance(message, dict) else (None, None)
            if role == "tool" or role == "assistant" and message.get("tool_calls"):
                raise UserError(_NO_TOOLS)
            if role not in ROLES:
                raise UserError(f"role {role!r} is not one of {', '.join(ROLES)}; correct the message's `role`")
            if not isinstance(content, str):
                raise UserError(f"a message of the {role} has no text; give it a `content` string")
            said = [*self.encode(content), self.end_id]
            ids += [self._special[ROLES[role]], *said]
            weights += [0.0, *[float(role == "assistant")] * len(said)]
        if add_generation_prompt:
            ids.append(self.assistant_id)
            weights.append(0.0)
        return ids, weights

    def prompt_text(self, messages: Messages, tools: Tools = None) -> str:
        """A conversation up to where the model answers, as text, with the names of special tokens."""
        ids, _ = self.chat_template(messages, add_generation_prompt=True, tools=tools)
        return b"".join(self._bytes[token] or self.piece(token).encode() for token in ids).decode()

    def last_answer(self, messages: Messages, tools: Tools = None) -> Weighted:
        """The same with weights on the last message alone, which is the assistant's."""
        ids, weights = self.chat_template(messages, tools=tools)
        before = len(self.chat_template(messages[:-1], add_generation_prompt=True)[0])
        return ids, [0.0] * before + weights[before:]

    def serialized(self) -> bytes:
        """The model: one of SentencePiece, or the JSON of the library `tokenizers`."""
        return self.splitter.serialized()
