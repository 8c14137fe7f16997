"""The language of the page: English sentences are in the templates and the code, `ja.yaml` has each in Japanese.

    {{ text("After {tokens} tokens the loss is {loss}.", tokens=text.compact(read), loss=three_decimals(loss)) }}

A sentence with names in braces is a whole sentence or a whole label: the order of words differs in Japanese, so never
build one from two. Numbers come into it as text. `tests/report/test_language.py` finds every sentence in the templates
and the code, and compares `ja.yaml` with them.
"""

import datetime
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from tpullm.system.words import LETTERS, Sizes, compact, moment, short

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
        return short(value, self.sizes)

    @property
    def sizes(self) -> Sizes:
        """The names of large numbers on an axis, the largest first."""
        return _MYRIADS if self._japanese else LETTERS

    def duration(self, seconds: float) -> str:
        """`372` as `6 min 12 s` or `6分12秒`."""
        text = self
        if seconds < 10:
            return text("{seconds} s", seconds=f"{seconds:.1f}")
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        if hours:
            return text("{hours} h {minutes} min", hours=hours, minutes=minutes)
        if minutes:
            return text("{minutes} min {seconds} s", minutes=minutes, seconds=rest)
        return text("{seconds} s", seconds=rest)

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


@functools.cache
def named(name: str) -> Language:
    """The language `en` or `ja`. Line breaks within a template of `ja.yaml` are removed."""
    import yaml

    if name == "en":
        return ENGLISH
    pairs = yaml.safe_load(resources.files("tpullm.report").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    return Language(name, {english: "".join(sentence.splitlines()) for english, sentence in pairs.items()})
