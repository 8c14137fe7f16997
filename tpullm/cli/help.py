"""`tpullm VERB --help`: what the verb does, examples, options, and the keys of the recipe that it reads. Without JAX.

A page has at most 60 lines of 80 characters: the sections that come last are shortened first. `--help-all` has all of
it, and the keys that other verbs read.
"""

import argparse
import ast
import dataclasses
import importlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len as cells

from tpullm.cli.verb_table import VERBS, module_of
from tpullm.recipe import schema_keys
from tpullm.recipe.schema import Recipe
from tpullm.recipe.schema_keys import Key, Section
from tpullm.system.cluster.place import HELP
from tpullm.system.language import spoken

MOST_LINES = 60
WIDTHS = (80, 100)  # the least and the most of a terminal's columns that are used
# A line can be broken between Japanese characters, but no bracket ends it, and none of these signs begins one.
PIECES = re.compile(r"[（「【]*(?:[!-~]+|.)[、。）」】：ー]*")
NAMES = 30  # columns of a key and its default; the explanation is beside it


@dataclass(frozen=True)
class Option:
    """An option or a word of a command line.

    Args:
        name: as it is typed, with a name for its value: `--tokens TOKENS`.
        help: what it is, with its default.
        optional: a word that may be left out.
    """

    name: str
    help: str
    optional: bool = False


@dataclass(frozen=True)
class Page:
    """What a help page says.

    Args:
        usage: the command line.
        description: what the verb does: paragraphs.
        examples: command lines that work.
        options: those of the verb itself.
        keys: what stands above the sections.
        sections: keys with their defaults, the most important first.
        notes: paragraphs at the end, of `--help-all` only.
    """

    usage: str
    description: str
    examples: Sequence[str]
    options: Sequence[Option] = ()
    keys: str = ""
    sections: Sequence[Section] = ()
    notes: Sequence[str] = ()


OF_HOSTS = Option("--hosts.count N", "N hosts; this one is --hosts.index I (see --help-all)")


def help_text(verb: str, everything: bool = False) -> str:
    """The help of a verb: at most 60 lines, or every key in full."""
    width = min(max(shutil.get_terminal_size().columns, WIDTHS[0]), WIDTHS[1])
    return full_help(help_page(verb, everything), width) if everything else brief_help(help_page(verb), width)


def help_page(verb: str, everything: bool = False) -> Page:
    """The contents of a verb's help."""
    about, options, sections, keys = VERBS[verb], [], [], ""
    if about.adds:
        parser = argparse.ArgumentParser(add_help=False)
        getattr(importlib.import_module(module_of(verb)), about.adds)(parser)
        options = [_option(action, bool(about.shows)) for action in parser._actions]
    own_words = [option for option in options if not option.name.startswith("-")]
    words = [f"[{option.name}]" if option.optional else option.name for option in own_words]
    usage = " ".join([f"tpullm {verb}", *words, *(["[options]"] if len(words) < len(options) else [])])
    if about.recipe:
        usage = f"tpullm {verb} [RECIPE or RUN] [--run RUN] [options] [--KEY VALUE ...]"
        everywhere = [field.name for field in dataclasses.fields(Recipe)]
        sections = schema_keys.chosen(list(schema_keys.sections(Recipe)), everywhere if everything else about.keys)
        keys = f"Keys of the recipe{'' if everything else f' that {verb} reads'}, with their defaults:"
        before = [
            Option("RECIPE", "a name of `tpullm recipes`, or a YAML file"),
            Option("RUN", "a run directory, with its recipe"),
        ]
        if about.computes:
            before.append(OF_HOSTS)
        options = [*before, *options]
    if about.joins:
        options.append(OF_HOSTS)
    if about.reads:
        from tpullm.launch.job import LaunchConfig

        usage += " [--KEY VALUE ...] -- VERB ..."
        sections, keys = list(schema_keys.sections(LaunchConfig)), "Keys of the launch, with their defaults:"
        file = Option("--config FILE", "a YAML file of these keys, or a name: local, slurm, gke, tpu-vm or batch")
        options = [*options, file]
    if sections and not everything:
        options = [*options, Option("--help-all", "every key in full, with those that other verbs read")]
    shown = [f"tpullm {verb} {example}".strip() for example in about.examples]
    file = Path(__file__).with_name(f"{module_of(verb).rpartition('.')[2]}.py")
    description = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""  # without importing the module
    notes = [HELP] * (about.joins or about.recipe and about.computes)
    return Page(usage, description, shown, options, keys, sections, notes if everything else ())


def _option(action: argparse.Action, shows: bool) -> Option:
    value = action.metavar or {int: "N", float: "X"}.get(action.type, action.dest.upper())
    has_none = action.default in (None, "") or action.default is False
    default = "" if has_none else spoken(f" (default {action.default})")
    about = spoken(action.help)
    if not action.option_strings:
        return Option(value, about + default, action.nargs == "?")
    name = ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}")
    return Option(name, about + (default or spoken(" (required)") * (action.required and not shows)))


def brief_help(page: Page, width: int) -> str:
    """The page in `MOST_LINES`, with the first sentence of each explanation where there is room for it."""
    head = _usage_lines(page, width)
    forms = [[form(section, width) for form in (_listed, _in_a_row, _count_of_keys)] for section in page.sections]
    level = [0] * len(forms)
    later = list(reversed(range(1, len(forms))))
    inner = [place for place in later[:-1] if "." in page.sections[place].name]
    # The keys that stand alone and the first section are the last to be shortened.
    for shortest, places in ((1, later[:-1]), (2, inner), (1, later[-1:]), (2, later), (1, [0])):
        for place in places:
            if len(head) + sum(len(of[at]) for of, at in zip(forms, level, strict=True)) > MOST_LINES:
                level[place] = shortest
    return "\n".join([*head, *(line for of, at in zip(forms, level, strict=True) for line in of[at])])


def full_help(page: Page, width: int) -> str:
    """The page with every key in full."""
    lines = _usage_lines(page, width)
    for section in page.sections:
        entries = []
        for key in section.keys:
            unnamed = [choice for choice in key.choices if choice not in key.help]
            told = [key.help.removesuffix("."), *([f"One of {', '.join(key.choices)}"] if unnamed else [])]
            told += ["A training resumes with another value"] * key.changes.resumes
            whole = ". ".join(told) + "." * (len(told) > 1 or key.help.endswith("."))
            entries += _key_entry(section, key, whole, width)
        lines += _section_with_title(section, entries, width, blank=bool(section.name))
    for note in page.notes:
        lines += ["", *wrapped_words(note.split(), width, "")]
    return "\n".join(lines)


def _usage_lines(page: Page, width: int) -> list[str]:
    lines = wrapped_words(f"{spoken('usage:')} {page.usage}".split(), width, "")
    for paragraph in page.description.split("\n\n"):
        lines += ["", *wrapped_words(spoken(" ".join(paragraph.split())).split(), width, "")]
    lines += ["", spoken("Examples:"), *(f"  {example}" for example in page.examples)]
    names = min(NAMES, 4 + max((len(option.name) for option in page.options), default=0))
    if page.options:
        lines += ["", spoken("Options:")]
    for option in page.options:
        lines += _beside(option.name, spoken(option.help), names, width)
    return [*lines, *(["", spoken(page.keys)] if page.keys else [])]


def _listed(section: Section, width: int) -> list[str]:
    """A key a line or two, with the first sentence of its explanation."""
    lines = [line for key in section.keys for line in _key_entry(section, key, spoken(key.short), width)]
    return _section_with_title(section, lines, width, blank=bool(section.name))


def _in_a_row(section: Section, width: int) -> list[str]:
    """Keys and defaults one after the other."""
    told = [f"{key.name} {key.default}".strip() for key in section.keys]
    # A key and its default stay in one line.
    lines = wrapped_words([f"{each}," for each in told[:-1]] + told[-1:], width, "  ")
    return _section_with_title(section, lines, width)


def _count_of_keys(section: Section, width: int) -> list[str]:
    """The number of keys of a section."""
    if section.same_as:
        return _in_a_row(section, width)
    title = f"{section.name}: a list" if section.repeated else _section_title(section)
    return wrapped_words(f"{title} ({len(section.keys)} keys)".split(), width, "")


def _section_with_title(section: Section, lines: Sequence[str], width: int, blank: bool = False) -> list[str]:
    if not section.name:
        return list(lines)
    keys = [] if section.same_as else lines
    return [*([""] if blank else []), *wrapped_words(_section_title(section).split(), width, ""), *keys]


def _section_title(section: Section) -> str:
    if section.repeated:
        return f"{section.name}, a list; each has these keys:"
    if section.same_as:
        return f"--{section.name}.KEY: the keys of {section.same_as}"
    return f"--{section.name}.KEY: {spoken(section.title)}"


def _key_entry(section: Section, key: Key, explanation: str, width: int) -> list[str]:
    dashes = "" if section.name else "--"
    return _beside(f"{dashes}{key.name} {key.default}".strip(), explanation, NAMES, width)


def _beside(name: str, explanation: str, column: int, width: int) -> list[str]:
    """A name, and its explanation in a column of its own."""
    lines = wrapped_words(explanation.split(), width - column, "") or [""]
    first, below = f"  {name}", [" " * column + line for line in lines]
    if cells(first) > column - 1:
        return [first, *below]
    return [first + " " * (column - cells(first)) + lines[0], *below[1:]]


def wrapped_words(words: Sequence[str], width: int, indent: str) -> list[str]:
    """Words in lines, by the columns of a terminal, of which a Japanese character takes two."""
    lines: list[str] = []
    for word in words:
        for place, piece in enumerate(PIECES.findall(word)):
            gap = " " if place == 0 else ""
            if lines and cells(lines[-1] + gap + piece) <= width:
                lines[-1] += gap + piece
            else:
                lines.append(indent + piece)
    return lines
