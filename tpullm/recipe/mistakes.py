"""What is wrong in a command line or in settings, in one line: the key, the nearest one, and where it is explained."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tpullm.recipe import schema_keys, shipped
from tpullm.recipe.schema import Recipe
from tpullm.recipe.schema_keys import NAME, WORDS, Key
from tpullm.system.errors import UserError

REFERENCE = "docs/en/reference.md"
UNKNOWN = "unexpected_keyword_argument"  # pydantic's type of an error
# Another one of its types, such as `int_type`, says of a value which kind of key it wants; here ours, if it differs.
OURS = {"string": "str", "tuple": "list", "dict": "pairs"}
# Of a number out of its range: what it is, what to use instead, and where the error has the bound.
RANGES = {
    "greater_than_equal": "{value} is too small; use {ge:g} or more",
    "greater_than": "{value} is too small; use more than {gt:g}",
    "less_than_equal": "{value} is too large; use {le:g} or less",
    "less_than": "{value} is too large; use less than {lt:g}",
}
# Names that other programs have for our keys.
ELSEWHERE = {
    "lr": "pretrain.optimizer.peak_lr",
    "learning_rate": "pretrain.optimizer.peak_lr",
    "max_steps": "pretrain.steps",
    "vocab_size": "tokenizer.vocabulary_size",
    "hidden_size": "model.width",
    "num_layers": "model.layers",
    "num_heads": "model.heads",
    "block_size": "pretrain.sequence_length",
    "gradient_accumulation_steps": "pretrain.accumulation",
    "data": "text",
    "output_dir": "run",
}


class Keys:
    """The keys that a command line may have.

    Args:
        prog: its beginning, such as `tpullm plan`.
        own: the options of the verb: json, step.
        kind: the class of its settings; None if it takes none.
    """

    def __init__(self, prog: str, own: Iterable[str], kind: type | None):
        self.prog, self.own, self.kind = prog, set(own), kind
        self.sections = list(schema_keys.sections(kind)) if kind else []
        self.known = {section.dotted(key): key for section in self.sections for key in section.keys}
        names = [section.name for section in self.sections if section.name and section.name not in self.known]
        self.all = [*self.known, *names, *sorted(self.own)]

    def find(self, dotted: str) -> Key | None:
        """The key of that name, which may be one of a stage."""
        return self.known.get(schema_keys.general(dotted, self.sections))

    def check(self, option: str) -> None:
        """`UserError` for an unknown option."""
        general, holder = schema_keys.general(option, self.sections), self.find(option.rpartition(".")[0])
        if holder and holder.kind not in ("pairs", "stages"):
            raise UserError(f"--{option}: give --{option.rpartition('.')[0]} as a whole: {holder.wanted}")
        if not (holder and holder.kind == "pairs") and (general not in self.all or general.endswith(f".{NAME}")):
            raise UserError(self.unknown(option))

    def wanted(self, option: str) -> str:
        """What the value of an option must be, in words."""
        return key.wanted if (key := self.find(option)) else "a YAML file, or a name" if option == "config" else "one"

    def where(self, dotted: str) -> str:
        """Where a key is explained."""
        if dotted in self.own:
            return f"{self.prog} --help"
        if self.kind is not Recipe:
            return f"{REFERENCE}#launch"
        dotted = schema_keys.general(dotted, self.sections)
        owners = [section.name for section in self.sections if f"{dotted}.".startswith(f"{section.name}.")]
        owner = max(owners, key=len, default="").removesuffix(f".{NAME}")
        return f"{REFERENCE}#{owner.rpartition('.')[2] or 'recipe'}"

    def unknown(self, dotted: str) -> str:
        """The line about a key that there is not."""
        if dotted == "model" and not self.kind:
            return f"--model: is no option; MODEL is the first word after the verb: {self.prog} MODEL ..."
        dashes, general = "" if self.kind else "--", schema_keys.general(dotted, self.sections)
        is_name = general.endswith(f".{NAME}")  # a key where the name of a stage should be
        nearest = self._nearest(dotted if is_name else general)
        stage = dotted.split(".")[:2] if general.split(".")[1:2] == [NAME] and not is_name else []
        if stage and nearest.startswith(f"{stage[0]}."):  # the key of the stage that was named
            nearest = ".".join([*stage, *nearest.split(".")[2:]])
        if nearest:
            return f"unknown key {dashes}{dotted}; the nearest is {dashes}{nearest}, see {self.where(nearest)}"
        return (
            f"unknown key {dashes}{dotted}; {f'{REFERENCE} has all keys' if self.kind else f'see {self.prog} --help'}"
        )

    def _nearest(self, dotted: str) -> str:
        """The key that was probably meant; empty if none is near."""
        section, _, last = dotted.rpartition(".")
        if meant := ELSEWHERE.get(last, ""):
            tuned = meant.replace("pretrain.", "finetune.NAME.train.") if section.startswith("finetune") else meant
            return tuned if self.known else ""
        alike = {key: difflib.SequenceMatcher(None, key.rpartition(".")[2], last).ratio() for key in self.all}
        if near := [key for key in self.all if alike[key] >= 0.7]:
            # First a key of the same section; of several that are alike, one in a section below it.
            return max(near, key=lambda key: (key.rpartition(".")[0] == section, alike[key], key.startswith(section)))
        return next(iter(difflib.get_close_matches(dotted, self.all, 1, 0.6)), "")


def dotted_key(loc: tuple) -> str:
    """The name of a key from pydantic's `loc`, which has the places in lists too."""
    return ".".join(part for part in loc if isinstance(part, str))


def of_value(error: dict[str, Any], keys: Keys) -> tuple[tuple, str]:
    """Where a value is wrong, and the line about it.

    Args:
        error: of pydantic's `ValidationError`.
    """
    kind, loc, value, context = error["type"], error["loc"], error["input"], error.get("ctx", {})
    name = dotted_key(loc)
    see = f"see {keys.where(name)}"
    if kind == UNKNOWN:
        return loc, keys.unknown(name)
    if kind == "missing":
        section, _, last = name.rpartition(".")
        return loc[:-1], f"{section}: {last} is missing; {see}"
    if kind == "dataclass_type":
        return loc, f"{name}: has keys of its own; write KEY: VALUE lines, {see}"
    if value is None:
        return loc, f"{name}: has no value; give one, or leave the key out"
    if kind in RANGES:
        return loc, f"{name}: {RANGES[kind].format(value=value, **context)}"
    if kind == "literal_error":
        choices = ", ".join(filter(None, re.findall("'(.*?)'", context["expected"])))
        return loc, f"{name}: {value} is not one of {choices}; {see}"
    wanted = OURS.get(kind.removesuffix("_type"), kind.removesuffix("_type"))
    key = keys.find(name) if wanted in ("list", "pairs") else None
    return loc, f"{name}: {value} is not {key.wanted if key else WORDS[wanted]}; {see}"


def of_option(message: str, keys: Keys) -> str:
    """The line about what argparse does not understand."""
    told = f"see {keys.prog} --help"
    if found := re.search(r"argument (--\S+): invalid (\w+) value: '(.*)'", message):
        return f"{found[1]}: {found[3]} is not {WORDS[found[2]]}; {told}"
    if found := re.search(r"argument (--\S+): expected one argument", message):
        return f"{found[1]}: its value is missing; {told}"
    if found := re.search(r"arguments are required: (.+)", message):
        names = ", ".join(name if name.startswith("-") else name.upper() for name in found[1].split(", "))
        return f"missing: {names}; {told}"
    if found := re.search(r"one of the arguments (.+) is required", message):
        return f"missing: one of {', '.join(found[1].split())}; {told}"
    if found := re.search(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message):
        choices = found[3].replace("'", "")  # Python 3.11 has them in quotes
        return f"{found[1]}: {found[2]} is none of {choices}; choose one of them"
    if not (found := re.search(r"unrecognized arguments: (\S+)", message)):
        return message
    word = found[1]
    if word.startswith("-"):
        if near := word.lstrip("-") and keys._nearest(word.lstrip("-").partition("=")[0]):
            return f"{word}: no such option, did you mean --{near}? It begins with two dashes; {told}"
        return f"{word}: no such option; {told}"
    if keys.kind is Recipe and (word in shipped.recipes() or Path(word).is_file()):
        return f"{word}: the recipe is the first word after the verb: {keys.prog} {word} ..."
    return f"{word}: a word too many; an option begins with --, {told}"
