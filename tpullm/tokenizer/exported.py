"""Writes a trained tokenizer as the files that transformers and others read. Every text gets the same ids.

Byte-level BPE is the library's own. Of a SentencePiece model, two rules keep the `tokenizers` library from splitting a
text otherwise:

- The library takes special and byte tokens of a unigram model for pieces, so the text `<0x41>` would become a byte.
  Their names are cut before a letter or digit that follows a symbol, where SentencePiece never joins a piece.
- A space is written as U+2581, and the character U+2581 as its three bytes.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from tpullm.system import storage
from tpullm.tokenizer.byte_pairs import BytePairs
from tpullm.tokenizer.sentence_pieces import SPACE
from tpullm.tokenizer.trained import BOS, END, EOS, PAD, UNKNOWN, TrainedTokenizer

# `{% generation %}` marks the answers for transformers' `return_assistant_tokens_mask` and for our own tuning.
CHAT_TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('role ' + message['role'] + ' is not one of system, user, assistant') -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
_CUT = " "  # no space is left in the text when names are cut


def write(folder: Path, tokenizer: TrainedTokenizer, context_length: int, tuned: bool) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`.

    Args:
        context_length: the context of the model in tokens.
        tuned: whether the model was tuned on conversations, which end in `<|end|>` and not in `</s>`.
    """
    (folder / "tokenizer.json").write_text(fast(tokenizer).to_str(pretty=True), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END if tuned else EOS,
        "unk_token": UNKNOWN,
        "pad_token": PAD,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
    if tuned:  # a model with a template is a chat model for other programs
        config["chat_template"] = CHAT_TEMPLATE
    storage.write_json(folder / "tokenizer_config.json", config)


def fast(tokenizer: TrainedTokenizer):
    """The `tokenizers.Tokenizer` that splits as ours does."""
    from tokenizers import AddedToken, Tokenizer, processors

    is_bytes = isinstance(tokenizer.splitter, BytePairs)
    made = Tokenizer.from_str(tokenizer.serialized().decode()) if is_bytes else _of_sentence_pieces(tokenizer)
    made.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_id)])
    special = [name for token, name in enumerate(tokenizer.names) if not tokenizer.bytes_of(token)]
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return made


def _of_sentence_pieces(tokenizer: TrainedTokenizer):
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    pieces = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.serialized()).pieces
    normal = [piece.piece for piece in pieces if piece.type == piece.NORMAL]
    control = [piece.piece for piece in pieces if piece.type in (piece.CONTROL, piece.UNKNOWN)]
    scored = [(piece.piece, piece.score) for piece in pieces]
    made = tokenizers.Tokenizer(models.Unigram(scored, unk_id=tokenizer.unknown_id, byte_fallback=True))
    of_space = "".join(f"<0x{byte:02X}>" for byte in SPACE.encode())
    # `0` or `1` after each U+2581 tells what it stands for. So no space is left, and a space can mark a cut.
    cuts = [(Regex(pattern), cut) for pattern, cut in _special_token_cuts(control, normal)]
    replaced = [(SPACE, f"{SPACE}0"), (" ", f"{SPACE}1"), *cuts, (f"{SPACE}0", of_space), (f"{SPACE}1", SPACE)]
    made.normalizer = normalizers.Sequence([normalizers.Replace(*pair) for pair in replaced])
    splits = [pre_tokenizers.Split(_CUT, "removed"), pre_tokenizers.Split("\n", "isolated")]
    made.pre_tokenizer = pre_tokenizers.Sequence(splits)
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def _special_token_cuts(control: list[str], normal: list[str]) -> Iterable[tuple[str, str]]:
    """Patterns for the beginning of the name of a special or byte token, and that beginning with a cut after it.

    A name is `<`, perhaps more symbols, then letters or digits. SentencePiece splits before them.
    """
    rests: dict[str, list[str]] = {"<": ["0x[0-9A-F]{2}>"]}
    for name in control:
        place = re.search(r"\w", name).start()
        rests.setdefault(name[:place], []).append(re.escape(name[place:]))
    for beginning, after in rests.items():
        crossing = re.compile(re.escape(beginning[-1]) + r"\w")
        assert not any(crossing.search(piece) for piece in normal), f"a piece goes over the end of {beginning}"
        yield f"{re.escape(beginning)}(?=({'|'.join(after)}))", beginning + _CUT
