"""Trains a tokenizer: texts → lines of passages → an alphabet → a model of SentencePiece or of byte pairs.

The alphabet is the size of the vocabulary and the characters that get a token of their own; others are written as
bytes. SentencePiece chooses from seed pieces, which are parts of words, so no piece spans two words. Byte pairs need no
alphabet but the bytes, and are learned within words too.
"""

import functools
import io
import itertools
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpullm.recipe.schema import TokenizerConfig, Words
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import say
from tpullm.tokenizer import byte_pairs, japanese_words
from tpullm.tokenizer.sentence_pieces import SPACE
from tpullm.tokenizer.trained import ASSISTANT, BOS, END, EOS, PAD, SPECIAL, SYSTEM, UNKNOWN, USER, TrainedTokenizer

BYTES = 4000  # of a passage at most: the trainer silently drops lines of more than 4,192 bytes


def passages(text: str) -> Iterator[str]:
    """`text` in passages of at most `BYTES` bytes, cut at line ends unless a line is longer."""
    held, size = [], 0
    for line in text.splitlines(keepends=True):
        for part in _cut_line(line):
            length = len(part.encode())
            if size + length > BYTES and held:
                yield "".join(held)
                held, size = [], 0
            held.append(part)
            size += length
    if held:
        yield "".join(held)


def most_passages(text: str) -> int:
    """How many passages `text` has at most: two that follow each other are longer than `BYTES`."""
    return 2 * len(text.encode()) // BYTES + 1


def passage_lines(passage: str) -> Iterator[str]:
    """The lines of a passage for the trainer: without newlines, at most 4,000 bytes, none empty.

    The trainer uses U+2585 itself and drops lines that have it, so the character is removed.
    """
    for line in passage.replace("\u2585", "").split("\n"):
        yield from (part for part in _cut_line(line) if part)


def _cut_line(line: str) -> Iterator[str]:
    """`line` in parts of at most 4,000 bytes, at character boundaries."""
    if len(line) * 4 <= BYTES:
        yield line
        return
    data = line.encode()
    while data:
        end = min(BYTES, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[:end].decode()
        data = data[end:]


# The share of the text whose characters should have tokens, as in SentencePiece. Rarer ones leave room for words.
COVERAGE = 0.9995
# Characters take at most this share of the vocabulary; words and parts of words take the rest. Bytes per token of
# held-out text for shares of 0.25, 0.35, 0.5, 0.65 and 0.8, trained on 500,000 characters: Soseki in 4,096 tokens 3.84,
# 4.02, 4.10, 4.06, 3.96; Chinese verse and prose in 2,048 tokens 2.28, 2.45, 2.60, 2.68, 2.69.
MOST_CHARACTERS = 0.5
# A vocabulary that may grow does so until characters take this share. The arithmetic of the quickstart's model for a
# text with 4,096 tokens, relative to 2,048 (1.24 times as much a token, for fewer tokens): Korean (710 characters)
# 0.94, Soseki and Chinese (2,700 and 3,900) 1.06 and 1.03, English and code (262) 1.08. With 6,144: 1.00, 1.19, 1.15,
# 1.22.
GROWN_CHARACTERS = 0.25
_ROUNDED_TO = 256  # tokens; a multiple of it splits well over devices


@dataclass(frozen=True)
class Alphabet:
    """The size of a vocabulary and its characters, for one text and the settings of a recipe.

    Args:
        vocabulary_size: all tokens: as the recipe says, or more if the text needs more and the recipe lets it grow.
        characters: how many characters get a token of their own.
        others: how many characters get none.
        covering: how many characters cover 99.95 % of the text.
        rare: the characters that get none, if there is not room for all that cover the text; empty if there is, and
            SentencePiece's coverage decides.
    """

    vocabulary_size: int
    characters: int
    others: int
    covering: int
    rare: frozenset[str] = frozenset()

    def parts(self, line: str) -> list[str]:
        """The parts of `line` between its rare characters."""
        if self.rare.isdisjoint(line):
            return [line]
        kept = "".join("\n" if character in self.rare else character for character in line)
        return [part for part in kept.split("\n") if part]


def choose_alphabet(lines: Iterable[str], config: TokenizerConfig) -> Alphabet:
    """The alphabet of a tokenizer for `lines`.

    If the characters that cover 99.95 % of the text take more than a quarter of the vocabulary, unless it is `char`, it
    grows until they do not, to at most `config.largest_vocabulary`. If they still take more than half, the rarest of
    them are written as bytes.
    """
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    if config.model_type == "char":
        size = config.vocabulary_size or fixed_tokens(config) + len(ordered)
        characters = min(len(ordered), size - fixed_tokens(config))
        return Alphabet(size, characters, len(ordered) - characters, characters)
    before = itertools.accumulate((counts[character] for character in ordered), initial=0)  # covered by those before
    covering = sum(covered < COVERAGE * counts.total() for covered in before)
    needed = fixed_tokens(config) + math.ceil(covering / GROWN_CHARACTERS)
    rounded = -(-needed // _ROUNDED_TO) * _ROUNDED_TO
    size = max(config.vocabulary_size, min(rounded, config.largest_vocabulary))
    room = int(MOST_CHARACTERS * (size - fixed_tokens(config)))
    if covering <= room:
        return Alphabet(size, covering, len(ordered) - covering, covering)
    return Alphabet(size, room, len(ordered) - room, covering, frozenset(ordered[room:]))


def fixed_tokens(config: TokenizerConfig) -> int:
    """The number of tokens that every vocabulary has: special and reserved tokens, bytes; and a newline and a space."""
    return len(SPECIAL) + config.reserved_tokens + 2 * (config.model_type != "bpe") + 256


def _reserved(config: TokenizerConfig) -> list[str]:
    return [f"<|reserved_{i}|>" for i in range(config.reserved_tokens)]


_PIECE_CHARACTERS = 16  # SentencePiece's own limit
_KANA = "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f"
_HAS_KANA = re.compile(f"[{_KANA}]")
_JAPANESE = re.compile(f"[{_KANA}\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_SYMBOLS = (
    "!-/:-@\\[-`{-~\u00a1-\u00bf\u2010-\u2bff\u3001-\u3004\u3008-\u303f\u30fb"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\U0001f000-\U0001faff"
)
_CHUNK = re.compile(rf" ?[^\s\d{_SYMBOLS}]+|\d| ?[{_SYMBOLS}]+|\s+")  # letters, one digit, symbols, white space


def seed_pieces(lines: Iterable[tuple[str, str]], words: Words = "strict") -> list[tuple[str, int]]:
    """The pieces from which the trainer chooses, with their counts: parts of words and of other chunks.

    SentencePiece has `pretokenization_delimiter` for this. But its seeds are the inner nodes of a suffix array, and a
    word that a boundary always follows is none: neither です nor 天気 became a piece (version 0.2.3).
    """
    chunks: Counter[str] = Counter()
    for language, line in lines:
        for part in cut_at_words(language, line, words):
            chunks.update((part,) if _JAPANESE.search(part) else _CHUNK.findall(part))
    pieces: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for start in range(len(chunk) - 1):
            for end in range(start + 2, min(len(chunk), start + _PIECE_CHARACTERS) + 1):
                pieces[chunk[start:end]] += count
    kept = [(piece.replace(" ", SPACE), count) for piece, count in pieces.items() if count > 1 and "\t" not in piece]
    return sorted(kept, key=lambda item: (-item[1] * len(item[0]), item[0]))


def cut_at_words(language: str, line: str, words: Words) -> list[str]:
    """A line cut where no piece may go on: at the boundaries of its Japanese words. `words` is not `none`.

    What is not Japanese is not cut: English words and numbers are split as in other lines.
    """
    if _HAS_KANA.search(line) or (language == "ja" and _JAPANESE.search(line)):
        return _cut_japanese(line, words)
    return [line]


_FOLLOWING = ("助詞", "助動詞", "接尾辞")  # particles, auxiliaries, suffixes


@functools.lru_cache(maxsize=1 << 16)  # generated text repeats its lines
def _cut_japanese(line: str, words: Words) -> list[str]:
    """`strict`: at the boundaries of Sudachi's shortest units (mode A). `soft`: before its longest units (mode C).

    A particle, an auxiliary or a suffix goes with the word before it in `soft`.
    """
    parts: list[str] = []
    for word in japanese_words.analyser("A" if words == "strict" else "C")(line):
        surface, is_japanese = word.surface(), bool(parts) and bool(_JAPANESE.search(parts[-1]))
        follows = words == "soft" and is_japanese and word.part_of_speech()[0] in _FOLLOWING
        if parts and surface and (follows or not (is_japanese or _JAPANESE.search(surface))):
            parts[-1] += surface
        elif surface:
            parts.append(surface)
    return parts


# The trainer chooses from the most frequent pieces. With all pieces, training took a third longer, and the characters
# per token differed by less than 2 % (2 M characters of Japanese, English and code).
_SEEDS_PER_TOKEN = 8
_TRAINER_THREADS = 8  # each thread adds up a part of the sums, so the number of threads changes the result and is fixed


def train(texts: Sequence[tuple[str, str]], config: TokenizerConfig, model_path: Path) -> TrainedTokenizer:
    """Train a tokenizer on (language, text) pairs, write it to `model_path`, return it.

    The result depends on the texts in their order and on `config`, and not on the machine. The log says if the
    vocabulary has another size than `config.vocabulary_size`, and how many characters are written as bytes if there are
    very many.

    Raises:
        UserError: there is no text, or `vocabulary_size` has no room for the special tokens and the bytes.
    """
    smallest = fixed_tokens(config) + 1
    if config.vocabulary_size < smallest and (config.vocabulary_size or config.model_type != "char"):
        raise UserError(
            f"tokenizer.vocabulary_size: {config.vocabulary_size} is too small: special tokens and bytes take"
            f" {smallest - 1}; set it to {smallest} or more"
        )
    lines = [(language, line) for language, text in texts for line in passage_lines(text)]
    if not lines:
        raise UserError("tokenizer: there is no text to train on; check `corpus.sources`")
    chosen = choose_alphabet((line for _, line in lines), config)
    if config.model_type == "bpe":
        special = [*SPECIAL, *_reserved(config)]
        model = byte_pairs.train(cut_passages(texts, config.words), special, chosen.vocabulary_size)
    else:
        model, chosen = _train_sentencepiece(lines, config, chosen)
    with storage.atomic_file(Path(model_path)) as temporary:
        temporary.write_bytes(model)
    made = TrainedTokenizer(model, str(model_path))
    asked, size = config.vocabulary_size, made.vocabulary_size
    notes = [f"the vocabulary grew from {asked:,} to {size:,}"] if 0 < asked < size else []
    if size < asked and config.model_type != "char":
        notes = [f"the text has too few different pieces for tokenizer.vocabulary_size {asked:,}; {size:,} were found"]
    elif config.model_type != "bpe" and (notes or chosen.rare):
        notes.append(f"{chosen.characters:,} characters have a token of their own")
        notes += [f"{chosen.others:,} rarer ones are written as bytes"] if chosen.others else []
    if notes:
        say(f"tokenizer: {', '.join(notes)}")
    return made


def cut_passages(texts: Iterable[tuple[str, str]], words: Words) -> Iterator[str]:
    """Texts, or what is between the boundaries in them that no byte pair may go over.

    White space and symbols may go on over the end of a line.
    """
    for language, text in texts:
        if words == "none":
            yield text
            continue
        held = ""
        for part in itertools.chain(*(cut_at_words(language, line, words) for line in text.splitlines(keepends=True))):
            if held and (_JAPANESE.search(held) or _JAPANESE.search(part)):
                yield held
                held = ""
            held += part
        if held:
            yield held


def _train_sentencepiece(
    lines: list[tuple[str, str]], config: TokenizerConfig, chosen: Alphabet
) -> tuple[bytes, Alphabet]:
    """The serialized SentencePiece model, and its alphabet.

    If the text has too few different pieces for the vocabulary, more of its characters get a token. If these are too
    few as well, the vocabulary becomes smaller.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    is_cut = config.words != "none" and config.model_type == "unigram"
    pieces = seed_pieces(lines, config.words) if is_cut else None
    left = chosen.characters + chosen.others - chosen.covering
    whole = Alphabet(chosen.vocabulary_size, chosen.covering, left, chosen.covering)  # with all that cover the text
    attempts = [(chosen, True), *([(whole, True)] if chosen.rare else []), (chosen, False)]
    for trial, is_exact in attempts:
        options = _trainer_options(config, trial) | ({} if is_exact else {"hard_vocab_limit": False})
        parts = (part for _, line in lines for part in trial.parts(line))
        model = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder:
            if pieces is not None:
                seeds = Path(folder) / "seeds.tsv"
                kept = [f"{piece}\t{count}\n" for piece, count in pieces if trial.rare.isdisjoint(piece)]
                seeds.write_text("".join(kept[: _SEEDS_PER_TOKEN * trial.vocabulary_size]), encoding="utf-8")
                options["seed_sentencepieces_file"] = str(seeds)
            try:
                sentencepiece.SentencePieceTrainer.train(sentence_iterator=parts, model_writer=model, **options)
            except RuntimeError as error:
                reason = error
                continue
        # The bytes of the model are the same every time: it does not name the temporary file of seeds.
        parsed = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
        parsed.trainer_spec.ClearField("seed_sentencepieces_file")
        # The scores become multiples of 1/64, so that their sums over a line of up to 8,000 characters are exact in
        # float32. Else rounding would choose between equally likely splits: SentencePiece split `====================`
        # otherwise than the `tokenizers` library, which adds in float64.
        for piece in parsed.pieces:
            piece.score = round(piece.score * 64) / 64
        return parsed.SerializeToString(deterministic=True), trial
    raise UserError(f"tokenizer: SentencePiece could not be trained ({reason})") from reason


def _trainer_options(config: TokenizerConfig, chosen: Alphabet) -> dict:
    """The options of SentencePiece. Nothing is normalized, trimmed or collapsed, so decoding returns the text."""
    options = dict(
        model_type=config.model_type,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        pad_piece=PAD, bos_piece=BOS, eos_piece=EOS, unk_piece=UNKNOWN,
        control_symbols=[SYSTEM, USER, ASSISTANT, END, *_reserved(config)],
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
        coverage = 1.0 if chosen.rare else COVERAGE
        return options | dict(vocab_size=chosen.vocabulary_size, character_coverage=coverage)
    # Here a too large vocabulary is no error. The rarest characters are dropped even if required, but symbols are not.
    kept = dict(required_chars="", user_defined_symbols=["\n", SPACE])
    return options | kept | dict(vocab_size=chosen.vocabulary_size, character_coverage=1.0)
