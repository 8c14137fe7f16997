"""Finds the questions of tasks in documents, by passages of 13 words or 30 characters. C characters, W windows.

Texts are compared as `characters.folded` and `old_spelling` leave them. A window is a passage of a question that a
document must hold: 13 words (Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C), 30 characters of
a script without spaces, or a mix in these shares. One begins at each word, and at each character of such a script. A
question that is shorter than a window is one window as a whole, if it is long enough to tell. One that is shorter still
is looked for with its choices: a document holds it if it holds the question and soon behind it each choice, for a list
of them has numbers or names between (`choice0`).

The first and the last `ANCHOR` characters of each window are its anchors, of a question as a whole `SHORT_ANCHOR`. A
document's runs of so many characters are hashed, which are looked up among those of the anchors. Where one is found,
the whole window is compared, character by character. One character within it may be another one, too many or missing
(Touvron et al. 2023, "Llama 2", appendix A.6, allows four tokens), but no digit: another number is another question.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tpullm.corpus.characters import characters_in_blocks, code_points, folded, normal
from tpullm.corpus.language_detection import SPACELESS
from tpullm.corpus.old_spelling import new_spelling, respelled, without_readings
from tpullm.system import storage

WORDS, CHARACTERS = 13, 30
FULL = WORDS * CHARACTERS  # of a window: a word counts CHARACTERS, a character of a script without spaces WORDS
# A question that is shorter than a window: 16 characters, or 7 words, of 32 letters.
SHORT, SHORT_LETTERS = 16 * WORDS, 32
FEWEST, SHORT_ANCHOR = 6, 6  # characters of a question that is looked for with its choices
ANCHOR = 16
MANY = 32  # windows that share an anchor (を教えてください), of which only those are looked up that have no rarer one
NEAR = 16  # characters of a window, from which on one of them may differ
LONGEST = 256  # characters of a window, for what has no end of words; also from a question to the end of its choices
# A window of so many different texts of a task, and of such a share of them, is the task's own form.
FORM_TEXTS, FORM_SHARE = 10, 0.01
AT_A_TIME, BLOCK = 1 << 16, 16  # comparisons, of so many characters
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
        choices: the answers to choose from. A text that is too short is looked for with them.
    """

    texts: tuple[str, ...]
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


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
        passage: the first of them, as the document has it, folded.
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
        windows_W: where each window begins in `codes_C`.
        lengths_W: of each window.
        short_W: which windows are questions as a whole.
        anchors_A: the hash of each anchor, sorted.
        ends_A: of each anchor, twice the number of its window, and 1 more for the anchor at its end.
        choices: rows of (window, first place in `codes_C`, length) of the choices that belong to a window.
        owners: rows of (first place of a text in `codes_C`, task, question), by place. A text of several questions has
            a row for each.
        totals: rows of (task, question, windows), one for each question; 0 windows of one that cannot be looked for.
    """

    codes_C: np.ndarray
    windows_W: np.ndarray
    lengths_W: np.ndarray
    short_W: np.ndarray
    anchors_A: np.ndarray
    ends_A: np.ndarray
    choices: np.ndarray
    owners: np.ndarray
    totals: np.ndarray

    def find(self, text: str) -> list[Leak]:
        """The questions that a text holds, by task and question."""
        if not len(self.anchors_A):
            return []
        document_C = respelled(text)
        runs = list(_run_hashes(document_C, self._anchor_sizes))
        hashes = np.concatenate(runs)
        bits = hashes >> np.uint32(32 - _FILTER_BITS)
        places = np.flatnonzero(self._filter.take(bits >> np.uint32(3)) & _BITS.take(bits & np.uint32(7)))
        first, last = (self.anchors_A.searchsorted(hashes[places], side) for side in ("left", "right"))
        if not (is_known := last > first).any():
            return []
        places = places[is_known]
        places = LONGEST + np.where(places < len(runs[0]), places, places - len(runs[0]))
        padded_C = np.zeros(len(document_C) + 2 * LONGEST, np.uint32)
        padded_C[LONGEST : LONGEST + len(document_C)] = document_C
        found: dict[int, int] = {}  # window → its first place in the document
        for at, anchors in _places_with_anchors(padded_C, places, first[is_known], last[is_known]):
            for window, place in self._held(padded_C, at, self.ends_A[anchors]):
                found.setdefault(window, max(place - LONGEST, 0))  # its first character may be missing
        return self._leaks(found, text) if found else []

    @functools.cached_property
    def _filter(self) -> np.ndarray:
        """A bit for each beginning of a hash, 1 if an anchor has it: uint8 [2**_FILTER_BITS / 8]. It fits the cache."""
        found = np.zeros(1 << _FILTER_BITS, bool)
        found[self.anchors_A >> np.uint32(32 - _FILTER_BITS)] = True
        return np.packbits(found)

    @functools.cached_property
    def _anchor_sizes(self) -> list[int]:
        return sorted({SHORT_ANCHOR if short else ANCHOR for short in np.unique(self.short_W)})

    @functools.cached_property
    def _choices(self) -> dict[int, list[str]]:
        """The choices of each window that has some."""
        found: dict[int, list[str]] = {}
        for window, start, length in self.choices.tolist():
            found.setdefault(window, []).append(_as_text(self.codes_C[start : start + length]))
        return found

    def _held(self, document_C: np.ndarray, at: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, int]]:
        """The windows that the document holds, whole or but for one character, of those whose anchor it has; and where.

        Args:
            document_C: with zeros around.
            at: where the anchors begin in it.
            ends: of each anchor its window and its end, as `ends_A` has them.
        """
        windows, is_end = ends >> 1, ends & 1
        starts, lengths = self.windows_W[windows].astype(np.int64), self.lengths_W[windows].astype(np.int64)
        sizes = np.where(self.short_W[windows], SHORT_ANCHOR, ANCHOR)
        begins, steps = at - is_end * (lengths - sizes), 1 - 2 * is_end
        # The end of the anchor, and the other one; `steps` leads from the first to the second.
        near, near_code = begins + is_end * (lengths - 1), starts + is_end * (lengths - 1)
        far_code = starts + (1 - is_end) * (lengths - 1)
        same = _characters_in_common(document_C, near, self.codes_C, near_code, steps, lengths)
        held = same == lengths
        maybe = np.flatnonzero(~held & (lengths >= NEAR))
        differing = self.codes_C[(near_code + steps * same)[maybe]], document_C[(near + steps * same)[maybe]]
        maybe = maybe[~np.any([(ord("0") <= codes) & (codes <= ord("9")) for codes in differing], axis=0)]
        more, maybe = np.repeat([0, 1, -1], len(maybe)), np.tile(maybe, 3)  # characters of the document
        missing = lengths[maybe] + np.maximum(more, 0) - 1 - same[maybe]
        far = near[maybe] + steps[maybe] * (lengths[maybe] - 1 + more)
        others = _characters_in_common(document_C, far, self.codes_C, far_code[maybe], -steps[maybe], missing)
        # Of a passage the last character has to be the same, or 29 characters would do for 30.
        held[maybe[(others == missing) & ((missing > 0) | self.short_W[windows[maybe]])]] = True
        for place, window in zip(begins[held].tolist(), windows[held].tolist(), strict=True):
            behind = document_C[place : place + LONGEST] if window in self._choices else None
            if behind is None or all(map(_as_text(behind).__contains__, self._choices[window])):
                yield window, place

    def _leaks(self, found: dict[int, int], text: str) -> list[Leak]:
        """The questions of the windows that were found.

        Args:
            found: the place of each window in the document.
            text: the document.
        """
        written_L = folded(without_readings(text))
        places_C = np.flatnonzero(new_spelling(written_L)[1])
        counts: dict[tuple[int, int], list[int]] = {}
        texts = self.owners[:, 0]
        for window in sorted(found):
            start = int(self.windows_W[window])
            last = np.searchsorted(texts, start, "right")
            for row in range(np.searchsorted(texts, texts[last - 1]), last):
                counts.setdefault(tuple(self.owners[row, 1:].tolist()), []).append(window)
        totals = {(task, question): count for task, question, count in self.totals.tolist()}
        leaks = []
        for key, own in sorted(counts.items()):
            held = places_C[found[own[0]] :][: self.lengths_W[own[0]]]
            passage = _as_text(written_L[held[0] : held[-1] + 1])
            leaks.append(Leak(*key, min(len(own) / totals[key], 1.0), passage))
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
    codes, windows, lengths, shorts, choices, owners = [], [], [], [], [], []
    totals = {(number, question): 0 for number, task in enumerate(tasks) for question in range(len(task.questions))}
    place = count = 0
    for number, task in enumerate(tasks):
        # Text, its choices, and whether it is looked for if it is short → questions.
        texts: dict[tuple[str, tuple[str, ...], bool], list[int]] = {}
        most = max(FORM_TEXTS, FORM_SHARE * len(task.questions))
        labels = {one for one, own in Counter(asked.choices for asked in task.questions).items() if own >= most}
        for question, asked in enumerate(task.questions):
            own = () if asked.choices in labels else asked.choices  # yes, no: they do not tell questions apart
            of_one = [(text, own, True) for text in asked.texts] + [(text, (), False) for text in asked.answers]
            for key in dict.fromkeys(of_one):
                texts.setdefault(key, []).append(question)
        made = _without_form([_windows_of_text(*key) for key in texts])
        for text, questions in zip(made, texts.values(), strict=True):
            for question in questions if len(text.starts) else ():
                owners.append((place, number, question))
                totals[number, question] += len(text.starts)
            windows.append(text.starts + place)
            lengths.append(text.lengths)
            shorts.append(np.full(len(text.starts), text.is_short))
            for own_C in (text.codes_C, *text.choices):
                if own_C is not text.codes_C:
                    choices.append((count, place, len(own_C)))
                codes += [own_C, np.zeros(1, np.uint32)]
                place += len(own_C) + 1
            count += len(text.starts)
    codes_C = np.concatenate([*codes, np.zeros(ANCHOR, np.uint32)])
    windows_W, lengths_W = (np.concatenate([np.zeros(0, np.int64), *parts]) for parts in (windows, lengths))
    short_W = np.concatenate([np.zeros(0, bool), *shorts])
    ends = np.arange(2 * len(windows_W))
    sizes = np.where(short_W, SHORT_ANCHOR, ANCHOR)[ends >> 1]
    at = windows_W[ends >> 1] + (ends & 1) * (lengths_W[ends >> 1] - sizes)
    short, long = (hashes.take(at, mode="clip") for hashes in _run_hashes(codes_C, [SHORT_ANCHOR, ANCHOR]))
    hashes = np.where(sizes == ANCHOR, long, short)
    _, which, shared = np.unique(hashes, return_inverse=True, return_counts=True)
    shared_W2 = shared[which].reshape(-1, 2)  # of the anchors at both ends of each window
    kept = np.flatnonzero((shared_W2 <= MANY) | (shared_W2 == shared_W2.min(axis=1, keepdims=True)))
    order = kept[np.argsort(hashes[kept], kind="stable")]
    return QuestionWindows(
        codes_C,
        windows_W.astype(np.uint32),
        lengths_W.astype(np.uint16),
        short_W,
        hashes[order],
        ends[order],
        np.array(choices, np.int64).reshape(-1, 3),
        np.array(owners, np.int64).reshape(-1, 3),
        np.array([(*key, count) for key, count in totals.items()], np.int64).reshape(-1, 3),
    )


class _Windows(NamedTuple):
    """A folded text, uint32 [C], where its windows begin and how long they are, int64 [windows] each.

    Args:
        is_short: the text is one window as a whole.
        choices: the folded choices, if it is looked for with them.
    """

    codes_C: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    is_short: bool = False
    choices: Sequence[np.ndarray] = ()


def _windows_of_text(text: str, choices: Sequence[str], short: bool) -> _Windows:
    codes_C, bounds, weight, letters = _units(text)
    has_letters = np.searchsorted(letters, letters[:-1] + SHORT_LETTERS)
    last = np.maximum(np.searchsorted(weight, weight[:-1] + FULL), has_letters)
    whole = last < len(weight)
    starts, lengths = bounds[:-1][whole], bounds[last[whole]] - bounds[:-1][whole]
    is_bounded = (ANCHOR <= lengths) & (lengths <= LONGEST)
    if whole.any() or not short or not FEWEST <= len(codes_C) <= LONGEST:
        return _Windows(codes_C, starts[is_bounded], lengths[is_bounded])
    as_whole = _Windows(codes_C, np.zeros(1, np.int64), np.array([len(codes_C)]), True)
    if weight[-1] >= SHORT and letters[-1] >= SHORT_LETTERS:
        return as_whole
    *_, weight, letters = _units(" ".join((text, *choices)))
    if choices and weight[-1] >= SHORT and letters[-1] >= SHORT_LETTERS:
        own = (_units(choice)[0] for choice in choices)
        return as_whole._replace(choices=[choice_C for choice_C in own if len(choice_C)])
    return _Windows(codes_C, starts, lengths)


def _units(text: str) -> tuple[np.ndarray, ...]:
    """A folded text, uint32 [C]; where each of its words, and of its characters of scripts without spaces, begins, and
    the end; and the weight and the letters before each of them, and of all: int64 [units + 1] each."""
    text = normal(without_readings(text))
    points = code_points(text)
    is_letter = np.fromiter(map(str.isalnum, text), bool, len(points))
    before = np.concatenate([[False], is_letter[:-1]])[is_letter]
    spaceless_L = _spaceless_characters().take(points[is_letter], mode="clip")
    begins_L = spaceless_L | ~before | np.concatenate([[False], spaceless_L])[:-1]
    bounds = np.append(np.flatnonzero(begins_L), len(begins_L))
    weight = np.concatenate([[0], np.cumsum(np.where(spaceless_L, WORDS, CHARACTERS)[begins_L])])
    letters = np.concatenate([[0], np.cumsum(np.where(spaceless_L, 2, 1))])[bounds]
    # 30 characters are as many in each spelling, though some of them are left out.
    codes_C, is_left_L = new_spelling(points[is_letter])
    return codes_C, np.concatenate([[0], np.cumsum(is_left_L)])[bounds], weight, letters


def _without_form(made: list[_Windows]) -> list[_Windows]:
    """Each text without the windows that many texts of the task have: the task's own form."""
    places = ((text.codes_C, zip(text.starts, text.lengths, strict=True)) for text in made)
    keys = [[codes_C[start : start + length].tobytes() for start, length in own] for codes_C, own in places]
    counts = Counter(key for text, own in zip(made, keys, strict=True) if not text.choices for key in set(own))
    most = max(FORM_TEXTS, FORM_SHARE * len(made))
    kept = [np.array([counts[key] < most for key in own], bool) for own in keys]
    return [
        text if text.choices else text._replace(starts=text.starts[keep], lengths=text.lengths[keep])
        for text, keep in zip(made, kept, strict=True)
    ]


def _places_with_anchors(
    document_C: np.ndarray, places: np.ndarray, first: np.ndarray, last: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each place of a document with each anchor that it has, about `AT_A_TIME` at once.

    Of places with the same characters around, as far as the longest window, one is enough: so a text that repeats
    itself costs no more than another.

    Args:
        document_C: with `LONGEST` zeros on both sides.
        first: of the anchors of each place.
        last: the one behind them.
    """
    if len(places) > REPEATED:
        (around,) = _run_hashes(document_C, [2 * LONGEST])
        _, kept = np.unique(around[places - LONGEST], return_index=True)
        places, first, last = places[kept], first[kept], last[kept]
    counts = last - first
    for part in np.split(np.arange(len(places)), np.flatnonzero(np.diff(np.cumsum(counts) // AT_A_TIME)) + 1):
        own = counts[part]
        offsets = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
        yield np.repeat(places[part], own), np.repeat(first[part], own) + offsets


def _characters_in_common(
    a_C: np.ndarray, at_a: np.ndarray, b_C: np.ndarray, at_b: np.ndarray, steps: np.ndarray, most: np.ndarray
) -> np.ndarray:
    """How many characters are the same from two places on, forwards (a step of 1) or backwards (-1), at most `most`."""
    same, alive = np.zeros(len(at_a), np.int64), np.arange(len(at_a))
    while len(alive):
        offsets = same[alive, None] + np.arange(BLOCK)
        moved = steps[alive, None] * offsets
        is_same = a_C.take(at_a[alive, None] + moved, mode="clip") == b_C.take(at_b[alive, None] + moved, mode="clip")
        is_same &= offsets < most[alive, None]
        run = np.where(is_same.all(axis=1), BLOCK, is_same.argmin(axis=1))
        same[alive] += run
        alive = alive[run == BLOCK]
    return same


@functools.cache
def _spaceless_characters() -> np.ndarray:
    """Which characters are of scripts without spaces between words: bool."""
    return characters_in_blocks(*SPACELESS)


def _run_hashes(codes_C: np.ndarray, lengths: Sequence[int]) -> Iterator[np.ndarray]:
    """Of each length, in their order, the hash of so many characters from each place on: uint32 [C - length + 1].

    Each pass makes runs of twice the length of two runs; a length between is one of two runs that overlap.
    """
    runs, size = codes_C, 1
    for length in lengths:
        while 2 * size <= length:
            runs = runs[:-size] * _MULTIPLIERS[size.bit_length() % len(_MULTIPLIERS)] + runs[size:]
            size *= 2
        rest = length - size
        found = runs[:-rest] * _MULTIPLIERS[0] + runs[rest:] if rest else runs
        yield found * _MULTIPLIERS[1]  # so that the first bits depend on all characters


def _as_text(codes_C: np.ndarray) -> str:
    return codes_C.astype("<u4").tobytes().decode("utf-32-le")
