"""What a model learned of the user's own text: how it goes on, the words it expects, and how well it predicts it.

Everything is measured on the part of the text that was held out.
"""

import lzma
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tpullm.corpus.cutting import cut
from tpullm.corpus.language_detection import is_spaceless
from tpullm.data.batch import Batch
from tpullm.errors import UserError
from tpullm.inference.blank import fill
from tpullm.inference.decode import decode
from tpullm.inference.sampling import Sampling
from tpullm.inference.session import Session
from tpullm.inference.streaming import characters
from tpullm.tokenizer import japanese_words

BLANK = "【?】"
BEGINNINGS = 3  # texts that the model goes on with
BLANKS = 6
_TRIED = 4  # passages that are looked at for each that is shown: some hold no sentence
_PASSAGE_CHARACTERS = 600
_WORDS = 5  # of one blank, shown
_PROMPT_CHARACTERS = 40  # of a text with spaces between its words; half as many of one without
_FOLLOWING_CHARACTERS = 120  # of the original, shown beside what the model writes
_SENTENCE = re.compile(r"[^\s。．！？.!?][^。．！？.!?\n]*[。．！？.!?]")
_SENTENCE_CHARACTERS = (30, 120)  # halved in text without spaces
_WORD = re.compile(r"[^\W\d_]{3,}")
_CONTENT = ("名詞", "動詞", "形容詞", "形状詞", "副詞")
_MOST_TRAINING_BYTES = 16 << 20  # what the compressor reads before: 10 s at 1.5 MB/s
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]


def passages(documents: Iterable[str]) -> list[str]:
    """The documents, long ones in passages of up to 600 characters: a held-out text may be one stretch of a novel."""
    return [passage for document in documents for passage in cut(document, _PASSAGE_CHARACTERS)]


def continuations(session: Session, texts: Sequence[str], tokens: int, seed: int) -> list[dict[str, str]]:
    """The beginnings of up to three passages: what the model writes after each, and how the passage goes on."""
    found = [cut for text in _spread(texts, _TRIED * BEGINNINGS) if (cut := _beginning(text))]
    chosen = _spread(found, BEGINNINGS)
    if not chosen:
        return []
    tokenizer = session.tokenizer
    prompts = [[*tokenizer.begin, *tokenizer.encode(prompt)][: session.context_length - 1] for prompt, _ in chosen]
    written = decode(session, prompts, tokens, Sampling(temperature=0.8), seeds=[seed])
    texts = ["".join(characters(tokenizer, new)) for new in written]
    return [
        {"prompt": prompt, "text": text, "original": original}
        for (prompt, original), text in zip(chosen, texts, strict=True)
    ]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """Up to `count` of the items, evenly spread over all of them."""
    step = max(1, len(items) / count)
    return [items[int(place * step)] for place in range(min(count, len(items)))]


def _beginning(passage: str) -> tuple[str, str] | None:
    """The first words of a passage, and what follows them; None if it is hardly longer than that."""
    text = passage.strip()
    spaceless = is_spaceless(text)
    length = _PROMPT_CHARACTERS // (1 + spaceless)
    if len(text) < 2 * length:
        return None
    end = length if spaceless else max(text.rfind(" ", 0, length), length // 2)
    return text[:end], text[end : end + _FOLLOWING_CHARACTERS]


def blanks(session: Session, texts: Sequence[str]) -> list[dict[str, Any]]:
    """One word is taken out of up to six sentences; which words does the model expect there?

    Returns:
        For each the `text` with 【?】, the `word` that was there, the five likeliest `words` with the model's
        probability, and the `place` of the right one among all that were found (1 is the likeliest, 0 not found).
    """
    found = []
    for text, word in _spread(list(_questions(_spread(texts, _TRIED * BLANKS))), BLANKS):
        try:
            words = fill(session, text)
        except UserError:  # a model that has learned little finds no word
            words = []
        place = next((place for place, (candidate, _) in enumerate(words, 1) if candidate == word), 0)
        shown = [{"word": candidate, "model": probability} for candidate, probability in words[:_WORDS]]
        found.append({"text": text, "word": word, "words": shown, "place": place})
    return found


def _questions(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """A sentence of each passage with a blank for the last but one of its words, and that word."""
    for passage in texts:
        for sentence in sentences(passage):
            if words := _words(sentence):
                start, end = words[-2] if len(words) > 1 else words[-1]
                yield f"{sentence[:start]}{BLANK}{sentence[end:]}", sentence[start:end]
                break


def sentences(passage: str) -> Iterator[str]:
    """The sentences of a passage that are neither short nor long."""
    shorter = 1 + is_spaceless(passage)
    shortest, longest = (characters // shorter for characters in _SENTENCE_CHARACTERS)
    for match in _SENTENCE.finditer(passage):
        if shortest <= len(match[0]) <= longest:
            yield match[0]


def _words(sentence: str) -> list[tuple[int, int]]:
    """Where the words of a sentence that mean something begin and end, its first third left out."""
    if is_spaceless(sentence):
        parts = [m for m in japanese_words.analyser("C")(sentence) if m.part_of_speech()[0] in _CONTENT]
        found = [(m.begin(), m.end()) for m in parts]
    else:
        found = [match.span() for match in _WORD.finditer(sentence)]
    return [(start, end) for start, end in found if start >= len(sentence) / 3]


def compressor_bits_per_byte(training: Iterable[str], held_out: bytes) -> float:
    """What xz (`-9e`) needs for each byte of `held_out`, in bits, after it has read the training text.

    That is the size of both together less the size of the training text alone, of which at most 16 MiB are read.
    """
    before = _first_bytes(training, _MOST_TRAINING_BYTES)
    with ThreadPoolExecutor() as pool:  # lzma works outside Python's lock
        whole, part = pool.map(_compressed_bytes, (before + held_out, before))
    return 8 * (whole - part) / max(1, len(held_out))


def _first_bytes(texts: Iterable[str], most: int) -> bytes:
    parts, size = [], 0
    for text in texts:
        parts.append(text.encode())
        size += len(parts[-1])
        if size >= most:
            break
    return b"".join(parts)[:most]


def _compressed_bytes(data: bytes) -> int:
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=_FILTERS))


def evaluated_bytes(session: Session, batches: Iterable[Batch]) -> bytes:
    """The text whose tokens count in the batches: the very bytes that their bits per byte are divided by."""
    bytes_of = session.tokenizer.bytes_of
    return b"".join(bytes_of(token) for batch in batches for token in batch.targets[batch.weights > 0].tolist())
