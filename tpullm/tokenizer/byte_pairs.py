"""Byte-level BPE: `tokenizers` learns it, and `kitoken` splits text by it, to the same ids.

A pattern cuts the text, and pairs of bytes are joined within what is left, the pair that was learned first at first.
The pattern is Qwen's: Llama 3's with single digits. llama.cpp knows it as `qwen2`.
"""

import functools
import json
from collections.abc import Iterable, Sequence

from tpullm.system.errors import UserError

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Longer texts are split by `tokenizers`, at a third of the speed or less. On white space of a million characters the
# regular expressions of kitoken 0.11 overflow their stack, which ends the process; 400,000 characters pass.
_MOST_CHARACTERS = 100_000
_LONGEST_TOKEN = 48  # bytes: 16 Japanese characters, which is the limit of SentencePiece


@functools.cache
def byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable bytes are their own letters, and the others are U+0100 and onwards."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


class BytePairs:
    """Splits text by a model that `train` made.

    Attributes:
        bytes: the bytes of each token; none for a special token.
        names: how each token is shown: its text, `<0x..>` for parts of a character, or the name of a special token.
    """

    def __init__(self, model: bytes, name: str):
        """Load the model.

        Args:
            model: the file of the model.
            name: what an error calls it.

        Raises:
            UserError: it is no byte-level BPE.
        """
        from kitoken import Kitoken
        from tokenizers import Tokenizer

        try:
            described = json.loads(model)
            self._slow, self._fast = Tokenizer.from_str(model.decode()), Kitoken.from_tokenizers(model)
            ids = described["model"]["vocab"]
        except Exception:  # the libraries raise bare exceptions
            raise UserError(f"{name}: not a byte-level BPE; remove it and run `tpullm tokenize` again") from None
        self._model, merged = model, {"".join(pair) for pair in described["model"]["merges"]}
        letters = byte_letters()
        is_text = [piece in letters or piece in merged for piece in ids]
        self.bytes = [bytes(map(letters.get, piece)) if n else b"" for piece, n in zip(ids, is_text, strict=True)]
        self.names = [_shown(held) if held else piece for piece, held in zip(ids, self.bytes, strict=True)]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. The model knows no added tokens, so no text becomes a special token."""
        if len(text) <= _MOST_CHARACTERS:
            return self._fast.encode(text)
        return self._slow.encode(text).ids

    def serialized(self) -> bytes:
        """The model, as `tokenizer.json` has it, without special tokens that a text could name."""
        return self._model


def _shown(held: bytes) -> str:
    try:
        return held.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in held)


def train(texts: Iterable[str], special: Sequence[str], size: int) -> bytes:
    """A model of at most `size` tokens, which are `special` ones, all bytes, and pairs that are joined.

    Ties go to the pair of the lower ids, so the model depends on the texts alone, and not on their order or on threads.

    Args:
        texts: no token goes over the end of a text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence([split, of_bytes]), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(special),
        min_frequency=2,
        initial_alphabet=list(byte_letters()),
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    described = json.loads(made.to_str())
    learned = sorted(described["model"]["vocab"], key=described["model"]["vocab"].get)
    # The pattern cuts each name, so that no joined pair is one.
    assert set(special).isdisjoint(learned), "a text became a special token"
    described["model"]["vocab"] = {piece: token for token, piece in enumerate([*special, *learned])}
    return json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
