"""Training a tokenizer: which passages it learns from, which pieces it may choose, and SentencePiece's options."""

import functools
import heapq
import io
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

from tpullm import storage
from tpullm.errors import UserError
from tpullm.log import say
from tpullm.recipe.schema import TokenizerConfig
from tpullm.tokenizer import alphabet, japanese_words
from tpullm.tokenizer.alphabet import Alphabet
from tpullm.tokenizer.trained import ASSISTANT, BOS, END, EOS, PAD, SPACE, SYSTEM, UNKNOWN, USER, TrainedTokenizer

_LINE_BYTES = 4000  # the trainer drops longer lines (4,192 bytes) without a word
_PIECE_CHARACTERS = 16  # SentencePiece's own limit
# The most frequent pieces, from which the trainer chooses. With all of them training took a third longer, and the
# characters per token differed by less than 2 % (2 M characters of Japanese, English and code).
_SEEDS_PER_TOKEN = 8
_TRAINER_THREADS = 8  # sums are split by thread, so this number is part of the result and must not be the machine's
_KANA = "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f"
_HAS_KANA = re.compile(f"[{_KANA}]")
_JAPANESE = re.compile(f"[{_KANA}\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_SYMBOLS = (
    "!-/:-@\\[-`{-~\u00a1-\u00bf\u2010-\u2bff\u3001-\u3004\u3008-\u303f\u30fb"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\U0001f000-\U0001faff"
)
_CHUNK = re.compile(rf" ?[^\s\d{_SYMBOLS}]+|\d| ?[{_SYMBOLS}]+|\s+")  # letters, one digit, symbols, white space


def train(texts: Iterable[tuple[str, str]], config: TokenizerConfig, seed: int, model_path: Path) -> TrainedTokenizer:
    """Train a tokenizer on (language, text) pairs, write it to `model_path`, return it.

    The result depends on the texts in their order, on `config` and on `seed`, and not on the machine. At most
    `config.sample_characters` characters are used, chosen by hash (`sample_texts`). The log says if the vocabulary has
    another size than `config` says, and how many characters go by their bytes if there are very many.

    Raises:
        UserError: there is no text, or `vocabulary_size` has no room for the special tokens and the bytes.
    """
    smallest = alphabet.fixed_tokens(config) + 1
    if config.vocabulary_size < smallest and (config.vocabulary_size or config.model_type == "unigram"):
        raise UserError(
            f"tokenizer.vocabulary_size: {config.vocabulary_size} is too small: special tokens and bytes take"
            f" {smallest - 1}; set it to {smallest} or more"
        )
    passages = sample_texts(texts, config.sample_characters, seed)
    lines = [(language, line) for language, passage in passages for line in _lines(passage)]
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
    """Why the vocabulary is not as the recipe says, or lacks frequent characters; nothing if neither is so."""
    asked = config.vocabulary_size
    if size < asked and config.model_type == "unigram":
        return f"the text has too few different pieces for tokenizer.vocabulary_size {asked:,}; {size:,} were found"
    said = [f"the vocabulary grew from {asked:,} to {size:,}"] if 0 < asked < size else []
    if said or chosen.rare:
        said.append(f"{chosen.characters:,} characters have a token of their own")
        said += [f"{chosen.others:,} rarer ones are written as bytes"] if chosen.others else []
    return ", ".join(said)


def _train(lines: list[tuple[str, str]], config: TokenizerConfig, chosen: Alphabet) -> tuple[bytes, Alphabet]:
    """The serialized SentencePiece model, and the alphabet that it has.

    A text with too few different pieces for the vocabulary gives more of its characters a token. If these are too few
    as well, the vocabulary becomes smaller.
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
    """What SentencePiece makes; `RuntimeError` if it can't make a vocabulary of exactly the size that was chosen."""
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
    """The model without the name of the temporary file that SentencePiece notes in it: the same bytes every time.

    And with scores that are multiples of 1/64, so that their sums over a line (of 8,000 characters at the least) are
    exact in float32. Else, of two equally likely splits, roundings would choose: `====================` was split in
    one way by SentencePiece and in another by the `tokenizers` library, which adds in float64.
    """
    from sentencepiece import sentencepiece_model_pb2

    parsed = sentencepiece_model_pb2.ModelProto.FromString(model)
    parsed.trainer_spec.ClearField("seed_sentencepieces_file")
    for piece in parsed.pieces:
        piece.score = round(piece.score * 64) / 64
    return parsed.SerializeToString(deterministic=True)


def sample_texts(texts: Iterable[tuple[str, str]], characters: int, seed: int) -> list[tuple[str, str]]:
    """Passages of about 4,000 bytes, `characters` in all at most, chosen by the hash of seed, place and content.

    One pass, with no more than the sample in memory. Passages of long texts count like any other, so that one novel
    does not take the place of many short documents, nor the other way round.
    """
    kept: list[tuple[int, int, str, str]] = []  # a heap whose first entry is the passage to give up first
    total = number = 0
    for language, text in texts:
        for passage in _passages(text):
            number += 1
            key = blake2b(f"{seed} {number} {passage}".encode(), digest_size=8)
            heapq.heappush(kept, (-int.from_bytes(key.digest(), "big"), number, language, passage))
            total += len(passage)
            while total > characters and len(kept) > 1:
                total -= len(heapq.heappop(kept)[3])
    return [(language, passage) for _, _, language, passage in sorted(kept, key=lambda entry: entry[1])]


def seed_pieces(lines: Iterable[tuple[str, str]]) -> list[tuple[str, int]]:
    """The pieces that the trainer may choose from, with their counts: parts of words and of other chunks.

    SentencePiece's own `pretokenization_delimiter` is meant for this, but it finds its seeds as the inner nodes of a
    suffix array, and a word that is always followed by a boundary is not one: with it, neither です nor 天気 became a
    piece (version 0.2.3).
    """
    words: Counter[str] = Counter()
    for language, line in lines:
        japanese = _HAS_KANA.search(line) or (language == "ja" and _JAPANESE.search(line))
        for part in _japanese_words()(line) if japanese else (line,):
            words.update((part,) if _JAPANESE.search(part) else _CHUNK.findall(part))
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word) - 1):
            for end in range(start + 2, min(len(word), start + _PIECE_CHARACTERS) + 1):
                pieces[word[start:end]] += count
    kept = [(piece.replace(" ", SPACE), count) for piece, count in pieces.items() if count > 1 and "\t" not in piece]
    return sorted(kept, key=lambda item: (-item[1] * len(item[0]), item[0]))


def _lines(passage: str) -> Iterator[str]:
    """Lines for the trainer: without their newline, at most 4,000 bytes, none empty.

    The trainer drops lines with U+2585, which it uses itself, so that character is taken out.
    """
    for line in passage.replace("\u2585", "").split("\n"):
        yield from (part for part in _cut(line) if part)


def _trainer_options(config: TokenizerConfig, chosen: Alphabet) -> dict:
    """SentencePiece's options; nothing is normalized, trimmed or collapsed, so that decoding gives the text back."""
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
        # Rare characters go by their bytes and leave room for words; where they are named, the lines are without them.
        coverage = 1.0 if chosen.rare else alphabet.COVERAGE
        return options | dict(vocab_size=chosen.vocabulary_size, character_coverage=coverage)
    # Characters: more than there are is no error; the rarest are dropped even if required, symbols are not.
    kept = dict(required_chars="", user_defined_symbols=["\n", SPACE])
    return options | kept | dict(vocab_size=chosen.vocabulary_size, character_coverage=1.0)


def _passages(text: str) -> Iterator[str]:
    """`text` in passages of at most about 4,000 bytes, cut after a line's end where there is one."""
    held, size = [], 0
    for line in text.splitlines(keepends=True):
        for part in _cut(line):
            length = len(part.encode())
            if size + length > _LINE_BYTES and held:
                yield "".join(held)
                held, size = [], 0
            held.append(part)
            size += length
    if held:
        yield "".join(held)


def _cut(line: str) -> Iterator[str]:
    """`line` in parts of at most 4,000 bytes, at character boundaries."""
    if len(line) * 4 <= _LINE_BYTES:
        yield line
        return
    data = line.encode()
    while data:
        end = min(_LINE_BYTES, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[:end].decode()
        data = data[end:]


@functools.cache
def _japanese_words() -> Callable[[str], list[str]]:
    """A function that splits a line at the boundaries of its Japanese words (Sudachi's shortest units, mode A).

    What is not Japanese stays whole: English words and numbers are split as they are elsewhere.
    """

    @functools.lru_cache(maxsize=1 << 16)  # generated text repeats its lines
    def split(line: str) -> list[str]:
        parts: list[str] = []
        for word in japanese_words.analyser("A")(line):
            surface = word.surface()
            if parts and surface and not (_JAPANESE.search(surface) or _JAPANESE.search(parts[-1])):
                parts[-1] += surface
            elif surface:
                parts.append(surface)
        return parts

    return split
