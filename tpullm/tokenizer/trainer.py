"""Trains a tokenizer with SentencePiece."""

import io
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tpullm import storage
from tpullm.errors import UserError
from tpullm.log import say
from tpullm.recipe.schema import TokenizerConfig
from tpullm.tokenizer import alphabet, passages
from tpullm.tokenizer.alphabet import Alphabet
from tpullm.tokenizer.seed_pieces import seed_pieces
from tpullm.tokenizer.trained import ASSISTANT, BOS, END, EOS, PAD, SPACE, SYSTEM, UNKNOWN, USER, TrainedTokenizer

# The trainer chooses from the most frequent pieces. With all pieces, training took a third longer, and the characters
# per token differed by less than 2 % (2 M characters of Japanese, English and code).
_SEEDS_PER_TOKEN = 8
_TRAINER_THREADS = 8  # each thread adds up a part of the sums, so the number of threads changes the result and is fixed


def train(texts: Iterable[tuple[str, str]], config: TokenizerConfig, model_path: Path) -> TrainedTokenizer:
    """Train a tokenizer on (language, text) pairs, write it to `model_path`, return it.

    The result depends on the texts in their order and on `config`, and not on the machine. The log says if the
    vocabulary has another size than `config.vocabulary_size`, and how many characters are written as bytes if there are
    very many.

    Raises:
        UserError: there is no text, or `vocabulary_size` has no room for the special tokens and the bytes.
    """
    smallest = alphabet.fixed_tokens(config) + 1
    if config.vocabulary_size < smallest and (config.vocabulary_size or config.model_type == "unigram"):
        raise UserError(
            f"tokenizer.vocabulary_size: {config.vocabulary_size} is too small: special tokens and bytes take"
            f" {smallest - 1}; set it to {smallest} or more"
        )
    lines = [(language, line) for language, text in texts for line in passages.lines(text)]
    if not lines:
        raise UserError("tokenizer: there is no text to train on; check `corpus.sources`")
    chosen = alphabet.choose((line for _, line in lines), config)
    model, chosen = _train(lines, config, chosen)
    with storage.atomic_file(Path(model_path)) as temporary:
        temporary.write_bytes(model)
    made = TrainedTokenizer(model, str(model_path))
    if note := _about_size(config, made.vocabulary_size, chosen):
        say(f"tokenizer: {note}")
    return made


def _about_size(config: TokenizerConfig, size: int, chosen: Alphabet) -> str:
    """Why the vocabulary differs from the recipe or lacks frequent characters; "" if neither is so."""
    asked = config.vocabulary_size
    if size < asked and config.model_type == "unigram":
        return f"the text has too few different pieces for tokenizer.vocabulary_size {asked:,}; {size:,} were found"
    said = [f"the vocabulary grew from {asked:,} to {size:,}"] if 0 < asked < size else []
    if said or chosen.rare:
        said.append(f"{chosen.characters:,} characters have a token of their own")
        said += [f"{chosen.others:,} rarer ones are written as bytes"] if chosen.others else []
    return ", ".join(said)


def _train(lines: list[tuple[str, str]], config: TokenizerConfig, chosen: Alphabet) -> tuple[bytes, Alphabet]:
    """The serialized SentencePiece model, and its alphabet.

    If the text has too few different pieces for the vocabulary, more of its characters get a token. If these are too
    few as well, the vocabulary becomes smaller.
    """
    pieces = seed_pieces(lines) if config.words and config.model_type == "unigram" else None
    attempts = [(chosen, True), *([(chosen.with_all(), True)] if chosen.rare else []), (chosen, False)]
    for trial, is_exact in attempts:
        try:
            return _finished(_trained(lines, pieces, config, trial, is_exact)), trial
        except RuntimeError as error:
            reason = error
    raise UserError(f"tokenizer: SentencePiece could not be trained ({reason})") from reason


def _trained(
    lines: list[tuple[str, str]],
    pieces: list[tuple[str, int]] | None,
    config: TokenizerConfig,
    chosen: Alphabet,
    is_exact: bool,
) -> bytes:
    """The model of SentencePiece's trainer; `RuntimeError` if `is_exact` and it can't reach the vocabulary size."""
    import sentencepiece

    options = _trainer_options(config, chosen) | ({} if is_exact else {"hard_vocab_limit": False})
    with tempfile.TemporaryDirectory() as folder:
        if pieces is not None:
            seeds = Path(folder) / "seeds.tsv"
            kept = [(piece, count) for piece, count in pieces if chosen.has(piece)]
            kept = kept[: _SEEDS_PER_TOKEN * chosen.vocabulary_size]
            seeds.write_text("".join(f"{piece}\t{count}\n" for piece, count in kept), encoding="utf-8")
            options["seed_sentencepieces_file"] = str(seeds)
        parts = (part for _, line in lines for part in chosen.parts(line))
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=parts, model_writer=model, **options)
    return model.getvalue()


def _finished(model: bytes) -> bytes:
    """The model without the name of the temporary file of seeds, so that its bytes are the same every time.

    The scores become multiples of 1/64, so that their sums over a line of up to 8,000 characters are exact in float32.
    Else rounding would choose between equally likely splits: SentencePiece split `====================` otherwise than
    the `tokenizers` library, which adds in float64.
    """
    from sentencepiece import sentencepiece_model_pb2

    parsed = sentencepiece_model_pb2.ModelProto.FromString(model)
    parsed.trainer_spec.ClearField("seed_sentencepieces_file")
    for piece in parsed.pieces:
        piece.score = round(piece.score * 64) / 64
    return parsed.SerializeToString(deterministic=True)


def _trainer_options(config: TokenizerConfig, chosen: Alphabet) -> dict:
    """The options of SentencePiece. Nothing is normalized, trimmed or collapsed, so decoding returns the text."""
    reserved = [f"<|reserved_{i}|>" for i in range(config.reserved_tokens)]
    options = dict(
        model_type=config.model_type,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        pad_piece=PAD, bos_piece=BOS, eos_piece=EOS, unk_piece=UNKNOWN,
        control_symbols=[SYSTEM, USER, ASSISTANT, END, *reserved],
        user_defined_symbols=["\n"],
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_by_unicode_script=True,
        split_digits=True,
        required_chars=SPACE,
        num_threads=_TRAINER_THREADS,
        minloglevel=2,
    )  # fmt: skip
    if config.model_type == "unigram":
        # Rare characters are written as bytes and leave room for words. The lines have no character of `chosen.rare`.
        coverage = 1.0 if chosen.rare else alphabet.COVERAGE
        return options | dict(vocab_size=chosen.vocabulary_size, character_coverage=coverage)
    # Here a too large vocabulary is no error. The rarest characters are dropped even if required, but symbols are not.
    kept = dict(required_chars="", user_defined_symbols=["\n", SPACE])
    return options | kept | dict(vocab_size=chosen.vocabulary_size, character_coverage=1.0)
