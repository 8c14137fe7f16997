"""What a model learned from the user's own text: continuations, words in blanks, and a compressor to compare with.

Everything is measured on the held-out part of the text.
"""

import lzma
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tpullm.corpus import document_files
from tpullm.corpus.characters import cut
from tpullm.corpus.language_detection import is_spaceless
from tpullm.corpus.sources import YOURS
from tpullm.data.batch import Batch
from tpullm.data.stream import EvaluationBatches, pretraining_stream
from tpullm.data.token_store import TokenStore
from tpullm.engine.generation import sample_texts
from tpullm.engine.session import Session
from tpullm.evaluation.blank import fill_blank
from tpullm.recipe.schema import Recipe
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError
from tpullm.tokenizer import japanese_words

BLANK = "【?】"
CONTINUATIONS = 3
BLANKS = 6
_TRIED = 4  # passages for each example that is shown: some passages hold no sentence
_PROMPT_CHARACTERS = 40  # in text with spaces between words; half as many in text without
_SENTENCE = re.compile(r"[^\s。．！？.!?][^。．！？.!?\n]*[。．！？.!?]")
_SENTENCE_CHARACTERS = (30, 120)  # halved in text without spaces
_WORD = re.compile(r"[^\W\d_]{3,}")
_CONTENT = ("名詞", "動詞", "形容詞", "形状詞", "副詞")
_MOST_TRAINING_BYTES = 16 << 20  # that the compressor reads first: 10 s at 1.5 MB/s
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]


def measure_own_text(recipe: Recipe, run: Path, session: Session) -> dict[str, Any]:
    """What the model learned from the user's own text, and the bits a byte of a compressor on it."""

    def read(use: str) -> Iterator[str]:
        return (record["text"] for record in document_files.read(run / "documents", YOURS, use))

    def compressor() -> dict[str, Any]:
        store, config = TokenStore(run / "tokens" / YOURS / "held_out"), recipe.evaluate
        batches = EvaluationBatches(store, config.batch_size, recipe.pretrain.sequence_length, config.rows)
        evaluated = evaluated_bytes(session, batches)
        bits = compressor_bits_per_byte(read(document_files.TRAIN), evaluated)
        return {"name": "xz -9e", "bits_per_byte": bits, "bytes": len(evaluated)}

    texts = cut_into_passages(read(document_files.HELD_OUT))
    times_read = pretraining_stream(recipe, run).epoch_at(recipe.pretrain.steps).get(YOURS, 0.0)
    return {
        "times_read": round(times_read, 2),
        "sentence": next((sentence for text in texts for sentence in sentences_of_passage(text)), ""),
        "continuations": continue_passages(session, texts, recipe.evaluate.sample_tokens, recipe.seed),
        "blanks": fill_own_blanks(session, texts),
        "compressor": hosts.broadcast("the compressor", compressor),
    }


def cut_into_passages(documents: Iterable[str]) -> list[str]:
    """The documents, cut into passages of up to 600 characters: a held-out text can be a long part of one novel."""
    return [passage for document in documents for passage in cut(document, 600)]


def continue_passages(session: Session, texts: Sequence[str], tokens: int, seed: int) -> list[dict[str, str]]:
    """The model's continuations of up to three passages, beside the original ones."""
    found = [cut for text in _spread(texts, _TRIED * CONTINUATIONS) if (cut := _cut_passage(text))]
    chosen = _spread(found, CONTINUATIONS)
    written = sample_texts(session, [prompt for prompt, _ in chosen], tokens, seed)
    beside = zip(chosen, written, strict=True)
    return [{"prompt": prompt, "text": text, "original": original} for (prompt, original), text in beside]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """Up to `count` of the items, evenly spread over all of them."""
    step = max(1, len(items) / count)
    return [items[int(place * step)] for place in range(min(count, len(items)))]


def _cut_passage(passage: str) -> tuple[str, str] | None:
    """A passage as a prompt and its original continuation; None if the passage is too short."""
    text = passage.strip()
    spaceless = is_spaceless(text)
    length = _PROMPT_CHARACTERS // (1 + spaceless)
    if len(text) < 2 * length:
        return None
    end = length if spaceless else max(text.rfind(" ", 0, length), length // 2)
    return text[:end], text[end : end + 120]  # as much as is shown beside the continuation


def fill_own_blanks(session: Session, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The words that the model expects in the blanks of up to six sentences.

    Returns:
        For each sentence the `text` with 【?】, the `word` that was there, the five likeliest `words` with the model's
        probabilities, and the `place` of the right word among all words found (1 is the likeliest, 0: not found).
    """
    found = []
    for text, word in _spread(list(blanked_sentences(_spread(texts, _TRIED * BLANKS))), BLANKS):
        try:
            words = fill_blank(session, text)
        except UserError:  # a model that has learned little finds no word
            words = []
        place = next((place for place, (candidate, _) in enumerate(words, 1) if candidate == word), 0)
        shown = [{"word": candidate, "model": probability} for candidate, probability in words[:5]]
        found.append({"text": text, "word": word, "words": shown, "place": place})
    return found


def blanked_sentences(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """A sentence of each passage with a blank for its second last content word, and that word."""
    for passage in texts:
        for sentence in sentences_of_passage(passage):
            if words := _content_words(sentence):
                start, end = words[-2] if len(words) > 1 else words[-1]
                yield f"{sentence[:start]}{BLANK}{sentence[end:]}", sentence[start:end]
                break


def sentences_of_passage(passage: str) -> Iterator[str]:
    """The sentences of a passage that are neither too short nor too long."""
    shorter = 1 + is_spaceless(passage)
    shortest, longest = (characters // shorter for characters in _SENTENCE_CHARACTERS)
    for match in _SENTENCE.finditer(passage):
        if shortest <= len(match[0]) <= longest:
            yield match[0]


def _content_words(sentence: str) -> list[tuple[int, int]]:
    """Start and end of each content word of a sentence, without the first third of the sentence."""
    if is_spaceless(sentence):
        parts = [m for m in japanese_words.analyser("C")(sentence) if m.part_of_speech()[0] in _CONTENT]
        found = [(m.begin(), m.end()) for m in parts]
    else:
        found = [match.span() for match in _WORD.finditer(sentence)]
    return [(start, end) for start, end in found if start >= len(sentence) / 3]


def compressor_bits_per_byte(training: Iterable[str], held_out: bytes) -> float:
    """The bits that xz (`-9e`) needs for each byte of `held_out` after it has read the training text.

    This is the size of both texts together minus the size of the training text, of which at most 16 MiB are read.
    """
    parts, size = [], 0
    for text in training:
        parts.append(text.encode())
        size += len(parts[-1])
        if size >= _MOST_TRAINING_BYTES:
            break
    before = b"".join(parts)[:_MOST_TRAINING_BYTES]
    compress = partial(lzma.compress, format=lzma.FORMAT_RAW, filters=_FILTERS)
    with ThreadPoolExecutor() as pool:  # lzma releases the GIL
        whole, part = map(len, pool.map(compress, (before + held_out, before)))
    return 8 * (whole - part) / max(1, len(held_out))


def evaluated_bytes(session: Session, batches: Iterable[Batch]) -> bytes:
    """The text of the tokens that count in the batches: the bytes by which their bits per byte are divided."""
    bytes_of = session.tokenizer.bytes_of
    return b"".join(bytes_of(token) for batch in batches for token in batch.targets[batch.weights > 0].tolist())
