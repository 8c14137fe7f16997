"""The language of the page: English sentences are in the code, and `ja.yaml` has each of them in Japanese.

    text = data.language
    paragraph(text("After {tokens} tokens the loss is {loss}.", tokens=text.compact(read), loss=f"{loss:.2f}"))

A template is a whole sentence or a whole label: the order of words differs in Japanese, so never build a sentence from
two templates. Numbers come into a template as text. `tests/report/test_language.py` finds every template in the code
and compares `ja.yaml` with them.

How numbers are written in English; `language.py` has the Japanese ways.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from tpullm.system.log import moment

Sizes = Sequence[tuple[float, str]]
_WORDS: Sizes = ((1e12, " trillion"), (1e9, " billion"), (1e6, " million"))
_LETTERS: Sizes = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def count(value: float) -> str:
    """`20779` as `20,779`."""
    return f"{value:,.0f}"


def compact(value: float, sizes: Sizes = _WORDS) -> str:
    """`9580921` as `9.58 million`; `sizes` are names of large numbers, the largest first."""
    for size, name in sizes:
        if value >= size:
            return f"{_digits(value / size, 3)}{name}"
    return count(value)


def short(value: float, sizes: Sizes = _LETTERS) -> str:
    """A number on an axis: `2500000` as `2.5M`, `0.003` as `0.003`."""
    for size, name in sizes:
        if abs(value) >= size:
            return f"{_digits(value / size, 4)}{name}"
    return f"{value:.4g}"


def _digits(value: float, most: int) -> str:
    """A number with at most `most` significant digits and without an exponent: `1234` with three is `1,230`."""
    return f"{float(f'{value:.{most}g}'):,.12g}"


def three_decimals(value: float) -> str:
    """`0.0171` as `0.017`."""
    return f"{value:.3f}"


def percent(share: float) -> str:
    """`0.983` as `98.3%`. A share below 1 is never written as `100%`, and one above 0 never as `0%`."""
    return f"{share:.0%}" if share in (0, 1) else f"{min(max(share, 0.001), 0.999):.1%}"


def probability(value: float) -> str:
    """A probability with two decimals, or `<0.01`."""
    return "<0.01" if 0 < value < 0.005 else f"{value:.2f}"


NAMES = ("en", "ja")
_MYRIADS = ((1e12, "兆"), (1e8, "億"), (1e4, "万"))  # Japanese counts in powers of 10,000


@dataclass(frozen=True)
class Language:
    """The language of the page. A call with an English template and its values returns the sentence.

    Args:
        name: `en` or `ja`, as HTML has it.
        catalogue: English templates to those of this language; empty for English.
    """

    name: str = "en"
    catalogue: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, template: str, /, **values: object) -> str:
        return (self.catalogue[template] if self.catalogue else template).format(**values)

    def known(self, word: str) -> str:
        """The translation of a text of the data; the text itself if the catalogue has none."""
        return self.catalogue.get(word, word)

    def join(self, *sentences: str) -> str:
        """The sentences one after the other, without the empty ones."""
        return ("" if self._japanese else " ").join(sentence for sentence in sentences if sentence)

    def compact(self, value: float) -> str:
        """`9580921` as `9.58 million` or `958万`."""
        return compact(value, _MYRIADS) if self._japanese else compact(value)

    def short(self, value: float) -> str:
        """A number on an axis: `2500000` as `2.5M` or `250万`."""
        return short(value, _MYRIADS) if self._japanese else short(value)

    def duration(self, seconds: float) -> str:
        """`372` as `6 min 12 s` or `6分12秒`."""
        text = self
        if seconds < 10:
            return text("{seconds} s", seconds=f"{seconds:.1f}")
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        if hours:
            return text("{hours} h {minutes} min", hours=hours, minutes=minutes)
        return (
            text("{minutes} min {seconds} s", minutes=minutes, seconds=rest)
            if minutes
            else text("{seconds} s", seconds=rest)
        )

    def moment(self, seconds: float) -> str:
        """A duration with three digits in the best unit: `57.5 ms` or `57.5ミリ秒`."""
        text = self
        number, unit = moment(seconds).split(" ")
        return text("{seconds} s", seconds=number) if unit == "s" else text("{milliseconds} ms", milliseconds=number)

    def date(self, iso: str) -> str:
        """`2026-01-02T03:04:05+00:00` as `2026-01-02 03:04 UTC` or `2026年1月2日 03:04（UTC）`."""
        text = self
        then = datetime.datetime.fromisoformat(iso)
        day = {"year": then.year, "month": then.month, "day": then.day}
        return text("{year}-{month:02}-{day:02} {time} UTC", **day, time=f"{then:%H:%M}")

    @property
    def _japanese(self) -> bool:
        return self.name == "ja"


ENGLISH = Language()


def named(name: str) -> Language:
    """The language `en` or `ja`."""
    return ENGLISH if name == "en" else Language(name, _catalogue(name))


def preferred(environment: Mapping[str, str]) -> str:
    """The language of the environment: `ja` in a Japanese locale, else `en`. POSIX: the first variable that is set."""
    found = next((value for key in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := environment.get(key))), "")
    return "ja" if found.lower().startswith("ja") else "en"


def _catalogue(name: str) -> dict[str, str]:
    """The templates of `NAME.yaml`. Line breaks within a Japanese template are removed."""
    import yaml

    pairs = yaml.safe_load(resources.files("tpullm.report").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    return {english: "".join(sentence.splitlines()) for english, sentence in pairs.items()}
