"""The language of a text: the script decides which languages are possible, and a model decides among them.

The model is that of py3langid, naive Bayes over n-grams of bytes. The arithmetic is ours, because a text has to have
the same language on every machine. py3langid sums in float32, in an order that the kernels of a processor decide: its
probabilities differ in the last digits between four of OpenBLAS's kernels. Here every term is an integer below 2**26,
so float64 sums thousands of them exactly, in any order. Only additions, multiplications, divisions and a root follow,
which IEEE 754 defines to the last bit; `exp` is not one of them. Of 4,746 decisions on 1,582 texts none differs from
py3langid's own, and they take half of its time.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np
import yaml

from tpullm.corpus.characters import END, characters_in_blocks, code_points
from tpullm.system.errors import UserError

# Log-probabilities of the model are float16 between -15 and -2.7, all of them multiples of 1/512. What a count weighs,
# log(1 + count), is rounded to a multiple of 1/1024.
LONGEST = 6  # bytes of an n-gram
PER_NAT, PER_WEIGHT = 512, 1024
WEIGHTS = np.array([round(PER_WEIGHT * math.log1p(count)) for count in range(4096)], np.float64)

_TABLE = yaml.safe_load(resources.files(__package__).joinpath("scripts.yaml").read_text(encoding="utf-8"))
SCRIPTS = {script: tuple(map(tuple, row["blocks"])) for script, row in _TABLE["scripts"].items()}
LANGUAGES = {script: tuple(row["languages"].split()) for script, row in _TABLE["scripts"].items()}
SPACELESS = ("kana", "han", "thai", "lao", "tibetan", "burmese", "khmer")
DENSE = ("kana", "han", "hangul")
DENSITY = 3  # a syllable or an ideograph counts as three letters
_DENSITIES = np.array([DENSITY if name in DENSE else 1 for name in SCRIPTS])
NO_LANGUAGE = "zxx"  # of the model: numbers, names, markup
ALIKE = tuple(tuple(group.split()) for group in _TABLE["alike"])  # a text in one of them passes for each
TOGETHER = {language: group for group in ALIKE for language in group}
KNOWN = frozenset(TOGETHER).union(*LANGUAGES.values()) - {NO_LANGUAGE}
MISTAKEN = _TABLE["mistaken"]  # what people write instead
# Characters of the beginning, and as many of the middle: for the shares of the scripts, and for the model. A second and
# a third look follow where the one before was not sure. Of 1,410 texts of 500 characters and more in languages of which
# the script says too little, the first look was sure of 92 %, and each time right.
SCRIPT_CHARACTERS = 2000
LOOKS = (60, 250, 1000)
SURE = 0.9
LEAST_SHARE = 0.5
LEAST_BESIDE_LATIN = 0.3  # of a script whose letters count once: code, names and addresses are in Latin
LEAST_KANA = 0.05  # a Chinese text has none, a Japanese one about half
SURELY = 10.0  # times as likely
LEAST_LIKELY = 0.3  # of a guess


def check(language: str, where: str) -> None:
    """Refuse a language that cannot be detected; `UserError` names the nearest that can."""
    if language not in KNOWN:
        meant = f"did you mean {nearest(language)}?" if nearest(language) else "leave it out or take another:"
        raise UserError(f"{where}: {language} cannot be detected; {meant} docs/en/your-text.md lists what can")


def nearest(language: str) -> str:
    """The known language that is meant by `en_US`, `jp`, `zho`, `German`; "" if none is near."""
    first = language.lower().replace("_", "-").partition("-")[0]
    return first if first in KNOWN else MISTAKEN.get(first, "")


@cache
def _script_numbers() -> np.ndarray:
    """The number of the script of each code point, 1 for the first of `SCRIPTS`, 0 for none: uint8 [code points]."""
    numbers = np.zeros(END, np.uint8)
    for number, blocks in enumerate(SCRIPTS.values(), 1):
        numbers[characters_in_blocks(*blocks)] = number
    return numbers


def script_shares(text: str) -> dict[str, float]:
    """Share of each script in the letters at the beginning and in the middle, weighted by `DENSITY`; 0 without any."""
    sample = _beginning_and_middle(text, SCRIPT_CHARACTERS)
    if sample.isascii():
        return dict.fromkeys(SCRIPTS, 0.0) | {"latin": float(any(map(str.isalpha, sample)))}
    numbers = np.take(_script_numbers(), code_points(sample), mode="clip")
    counts = np.bincount(numbers, minlength=len(SCRIPTS) + 1)[1:] * _DENSITIES
    return dict(zip(SCRIPTS, (counts / (int(counts.sum()) or 1)).tolist(), strict=True))


def _beginning_and_middle(text: str, characters: int) -> str:
    """`characters` of the beginning and as many of the middle; all of a short text."""
    if len(text) <= 2 * characters:
        return text
    middle = len(text) // 2
    return f"{text[:characters]}\n{text[middle : middle + characters]}"


def is_spaceless(text: str) -> bool:
    """Whether `text` is mostly in scripts without spaces between words (Japanese, Chinese, Thai, Khmer)."""
    if text.isascii():
        return False
    shares = script_shares(text)
    return sum(shares[script] for script in SPACELESS) >= LEAST_SHARE


def is_language(text: str, language: str) -> bool:
    """Whether `text` can be in `language` or in one that is written alike; no if another is `SURELY` more likely.

    A text without sentences (numbers, names) can be in any language of its script. `language` is one of `KNOWN`.
    """
    shares = script_shares(text)
    return any(
        _is_written_in(script, shares)
        and not set(languages).isdisjoint(TOGETHER.get(language, (language,)))
        and _can_be_language(text, language, languages)
        for script, languages in LANGUAGES.items()
    )


def _can_be_language(text: str, language: str, languages: tuple[str, ...]) -> bool:
    """Whether `text` can be in `language`, and not rather in another of `languages`."""
    own, likely = 0.0, {}
    for likely in _likelihoods_by_look(text, languages):
        own = _likelihood_of_alike_languages(likely, language) + likely.get(NO_LANGUAGE, 0.0)
        if own >= SURE:
            return True
    return SURELY * own >= max(likely.values())


def guess(text: str) -> str:
    """The language of a text whose source names no language: one of `KNOWN`, or `und` (undetermined, ISO 639-2)."""
    shares = script_shares(text)
    script = max((name for name in SCRIPTS if _is_written_in(name, shares)), key=shares.get, default="")
    found, share = NO_LANGUAGE, 0.0
    for likely in _likelihoods_by_look(text, LANGUAGES.get(script, ())):
        found = max(likely, key=likely.get)
        share = _likelihood_of_alike_languages(likely, found)
        if share >= SURE:
            break
    return found if share >= LEAST_LIKELY and found != NO_LANGUAGE else "und"


def _is_written_in(script: str, shares: dict[str, float]) -> bool:
    if script in ("kana", "han"):
        japanese = shares["kana"] >= LEAST_KANA
        return japanese == (script == "kana") and shares["kana"] + shares["han"] >= LEAST_SHARE
    return shares[script] >= (LEAST_SHARE if script in ("latin", *DENSE) else LEAST_BESIDE_LATIN)


def _likelihood_of_alike_languages(likely: dict[str, float], language: str) -> float:
    return math.fsum(likely.get(name, 0.0) for name in TOGETHER.get(language, (language,)))


def _likelihoods_by_look(text: str, languages: tuple[str, ...]) -> Iterator[dict[str, float]]:
    """How likely each of `languages` is for `text`, at each longer look; one language needs none."""
    if len(languages) == 1:
        yield {languages[0]: 1.0}
    elif languages:
        for characters in LOOKS:
            yield probabilities(_beginning_and_middle(text, characters), languages)
            if len(text) <= 2 * characters:
                return


class Model(NamedTuple):
    """The model as py3langid ships it.

    Args:
        log_probabilities: of each n-gram in each class, float16 [n-grams, classes].
        priors: log-probabilities of the classes, float32 [classes].
        classes: the language of each class. A language in two scripts has two classes.
        moves: the next state of the automaton that finds n-grams, flat: one row of 256 for some states together.
        rows: where the row of each state begins in `moves`: int32 [states].
        found: the n-gram that ends in each state, -1 for none: int32 [states].
    """

    log_probabilities: np.ndarray
    priors: np.ndarray
    classes: Sequence[str]
    moves: np.ndarray
    rows: np.ndarray
    found: np.ndarray


@cache
def model() -> Model:
    """The model, read when it is first needed: in 0.5 s of a core, 93 MiB with the table of the Latin script."""
    from py3langid import langid, modelio

    log_probabilities, priors, classes, moves, rows, found = modelio.load_model(langid.MODEL_DIR / langid.MODEL_FILE)
    rows = np.array(rows, np.int32) << 8
    return Model(log_probabilities, priors, classes, np.asarray(moves), rows, np.array(found, np.int32))


@cache
def _model_of_languages(languages: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part of the model that is about some languages, in integers.

    For each of its classes the place of its language in `languages`; log-probabilities, int16 [n-grams, classes] in
    1/512 nat; priors, float64 [classes] in 1/512/1024 nat.
    """
    whole = model()
    classes = [place for place, language in enumerate(whole.classes) if language in languages]
    return (
        np.array([languages.index(whole.classes[place]) for place in classes]),
        # A choice of columns is laid out by columns; a row of n-grams is wanted as one piece of memory.
        (whole.log_probabilities[:, classes].astype(np.float32) * PER_NAT).astype(np.int16, order="C"),
        np.rint(whole.priors[classes].astype(np.float64) * PER_NAT * PER_WEIGHT),
    )


def probabilities(text: str, languages: tuple[str, ...]) -> dict[str, float]:
    """How likely each of `languages` is, if `text` is in one of them; all alike if the model finds nothing it knows.

    They are tempered by the root of the number of bytes, as py3langid does: n-grams overlap, so their sum is too sure.
    """
    content = unicodedata.normalize("NFC", text.lower() if text.isupper() else text).encode("utf-8", "replace")
    of_class, log_probabilities, scores = _model_of_languages(languages)
    seen, counts = np.unique(_language_n_grams(content), return_counts=True)
    if len(seen):
        weights = WEIGHTS[np.minimum(counts, len(WEIGHTS) - 1)]
        scores = weights @ log_probabilities.take(seen, axis=0).astype(np.float64) + scores
    else:
        scores = np.zeros_like(scores)
    exponents = (scores - scores.max()) / (PER_NAT * PER_WEIGHT * math.sqrt(len(content) or 1))
    shares = np.maximum(1 + exponents / 1024, 0.0)
    for _ in range(10):  # (1 + x / 1024) ** 1024 is e ** x within 0.0003
        shares *= shares
    of_languages = np.bincount(of_class, shares, len(languages)).tolist()
    whole = math.fsum(of_languages)
    return {language: share / whole for language, share in zip(languages, of_languages, strict=True)}


def _language_n_grams(content: bytes) -> np.ndarray:
    """The n-grams of the model in a text, one for each place where one ends: int32.

    The state of the automaton is the longest end of what was read that begins an n-gram, so it depends on no more bytes
    than the longest n-gram has. All places read that many at once: a third of the time of one byte after the other.
    """
    whole, data = model(), np.frombuffer(content, np.uint8)
    states = np.zeros(len(data), np.int64)
    for back in range(min(LONGEST, len(data)) - 1, -1, -1):
        states[back:] = whole.moves[whole.rows[states[back:]] + data[: len(data) - back]]
    found = whole.found[states]
    return found[found >= 0]
