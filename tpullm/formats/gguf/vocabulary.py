"""Tokenizers as llama.cpp has them, so that a text gets the ids there that it gets here.

Byte-level BPE is llama.cpp's `gpt2`. Ours of SentencePiece is a unigram model with bytes for what no piece holds. Of
llama.cpp's tokenizers `plamo2` computes that: `t5`, the other unigram one, has no bytes, and `llama` joins pairs.
`plamo2` rounds scores to 1/10,000 and gives -1,000 to a character that is no piece. SentencePiece gives it the lowest
score - 10. So the scores are scaled until that is about -1,000, and the 1/64 whose multiples they are is a whole
number: sums are exact in both. Between splits of the same score, as of a run of spaces, SentencePiece has the longest
piece last and `plamo2` first. Nothing in a file changes it.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from tpullm.formats.gguf import pre_tokenizers
from tpullm.system.errors import UserError
from tpullm.tokenizer import Tokenizer, exported
from tpullm.tokenizer.byte_pairs import BytePairs
from tpullm.tokenizer.json_files import read_json
from tpullm.tokenizer.published import PublishedTokenizer
from tpullm.tokenizer.trained import TrainedTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # the values of `gguf.TokenType`
_NEVER = -100_000.0  # a score that `plamo2` never looks at, and that it can still hold in 32 bits


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in the terms of a GGUF file.

    Args:
        model: the tokenizer of llama.cpp.
        texts, kinds: of each token.
        scores: of each token, if the tokenizer has scores.
        merges: the pairs of a byte-level tokenizer, the first to join first.
        split: what is done before pairs are joined.
        has_first_space: whether a space is put before a text.
    """

    model: str
    texts: list[str]
    kinds: list[int]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    split: str = ""
    has_first_space: bool = False

    def of_size(self, rows: int) -> "Vocabulary":
        """The same for an embedding of `rows` rows. Special tokens beyond it go; rows without a token are unused."""
        over = range(len(self.texts), rows)
        return dataclasses.replace(
            self,
            texts=[*self.texts[:rows], *(f"[PAD{token}]" for token in over)],
            kinds=[*self.kinds[:rows], *(UNUSED for _ in over)],
            scores=(*self.scores[:rows], *(_NEVER for _ in over)) if self.scores else (),
        )


def of_tokenizer(tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of a tokenizer; `UserError` if llama.cpp has none that splits a text alike."""
    if isinstance(tokenizer, PublishedTokenizer):
        path = tokenizer.folder / "tokenizer.json"
        return _of_library(read_json(path), tokenizer.vocabulary_size, path)
    if isinstance(tokenizer.splitter, BytePairs):
        described = json.loads(exported.fast(tokenizer).to_str())
        return _of_library(described, tokenizer.vocabulary_size, Path("tokenizer.json"))
    return _of_sentence_pieces(tokenizer)


def _of_sentence_pieces(tokenizer: TrainedTokenizer) -> Vocabulary:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.serialized())
    is_unigram = model.trainer_spec.model_type == model.trainer_spec.UNIGRAM
    lowest = min(piece.score for piece in model.pieces if piece.type == piece.NORMAL)
    scale = (10**7 // math.ceil((10 - lowest) * 64)) * 64 / 10**4
    texts, kinds, scores = [], [], []
    for token, piece in enumerate(model.pieces):
        held = tokenizer.bytes_of(token)
        is_text = held and piece.type != piece.BYTE
        texts.append(held.decode() if is_text and is_unigram else piece.piece)
        kinds.append(NORMAL if is_text else BYTE if held else UNKNOWN if piece.type == piece.UNKNOWN else CONTROL)
        scores.append(_NEVER if not is_text else piece.score * scale if is_unigram else piece.score)
    return Vocabulary("plamo2" if is_unigram else "llama", texts, kinds, tuple(scores))


def _of_library(described: dict, size: int, path: Path) -> Vocabulary:
    """Of `tokenizer.json`, with so many tokens."""
    model = described["model"]
    if model.get("type") != "BPE":
        raise _unknown_to_llama_cpp(path, f"a model of type {model.get('type')!s:.40}")
    ids, kinds = dict(model["vocab"]), dict.fromkeys(model["vocab"], NORMAL)
    for added in described.get("added_tokens") or ():
        ids[added["content"]] = added["id"]
        kinds[added["content"]] = CONTROL if added["special"] else USER_DEFINED
    texts = [f"[PAD{token}]" for token in range(size)]
    for text, token in ids.items():
        texts[token] = text
    merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    if model.get("byte_fallback"):
        return _of_llama(described, texts, kinds, merges, path)
    if (normalizer := (described.get("normalizer") or {"type": "NFC"})["type"]) != "NFC":
        raise _unknown_to_llama_cpp(path, f"a normalizer of type {normalizer!s:.40}")
    split = pre_tokenizers.name_of(described.get("pre_tokenizer") or {}, bool(model.get("ignore_merges")))
    if split is None:
        raise _unknown_to_llama_cpp(path, "a pattern that splits a text")
    return Vocabulary("gpt2", texts, [kinds.get(text, UNUSED) for text in texts], merges=merges, split=split)


def _of_llama(described: dict, texts: list[str], kinds: dict, merges: tuple[str, ...], path: Path) -> Vocabulary:
    """Of Llama 2, Gemma and others: llama.cpp's `llama`, whose score of a token says when its pairs are joined."""
    order = list(dict.fromkeys(joined := [merge.replace(" ", "") for merge in merges]))
    rank = {text: number for number, text in enumerate(order)}
    if any(rank[text] > rank[after] for text, after in zip(joined, joined[1:], strict=False)):
        raise _unknown_to_llama_cpp(path, "an order of merges that no scores of tokens give")
    steps = [*_tokenizer_steps(described.get("normalizer")), *_tokenizer_steps(described.get("pre_tokenizer"))]
    for step in steps:
        if step["type"] not in ("Prepend", "Replace", "Metaspace", "Split"):
            raise _unknown_to_llama_cpp(path, f"a step of type {step['type']!s:.40} before it joins pairs")
    spaced = any(step["type"] in ("Prepend", "Metaspace") and step.get("prepend_scheme") != "never" for step in steps)
    kinds = kinds | {described["model"].get("unk_token"): UNKNOWN}
    kinds |= {text: BYTE for text in texts if len(text) == 6 and text.startswith("<0x")}
    scores = tuple(-float(rank.get(text, len(order))) for text in texts)
    return Vocabulary("llama", texts, [kinds.get(text, UNUSED) for text in texts], scores, has_first_space=spaced)


def _tokenizer_steps(described: dict | None) -> list[dict]:
    """The steps of a normalizer or a pre-tokenizer."""
    found = described or {}
    return found.get("normalizers") or found.get("pretokenizers") or ([found] if found else [])


def _unknown_to_llama_cpp(path: Path, what: str) -> UserError:
    return UserError(f"export: {path}: llama.cpp has no tokenizer with {what}; use --format huggingface")


def write(writer, tokenizer: Tokenizer, rows: int, talks: bool) -> None:
    """Add a tokenizer to a `gguf.GGUFWriter`.

    Args:
        rows: the rows of the embedding, which llama.cpp counts by the tokens.
        talks: whether the model was tuned on conversations.

    Raises:
        UserError: as `of_tokenizer`.
    """
    found = of_tokenizer(tokenizer).of_size(rows)
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.split or "default")
    writer.add_token_list(found.texts)
    writer.add_token_types(found.kinds)
    if found.scores:
        writer.add_token_scores(found.scores)
    if found.merges:
        writer.add_token_merges(found.merges)
    writer.add_add_space_prefix(found.has_first_space)
    is_ours = isinstance(tokenizer, TrainedTokenizer)
    ends = [token for token in tokenizer.stop_ids if token < rows]
    if is_ours and talks:
        ends.reverse()  # `<|end|>` ends an answer, `</s>` a document
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    if tokenizer.pad_id is not None and tokenizer.pad_id < rows:
        writer.add_pad_token_id(tokenizer.pad_id)
    if is_ours:
        writer.add_unk_token_id(tokenizer.unknown_id)
    # `plamo2` adds none by itself. The template has it, and llama.cpp would take out what it thinks to add itself.
    writer.add_add_bos_token(found.model != "plamo2" and list(tokenizer.begin) == [tokenizer.bos_id])
    writer.add_add_eos_token(False)
    template = (exported.CHAT_TEMPLATE if talks else None) if is_ours else tokenizer.template
    if template:
        writer.add_chat_template(template)
