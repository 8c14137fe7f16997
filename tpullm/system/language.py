"""The language of the terminal. The code speaks English; `ja.yaml` has what a Japanese terminal shows.

A line is translated where it leaves the program (`log`, tables, help). Its template, with names in braces, is found by
the line itself, so the code that makes a line knows nothing of languages. What a template's name stands for may be a
line of its own, and a line without a template stays English. JSON, files and answers over HTTP are always English.

The catalogue is read once, at the first line in Japanese; a line then takes about 50 microseconds.
"""

import functools
import os
import re
import sys
from collections.abc import Mapping
from importlib import resources

NAMES = ("en", "ja")
NESTED = 3  # lines within a line that are translated
PART = "… "  # begins a template of what is only a part of other lines
_NAME = re.compile(r"\{(\w+)\}")

_chosen = ""


def preferred(environment: Mapping[str, str]) -> str:
    """The language of the environment: `ja` in a Japanese locale, else `en`. POSIX: the first variable that is set."""
    found = next((value for key in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := environment.get(key))), "")
    return "ja" if found.lower().startswith("ja") else "en"


def choose(name: str) -> None:
    """Speak `en` or `ja` from now on; empty: as the environment says."""
    global _chosen
    _chosen = name


def chosen() -> str:
    """The language that is spoken: `en` or `ja`."""
    return _chosen or preferred(os.environ)


def spoken(line: str) -> str:
    """A line of ours in the language that is spoken, as far to the right; as it is if the catalogue has no template."""
    if chosen() != "ja" or not _can_be_shown():
        return line
    words = line.lstrip(" ") if line.startswith("  ") else line
    return line[: len(line) - len(words)] + _japanese(words, NESTED)


def _can_be_shown() -> bool:
    """Whether the terminal has Japanese characters: else each would be a question mark."""
    try:
        "日本語".encode(getattr(sys.stderr, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@functools.cache
def catalogue() -> dict[str, str]:
    """The English templates, with names in braces, and the same in Japanese."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C: 10 ms, else 100
    return yaml.load(resources.files(__package__).joinpath("ja.yaml").read_text(encoding="utf-8"), loader)


@functools.cache
def _open_templates() -> list[tuple[str, str]]:
    """Templates with names: a place before any line (`{rest}`), then those that say most.

    Before each stands the longest part of it, which a line must have.
    """
    places = [template for template in catalogue() if template.endswith(": {rest}")]
    others = sorted(filter(_NAME.search, catalogue()), key=lambda template: -len(_NAME.sub("", template)))
    templates = [*places, *(template for template in others if template not in places)]
    return [(max(_NAME.split(template.removeprefix(PART))[::2], key=len), template) for template in templates]


@functools.cache
def _pattern(template: str) -> re.Pattern:
    before, *rest = _NAME.split(template.removeprefix(PART))
    found = re.escape(before)
    for name, after in zip(rest[::2], rest[1::2], strict=True):
        # A number, or `{count} tokens` is a list of words that ends so, and `line {line}` goes on to the next colon.
        # A setting is one word, or `{setting} {value} is not known` has the place before it.
        value = r"(\d.*?)" if name == "count" else r"(\d+)" if before.endswith("line ") else "(.*?)"
        value = r"([\w.]+)" if name == "setting" else value
        found, before = found + value + re.escape(after), after
    return re.compile(found, re.DOTALL)


def _counts(value: str) -> str:
    """`1 empty, 2 too short`, each reason in Japanese."""
    told = (reason.partition(" ") for reason in value.split(", "))
    return "、".join(
        f"{_japanese(why, 0)} {count}件" if count[:1].isdigit() else f"{count} {why}" for count, _, why in told
    )


def _list(value: str) -> str:
    """`2 days, 3 dollars`, each in Japanese."""
    return "、".join(_japanese(part, NESTED - 1) for part in value.split(", "))


def _skipped(value: str) -> str:
    """`a.jpg, b.png (why); c.doc (why)`, each reason in Japanese."""
    found = re.findall(r"(.+?) \((.*?)\)(?:; |$)", value)
    return "、".join(f"{names}（{_japanese(why, NESTED - 1)}）" for names, why in found) or value


def _japanese(line: str, depth: int) -> str:
    if line in catalogue():
        return catalogue()[line]
    placed = line
    for part, template in _open_templates():
        if depth == NESTED and template.startswith(PART):
            continue
        if part in line and (found := _pattern(template).fullmatch(line)):
            # A value of one word is a name of the user's, not a line, but where the template says {label} or {label2}.
            named = {
                name: _LISTS[name](value)
                if name in _LISTS
                else _japanese(value, depth - 1)
                if depth and (" " in value or name.startswith("label"))
                else value
                for name, value in zip(_NAME.findall(template), found.groups(), strict=True)
            }
            said = _NAME.split(catalogue()[template])  # every second part is a name
            whole = "".join(named[part] if place % 2 else part for place, part in enumerate(said))
            if "rest" not in named or named["rest"] not in line:
                return whole
            placed = whole  # another template may have the rest with the place before it
    if placed == line and depth:  # a line with its place before it, which may be any
        place, _, rest = line.partition(": ")
        told = _japanese(rest, depth - 1)
        placed = line if told == rest else f"{_japanese(place, depth - 1)}：{told}"
    return placed


_LISTS = {"counts": _counts, "list": _list, "skipped": _skipped}  # values that are several lines
