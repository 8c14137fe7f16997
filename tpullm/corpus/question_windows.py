"""Finds the questions of tasks in documents, by passages of 13 words or 30 characters. C characters, W windows.

Texts are compared as `characters.folded` leaves them. A window is a passage of a question that a document must hold: 13
words (Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C), 30 characters of a script without
spaces, or a mix in these shares. One begins at each word, and at each character of such a script. A question that is
shorter than a window is one window as a whole, if it is long enough to tell.

The first `ANCHOR` characters of each window are its anchor. A document's runs of so many characters are hashed, which
are looked up among those of the anchors. Where one is found, the whole window is compared, character by character.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tpullm.corpus.characters import characters_in_blocks, code_points, folded, normal
from tpullm.corpus.language_detection import SPACELESS
from tpullm.system import storage

WORDS, CHARACTERS = 13, 30
FULL = WORDS * CHARACTERS  # of a window: a word counts CHARACTERS, a character of a script without spaces WORDS
# A question that is shorter than a window: 16 characters, or 7 words, of 32 letters.
SHORT, SHORT_LETTERS = 16 * WORDS, 32
ANCHOR = 16  # characters; a power of two
LONGEST = 256  # characters of a window, for what has no end of words
# A window of so many different texts of a task, and of such a share of them, is the task's own form.
FORM_TEXTS, FORM_SHARE = 10, 0.01
AT_A_TIME = 1 << 20  # comparisons
REPEATED = 1000  # places with an anchor, from which on they are looked at for repetition
# Odd, with well-mixed bits.
_MULTIPLIERS = np.array([0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1], np.uint32)
_FILTER_BITS = 22
_BITS = 128 >> np.arange(8, dtype=np.uint8)  # in the order of numpy's packbits


class Wording(NamedTuple):
    """The texts by which a question is known.

    Args:
        texts: what is asked. One that is shorter than a window is looked for as a whole.
        answers: the right answers, of which only whole windows are looked for.
    """

    texts: tuple[str, ...]
    answers: tuple[str, ...] = ()


class TaskQuestions(NamedTuple):
    """The questions of a task.

    Args:
        name: of the task.
        version: of its questions.
        questions: in their order.
    """

    name: str
    version: str
    questions: Sequence[Wording]


class Leak(NamedTuple):
    """A question that a document holds.

    Args:
        task: its number.
        question: its number in the task.
        share: of its windows, those that the document holds.
        passage: the first of them, folded.
    """

    task: int
    question: int
    share: float
    passage: str


@dataclass(frozen=True)
class QuestionWindows:
    """The windows of the questions of some tasks, as arrays, so that a worker reads them at once.

    Args:
        codes_C: the folded texts, one after the other, with zeros between.
        windows_W: where each window begins in `codes_C`, in the order of the anchors.
        lengths_W: of each window.
        anchors_W: the hash of each anchor, sorted.
        owners: rows of (first place of a text in `codes_C`, task, question), by place. A text of several questions has
            a row for each.
        totals: rows of (task, question, windows), one for each question; 0 windows of one that cannot be looked for.
    """

    codes_C: np.ndarray
    windows_W: np.ndarray
    lengths_W: np.ndarray
    anchors_W: np.ndarray
    owners: np.ndarray
    totals: np.ndarray

    def find(self, text: str) -> list[Leak]:
        """The questions that a text holds, by task and question."""
        document_C = folded(text)
        hashes = _character_run_hashes(document_C, ANCHOR)
        bits = hashes >> np.uint32(32 - _FILTER_BITS)
        places = np.flatnonzero(self._filter.take(bits >> np.uint32(3)) & _BITS.take(bits & np.uint32(7)))
        first, last = (self.anchors_W.searchsorted(hashes[places], side) for side in ("left", "right"))
        is_known = last > first
        if not is_known.any():
            return []
        found: set[int] = set()
        document_C = np.concatenate([document_C, np.zeros(LONGEST, np.uint32)])
        for at, windows in _places_with_windows(document_C, places[is_known], first[is_known], last[is_known]):
            found.update(windows[self._equal(document_C, at, windows)].tolist())
        return self._leaks(np.array(sorted(found), np.int64))

    @functools.cached_property
    def _filter(self) -> np.ndarray:
        """A bit for each beginning of a hash, 1 if an anchor has it: uint8 [2**_FILTER_BITS / 8]. It fits the cache."""
        found = np.zeros(1 << _FILTER_BITS, bool)
        found[self.anchors_W >> np.uint32(32 - _FILTER_BITS)] = True
        return np.packbits(found)

    def _equal(self, document_C: np.ndarray, at: np.ndarray, windows: np.ndarray) -> np.ndarray:
        """Which of the windows stand at the places of the document: indices."""
        alive, starts, lengths = np.arange(len(at)), self.windows_W[windows], self.lengths_W[windows]
        for offset in range(int(lengths.max(initial=0))):
            inside = offset < lengths[alive]
            codes = self.codes_C[starts[alive] + np.minimum(offset, lengths[alive] - 1)]
            alive = alive[(document_C[at[alive] + offset] == codes) | ~inside]
            if not len(alive):
                break
        return alive

    def _leaks(self, windows: np.ndarray) -> list[Leak]:
        """The questions of the windows that were found."""
        counts: dict[tuple[int, int], list[int]] = {}
        texts = self.owners[:, 0]
        for window in windows[np.argsort(self.windows_W[windows])].tolist():
            start = int(self.windows_W[window])
            last = np.searchsorted(texts, start, "right")
            for row in range(np.searchsorted(texts, texts[last - 1]), last):
                counts.setdefault(tuple(self.owners[row, 1:].tolist()), []).append(window)
        totals = {(task, question): count for task, question, count in self.totals.tolist()}
        leaks = []
        for key, own in sorted(counts.items()):
            start = self.windows_W[own[0]]
            passage_C = self.codes_C[start : start + self.lengths_W[own[0]]].astype("<u4")
            leaks.append(Leak(*key, min(len(own) / totals[key], 1.0), passage_C.tobytes().decode("utf-32-le")))
        return leaks

    @property
    def identity(self) -> str:
        """A hash of all that is looked for."""
        digest = hashlib.sha256()
        for field in fields(self):
            digest.update(np.ascontiguousarray(getattr(self, field.name)).tobytes())
        return digest.hexdigest()[:32]

    def save(self, path: Path) -> None:
        """Write the arrays."""
        with storage.atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})


@functools.lru_cache(maxsize=1)
def load(path: Path) -> QuestionWindows:
    """What `save` has written; read once in a process."""
    with path.open("rb") as file, np.load(file) as found:
        return QuestionWindows(**{field.name: found[field.name] for field in fields(QuestionWindows)})


def windows_of(tasks: Sequence[TaskQuestions]) -> QuestionWindows:
    """The windows of all questions of some tasks."""
    codes, windows, lengths, owners = [], [], [], []
    totals = {(number, question): 0 for number, task in enumerate(tasks) for question in range(len(task.questions))}
    place = 0
    for number, task in enumerate(tasks):
        texts: dict[tuple[str, bool], list[int]] = {}  # text, and whether it is looked for if it is short → questions
        for question, asked in enumerate(task.questions):
            of_one = [(text, True) for text in asked.texts] + [(text, False) for text in asked.answers]
            for key in dict.fromkeys(of_one):
                texts.setdefault(key, []).append(question)
        made = [_windows_of_text(text, short) for text, short in texts]
        kept = _windows_without_form(made)
        for (text_C, _, _), (starts, sizes), questions in zip(made, kept, texts.values(), strict=True):
            for question in questions if len(starts) else ():
                owners.append((place, number, question))
                totals[number, question] += len(starts)
            codes += [text_C, np.zeros(1, np.uint32)]
            windows.append(starts + place)
            lengths.append(sizes)
            place += len(text_C) + 1
    codes_C = np.concatenate([*codes, np.zeros(ANCHOR, np.uint32)])
    windows_W, lengths_W = (np.concatenate([np.zeros(0, np.int64), *parts]) for parts in (windows, lengths))
    hashes = _character_run_hashes(codes_C, ANCHOR)[windows_W]
    order = np.argsort(hashes, kind="stable")
    return QuestionWindows(
        codes_C,
        windows_W[order].astype(np.uint32),
        lengths_W[order].astype(np.uint16),
        hashes[order],
        np.array(owners, np.int64).reshape(-1, 3),
        np.array([(*key, count) for key, count in totals.items()], np.int64).reshape(-1, 3),
    )


def _windows_of_text(text: str, short: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A folded text, uint32 [C], and where its windows begin and how long they are: int64 [windows] each."""
    points = code_points(normal(text))
    is_letter = np.fromiter(map(str.isalnum, normal(text)), bool, len(points))
    before = np.concatenate([[False], is_letter[:-1]])[is_letter]
    text_C = points[is_letter]
    spaceless_C = _spaceless_characters().take(text_C, mode="clip")
    begins_C = spaceless_C | ~before | np.concatenate([[False], spaceless_C[:-1]])
    # What is complete before each character: a word counts when the next one begins.
    weights = np.where(spaceless_C, WORDS, CHARACTERS)[begins_C]
    starts = np.flatnonzero(begins_C)
    ends = np.append(starts[1:], len(text_C))
    weight = np.concatenate([[0], np.cumsum(weights)])
    letters = np.concatenate([[0], np.cumsum(np.where(spaceless_C, 2, 1))])
    has_letters = np.searchsorted(letters[np.append(0, ends)], letters[starts] + SHORT_LETTERS)
    last = np.maximum(np.searchsorted(weight, weight[:-1] + FULL), has_letters)
    whole = last < len(weight)
    lengths = ends[last[whole] - 1] - starts[whole]
    is_bounded = lengths <= LONGEST
    starts, lengths = starts[whole][is_bounded], lengths[is_bounded]
    tells = weight[-1] >= SHORT and letters[-1] >= SHORT_LETTERS and len(text_C) <= LONGEST
    if short and tells and not whole.any():
        starts, lengths = np.zeros(1, np.int64), np.array([len(text_C)])
    return text_C, starts.astype(np.int64), lengths.astype(np.int64)


def _windows_without_form(made: list[tuple[np.ndarray, ...]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The windows of each text without those that many texts of the task have: the task's own form."""
    places = ((text_C, zip(starts, lengths, strict=True)) for text_C, starts, lengths in made)
    keys = [[text_C[start : start + length].tobytes() for start, length in own] for text_C, own in places]
    counts = Counter(key for own in keys for key in set(own))
    most = max(FORM_TEXTS, FORM_SHARE * len(made))
    kept = [np.array([counts[key] < most for key in own], bool) for own in keys]
    return [(starts[keep], lengths[keep]) for (_, starts, lengths), keep in zip(made, kept, strict=True)]


def _places_with_windows(
    document_C: np.ndarray, places: np.ndarray, first: np.ndarray, last: np.ndarray
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Each place of a document with each window of its anchor, about `AT_A_TIME` at once.

    Of places that are followed by the same characters, up to the longest window, one is enough: so a text that repeats
    itself costs no more than another.

    Args:
        first: of the windows of each place.
        last: the one behind them.
    """
    if len(places) > REPEATED:
        _, kept = np.unique(_character_run_hashes(document_C, LONGEST)[places], return_index=True)
        places, first, last = places[kept], first[kept], last[kept]
    counts = last - first
    for part in np.split(np.arange(len(places)), np.flatnonzero(np.diff(np.cumsum(counts) // AT_A_TIME)) + 1):
        own = counts[part]
        offsets = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
        yield np.repeat(places[part], own), np.repeat(first[part], own) + offsets


@functools.cache
def _spaceless_characters() -> np.ndarray:
    """Which characters are of scripts without spaces between words: bool."""
    return characters_in_blocks(*SPACELESS)


def _character_run_hashes(codes_C: np.ndarray, length: int) -> np.ndarray:
    """The hash of the `length` characters from each place on, a power of two: uint32 [C - length + 1]; may be empty.

    Each pass makes runs of twice the length of two runs.
    """
    found, size = codes_C, 1
    while size < length:
        found = found[:-size] * _MULTIPLIERS[size.bit_length() % len(_MULTIPLIERS)] + found[size:]
        size *= 2
    found = (found ^ (found >> np.uint32(15))) * _MULTIPLIERS[0]
    return found ^ (found >> np.uint32(16))
