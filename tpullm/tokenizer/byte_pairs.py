"""Byte-level BPE: `tokenizers` learns it, and tiktoken splits text by it, to the same ids.

A pattern cuts the text, and pairs of bytes are joined within what is left, the pair that was learned first at first.
The pattern is Qwen's: Llama 3's with single digits. llama.cpp knows it as `qwen2`.

`tokenizers` joins the pairs that it learned, tiktoken any neighbours whose bytes are a token. No token is learned from
two pairs, since pairs are joined in one order wherever the bytes of a token stand. So both join the same.
"""

import functools
import json
from collections.abc import Iterable, Sequence

from tpullm.system.errors import UserError

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The same as `\s+(?!\S)` if `\s+` is tried next. The regular expressions of tiktoken 0.14 remember each place that they
# may return to, at most a million, and `\s+` has one for each character. This has one for each hundred characters.
_ALL_BUT_ONE_SPACE = r"(?:\s{100}(?=\s{101}))*+\s+?(?=\s\S)"
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
        import tiktoken

        try:
            described = json.loads(model)
            ids, merges = described["model"]["vocab"], described["model"]["merges"]
            pattern = described["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{name}: not a byte-level BPE; remove it and run `tpullm tokenize` again") from None
        self._model, merged, letters = model, set(map("".join, merges)), byte_letters()
        is_text = [piece in letters or piece in merged for piece in ids]
        self.bytes = [bytes(map(letters.get, piece)) if n else b"" for piece, n in zip(ids, is_text, strict=True)]
        self.names = [_shown(held) if held else piece for piece, held in zip(ids, self.bytes, strict=True)]
        ranks = {held: token for token, held in enumerate(self.bytes) if held}
        pattern = pattern.replace(r"\s+(?!\S)", _ALL_BUT_ONE_SPACE)
        self._encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. The model knows no added tokens, so no text becomes a special token."""
        text.encode()  # tiktoken writes U+FFFD for half of a surrogate pair
        return self._encoding.encode_ordinary(text)

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
    joined = ["".join(pair) for pair in described["model"]["merges"]]
    assert learned[len(byte_letters()) :] == joined, "a token is learned from two pairs"
    # The pattern cuts each name, so that no joined pair is one.
    assert set(special).isdisjoint(learned), "a text became a special token"
    described["model"]["vocab"] = {piece: token for token, piece in enumerate([*special, *learned])}
    return json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
