"""Which documents are dropped, and for which reason: unreadable ones, those without rights, and those of low quality.

The rights are what the owner of a document reserves, its licence, and what was opted out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tpullm.corpus import language_detection as languages
from tpullm.corpus.dedup import text_hash
from tpullm.corpus.document import Raw
from tpullm.corpus.files.encodings import has_surrogate
from tpullm.corpus.files.pages import NOAI, NOIMAGEAI, TDM
from tpullm.corpus.filters import address_lists, cleaning, quality, quality_classifier
from tpullm.recipe.schema import CorpusConfig, Source

# https://creativecommons.org/licenses/by-sa/4.0/ is CC-BY-SA-4.0 in SPDX's list, and publicdomain/zero/1.0 is CC0-1.0.
DEED = re.compile(
    r"(?:https?:)?/*(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)/([0-9.]+)(?:[/?#].*)?"
)
NAMED = re.compile(r"(?:creative commons|cc)[ _-]+(by(?:[ _-](?:nc|nd|sa))*)[ _-]+([0-9.]+)")
# Limits of code that people write; generated code and tables exceed them: StarCoder (Li et al. 2023, section 3.1).
LONGEST_MEAN_LINE, LONGEST_LINE, LEAST_LETTERS = 100, 1000, 0.25
# Share of characters, and of lines: a manual of the shell shows the six broken names that a command corrects.
MOST_BROKEN, MOST_BROKEN_LINES = 0.001, 0.1
# A decoder writes U+FFFD for bytes that it cannot read. C1 controls appear where UTF-8 was read as Latin-1.
BROKEN = re.compile("[\ufffd\x80-\x84\x86-\x9f]")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is decided of a document.

    Args:
        reason: why it is dropped, a key of the data card's reasons; "" if it is kept.
        text: what is kept of it.
        language: its language (ISO 639-1), `code`, or `und`; "" if it is dropped.
        replaced: how many pieces of personal data were replaced in it.
    """

    reason: str = ""
    text: str = ""
    language: str = ""
    replaced: int = 0


def prepare(config: CorpusConfig) -> list[str]:
    """Lines for the log about what the filters have read and learned, before the first document is judged.

    `UserError` if a rule cannot be applied, or a list or the examples cannot be read.
    """
    quality.check(config)
    lines = []
    if config.opted_out:
        found = address_lists.load(tuple(config.opted_out))
        counts = f"{len(found.domains)} domains, {len(found.pages) + len(found.folders)} addresses"
        lines.append(f"opted out: {counts}, {len(found.hashes)} hashes of texts")
    if config.classifier.good:
        lines.append(f"classifier: {quality_classifier.learned(config.classifier).said}")
    return lines


def judge(raw: Raw, source: Source, config: CorpusConfig, held_out: bool = False) -> Verdict:
    """Whether a document is kept, and which text of it.

    What the recipe holds out passes every rule of quality, and so does a source with `filter: false`. What cannot be
    read and what its owner keeps back is dropped from both.
    """
    reason = raw.dropped or unreadable(raw.text)
    if reason:
        return Verdict(reason)
    text, replaced = cleaning.cleaned(raw.text, source.clean)
    reason = ("" if text.strip() else "empty") or left_out(raw, text, source, config)
    if reason:
        return Verdict(reason)
    # What the data says of its language is a label: only what the recipe says is compared with the text.
    expected = "code" if raw.language == "code" else source.language
    is_judged = source.filter and not held_out
    if is_judged and (reason := _why_text_is_unfit(text, expected, config)):
        return Verdict(reason)
    language = raw.language or source.language or languages.guess(text)
    if is_judged and expected != "code":
        reason, left = quality.judge(text, expected or language, raw.url, source.rules, config)
        if not reason and left is not text and len(left.strip()) < config.minimum_characters:
            reason = "too short"
        text = left
    return Verdict(reason) if reason else Verdict("", text, language, replaced)


def unreadable(text: str) -> str:
    """Why `text` is not readable (`empty`, `broken encoding`); "" if it is. Every document is checked."""
    if not text.strip():
        return "empty"
    if "\0" in text or not text.isascii() and has_surrogate(text):
        return "broken encoding"
    if text.isascii() or len(BROKEN.findall(text)) <= MOST_BROKEN * len(text):
        return ""
    lines = [line for line in text.split("\n") if line]
    broken = sum(BROKEN.search(line) is not None for line in lines)
    return "broken encoding" if broken > MOST_BROKEN_LINES * len(lines) else ""


def left_out(raw: Raw, text: str, source: Source, config: CorpusConfig) -> str:
    """Why the rights in a document keep it out, as a reason of the data card; "" if the recipe may use it.

    Args:
        raw: the document as a reader found it.
        text: what would be trained on, if cleaning changed it: its hash may be listed too.
        source: its source, whose licence stands where the document has none.
        config: the lists of what is opted out, and of the licences that are allowed.
    """
    if raw.reserved:
        return f"reserved ({raw.reserved})" if raw.reserved in (NOAI, NOIMAGEAI, TDM) else "reserved"
    if config.licences and not is_allowed(raw.licence or source.licence, config.licences):
        return "licence not allowed"
    if not config.opted_out:
        return ""
    listed = address_lists.load(tuple(config.opted_out))
    return listed.address(raw.url) or (listed.texts(text_hash(found) for found in {raw.text, text}))


def is_allowed(licence: str, allowed: Sequence[str]) -> bool:
    """Whether `licence` is one of `allowed`: names or expressions of SPDX, addresses of Creative Commons, or sentences.

    Case and spaces do not count. `A OR B` is allowed if one of both is, `A AND B` if both are. No licence is not
    allowed.
    """
    name = _normalized_licence(licence)
    if name in map(_normalized_licence, allowed):
        return True
    for word, combine in ((" or ", any), (" and ", all)):  # AND binds more strongly, so OR is split first
        parts = name.split(word)
        if len(parts) > 1 and "(" not in name:
            return combine(is_allowed(part, allowed) for part in parts)
    return False


def _normalized_licence(licence: str) -> str:
    """One form of a name: lower case, single spaces, and SPDX's name for the address of a deed."""
    name = " ".join(licence.lower().split())
    if deed := DEED.fullmatch(name):
        kind, version = deed.groups()
        return {"zero": "cc0", "mark": "cc-pdm"}.get(kind, f"cc-{kind}") + f"-{version}"
    if named := NAMED.fullmatch(name):
        return f"cc-{re.sub('[ _]', '-', named[1])}-{named[2]}"
    return name


def _why_text_is_unfit(text: str, language: str, config: CorpusConfig) -> str:
    """Why a text is not what its source gives: too short, in another language, no code that people write."""
    if len(text.strip()) < config.minimum_characters:
        return "too short"
    if language != "code":
        return "wrong language" if language and not languages.is_language(text, language) else ""
    lines, letters = text.splitlines(), sum(map(str.isalpha, text))
    has_short_lines = len(text) / len(lines) <= LONGEST_MEAN_LINE and max(map(len, lines)) <= LONGEST_LINE
    return "" if has_short_lines and letters >= LEAST_LETTERS * len(text) else "generated code or data"
