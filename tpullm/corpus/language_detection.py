"""The language of a text, as py3langid finds it, and whether its script has spaces between words.

py3langid is naive Bayes over n-grams of bytes. Names, options and code are in Latin letters in every language, and
they outweigh the prose of a manual. So a text with enough letters of other scripts is judged by those alone, and else
by its Latin ones. Letters are counted in pieces of the whole text; the model reads the beginning and the middle of
these.
"""

import functools
import math
import re
import unicodedata
from collections.abc import Iterator
from importlib import resources
from typing import NamedTuple

import numpy as np
import yaml

from tpullm.corpus.characters import characters_in_blocks, characters_passing, code_points
from tpullm.system.errors import UserError

_TABLE = yaml.safe_load(resources.files(__package__).joinpath("languages.yaml").read_text(encoding="utf-8"))
# The languages that py3langid knows, by their letters: Latin ones, others. Serbian and Uzbek have both.
WRITTEN = tuple(frozenset(_TABLE[letters].split()) for letters in ("latin", "other"))
NO_LANGUAGE = "zxx"  # of py3langid: numbers, names, markup
ALIKE = tuple(tuple(group.split()) for group in _TABLE["alike"])  # a text in one of them passes for each
TOGETHER = {language: group for group in ALIKE for language in group}
KNOWN = frozenset(TOGETHER).union(*WRITTEN)
MISTAKEN = _TABLE["mistaken"]  # what people write instead

# Blocks of Unicode: first and last code point.
LATIN = ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x2AF), (0x300, 0x36F), (0x1E00, 0x1EFF), (0x2C60, 0x2C7F))
LATIN += ((0xA720, 0xA7FF), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A))
HANGUL = ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7A3))
KANA_AND_HAN = ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F))
KANA_AND_HAN += ((0x20000, 0x323AF),)
THAI_TO_KHMER = ((0xE00, 0xFFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x19E0, 0x19FF), (0xA9E0, 0xA9FF))
THAI_TO_KHMER += ((0xAA60, 0xAA7F),)
SPACELESS = (*KANA_AND_HAN, *THAI_TO_KHMER)
# Kinds of characters, and how many letters each counts: a syllable or an ideograph counts as three.
_WEIGHTS = np.array([0, 1, 1, 3, 3, 1])
_NONE, _LATIN, _OTHER, _HANGUL, _KANA_AND_HAN, _THAI_TO_KHMER = range(6)

LONGEST = 6  # bytes of an n-gram
PIECES, PIECE_CHARACTERS = (
    16,
    1000,
)  # of a long text: a manual of 200,000 characters has chapters that are not translated
# Characters of the beginning, and as many of the middle, for the model: more if the first look finds another language.
LOOKS = (250, 1000)
LEAST_SPACELESS = 0.5  # of the letters
LEAST_LATIN, LEAST_OTHER = 0.5, 0.25  # of the letters, for a language that is written in them
SURELY = 10.0  # times as likely
LEAST_LIKELY = 0.1  # of a guess
KANA = re.compile("[\u3041-\u30ff]")
LEAST_KANA = 0.1  # of the characters of a look


def check(language: str, where: str) -> None:
    """Refuse a language that cannot be detected; `UserError` names the nearest that can."""
    if language not in KNOWN:
        meant = f"did you mean {nearest(language)}?" if nearest(language) else "leave it out or take another:"
        raise UserError(f"{where}: {language} cannot be detected; {meant} docs/en/your-text.md lists what can")


def nearest(language: str) -> str:
    """The known language that is meant by `en_US`, `jp`, `zho`, `German`; "" if none is near."""
    first = language.lower().replace("_", "-").partition("-")[0]
    return first if first in KNOWN else MISTAKEN.get(first, "")


def is_spaceless(text: str) -> bool:
    """Whether `text` is mostly in scripts without spaces between words (Japanese, Chinese, Thai, Khmer)."""
    if text.isascii():
        return False
    _, letters = _characters(_sample(text))
    return bool(letters[_KANA_AND_HAN:].sum() >= LEAST_SPACELESS * (letters.sum() or 1))


def is_language(text: str, language: str) -> bool:
    """Whether `text` can be in `language` or in one that is written alike; no if another is `SURELY` more likely.

    A text without sentences (numbers, names) can be in any language of its letters. `language` is one of `KNOWN`.
    """
    alike = TOGETHER.get(language, (language,))
    return any(
        _can_be(likely, alike)
        for written, prose in zip(WRITTEN, _prose(text), strict=True)
        if prose and not written.isdisjoint(alike)
        for likely in _looks(prose)
    )


def _can_be(likely: dict[str, float], alike: tuple[str, ...]) -> bool:
    own = math.fsum(likely.get(name, 0.0) for name in (NO_LANGUAGE, *alike))
    return SURELY * own >= max(likely.values())


def guess(text: str) -> str:
    """The language of a text whose source names no language: one of `KNOWN`, or `und` (undetermined, ISO 639-2)."""
    latin, other = _prose(text)
    likely = next(_looks(other or latin))
    found = max(likely, key=likely.get)
    return found if found in WRITTEN[bool(other)] and likely[found] >= LEAST_LIKELY else "und"


def _prose(text: str) -> tuple[str, str]:
    """What `text` says in Latin letters and what it says in others, "" if it has too few; of all looked at."""
    sample = _sample(text)
    if sample.isascii():
        return (sample if any(map(str.isalpha, sample)) else ""), ""
    kinds, letters = _characters(sample)
    whole = letters.sum() or 1
    return (
        _without(sample, kinds > _LATIN) if letters[_LATIN] >= LEAST_LATIN * whole else "",
        _without(sample, kinds == _LATIN) if letters[_OTHER:].sum() >= LEAST_OTHER * whole else "",
    )


def _without(text: str, left_out: np.ndarray) -> str:
    """`text` with a space for each run of characters that are left out, and of white space."""
    if not left_out.any():
        return text
    points = np.where(left_out, np.uint32(ord(" ")), code_points(text))
    return " ".join(points.tobytes().decode("utf-32-le", "surrogatepass").split())


def _characters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The kind of each character of `text`, and how many letters it has of each kind."""
    kinds = _kinds().take(code_points(text), mode="clip")
    return kinds, np.bincount(kinds, minlength=len(_WEIGHTS)) * _WEIGHTS


@functools.cache
def _kinds() -> np.ndarray:
    """The kind of each code point: uint8 [characters.END]."""
    in_words = characters_passing(lambda character: unicodedata.category(character)[0] in "LM")  # M: vowel signs
    kinds = np.where(in_words, _OTHER, _NONE).astype(np.uint8)
    blocks = {_LATIN: LATIN, _HANGUL: HANGUL, _KANA_AND_HAN: KANA_AND_HAN, _THAI_TO_KHMER: THAI_TO_KHMER}
    for kind, own in blocks.items():
        kinds[characters_in_blocks(*own)] = kind
    return kinds


def _sample(text: str) -> str:
    """All of a text, or of a longer one pieces at even distances, its first and its last among them."""
    if len(text) <= PIECES * PIECE_CHARACTERS:
        return text
    starts = ((len(text) - PIECE_CHARACTERS) * place // (PIECES - 1) for place in range(PIECES))
    return "\n".join(text[start : start + PIECE_CHARACTERS] for start in starts)


def _beginning_and_middle(text: str, characters: int) -> str:
    """`characters` of the beginning and as many of the middle; all of a short text."""
    if len(text) <= 2 * characters:
        return text
    middle = len(text) // 2
    return f"{text[:characters]}\n{text[middle : middle + characters]}"


def _looks(prose: str) -> Iterator[dict[str, float]]:
    """How likely each language is, at each longer look. Kana are Japanese without a model: 20 us in place of 60."""
    for characters in LOOKS:
        look = _beginning_and_middle(prose, characters)
        if len(KANA.findall(look)) >= LEAST_KANA * max(len(look), 1):
            yield {"ja": 1.0}
            return
        yield likelihoods(look)
        if len(look) == len(prose):
            return


def likelihoods(text: str) -> dict[str, float]:
    """How likely each language is: what py3langid's `rank` says with `norm_probs`, in a third of its time.

    Sums are float64. py3langid's are float32, in an order that the kernels of a processor decide, so a text in a
    million would have another language on another machine.
    """
    model = _model()
    text = unicodedata.normalize("NFC", text.lower() if text.isupper() else text)
    content = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    # The state of the automaton is the longest end of what was read that begins an n-gram, so it depends on no more
    # bytes than the longest n-gram has. All places read that many at once: a third of the time of a loop over bytes.
    states = np.zeros(len(content), np.int64)
    for back in range(min(LONGEST, len(content)) - 1, -1, -1):
        states[back:] = model.moves[model.rows[states[back:]] + content[: len(content) - back]]
    found = model.n_grams[states]
    seen, counts = np.unique(found[found >= 0], return_counts=True)
    scores = np.log1p(counts) @ model.log_probabilities.take(seen, axis=0).astype(np.float64) + model.priors
    if not len(seen):
        scores[:] = 0.0
    shares = np.exp((scores - scores.max()) / math.sqrt(len(content) or 1))
    return dict(zip(model.languages, np.bincount(model.language_of_class, shares / shares.sum()).tolist(), strict=True))


class Model(NamedTuple):
    """py3langid's model.

    Args:
        languages: the names.
        language_of_class: the language of each class, int64 [classes]. One in two scripts has two classes.
        log_probabilities: of each n-gram in each class, float32 [n-grams, classes].
        priors: log-probabilities of the classes, float64 [classes].
        moves: the next state of the automaton that finds n-grams, flat: one row of 256 for some states together.
        rows: where the row of each state begins in `moves`: int32 [states].
        n_grams: the n-gram that ends in each state, -1 for none: int32 [states].
    """

    languages: list[str]
    language_of_class: np.ndarray
    log_probabilities: np.ndarray
    priors: np.ndarray
    moves: np.ndarray
    rows: np.ndarray
    n_grams: np.ndarray


@functools.cache
def _model() -> Model:
    """The model, read when it is first needed: in 0.5 s of a core, 105 MiB."""
    from py3langid import langid, modelio

    log_probabilities, priors, classes, moves, rows, n_grams = modelio.load_model(langid.MODEL_DIR / langid.MODEL_FILE)
    languages = list(dict.fromkeys(classes))
    return Model(
        languages,
        np.array([languages.index(language) for language in classes]),
        log_probabilities.astype(np.float32),  # numpy multiplies float16 in ten times the time
        priors.astype(np.float64),
        np.asarray(moves),
        np.array(rows, np.int32) << 8,
        np.array(n_grams, np.int32),
    )
