"""What is wrong in a command line or a YAML file, in one line: the key, the nearest one, and where it is explained."""

import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tpullm.recipe import schema_keys, shipped
from tpullm.recipe.schema import Recipe
from tpullm.system.errors import UserError

REFERENCE = "docs/en/reference.md"
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
    """The keys that a command line and its files may have.

    Args:
        parser: of the command line.
        kind: the dataclass of the files; of a command line without such a file it does not matter.
    """

    def __init__(self, parser, kind: type):
        actions = {name.lstrip("-"): action for name, action in parser._option_string_actions.items()}
        self.prog, self.kind = parser.prog or "tpullm", kind
        self.has_sections = kind is not Recipe or {"config", "name", "pretrain.steps"} <= set(actions)
        self.sections = list(schema_keys.sections(kind)) if self.has_sections else []
        self.known = {section.dotted(key): key for section in self.sections for key in section.keys}
        sections = [section.name for section in self.sections if section.name and section.name not in self.known]
        # What else the verb has: --json, --step.
        self.own = {
            name: action
            for name, action in actions.items()
            if name not in (*self.known, *sections, "h") and name.rpartition(".")[2] != "help"
        }
        self.all = [*self.known, *sections, *self.own]

    def general(self, dotted: str) -> str:
        """The key with `NAME` for the name of a stage."""
        return schema_keys.general(dotted, self.sections)

    def where(self, dotted: str) -> str:
        """Where a key is explained."""
        if dotted in self.own:
            return f"{self.prog} --help"
        if self.kind is not Recipe:
            return f"{REFERENCE}#launch"
        dotted = self.general(dotted)
        owners = [section.name for section in self.sections if f"{dotted}.".startswith(f"{section.name}.")]
        owner = max(owners, key=len, default="").removesuffix(f".{schema_keys.NAME}")
        return f"{REFERENCE}#{owner.rpartition('.')[2] or 'recipe'}"

    def wanted(self, dotted: str, expected: str) -> str:
        """What a value must be, by its key and the type that the parser names."""
        known, kind = self.known.get(self.general(dotted)), re.search(r"<class '(\w+)'>", expected)
        if known and (known.choices or known.kind in ("section", "stages")):
            return known.wanted
        return schema_keys.WORDS.get(kind[1].replace("tuple", "list") if kind else "", "a value that it can have")

    def nearest(self, dotted: str) -> str:
        """The key that was probably meant; empty if none is near."""
        asked, dotted = dotted, self.general(dotted)
        if dotted.endswith(f".{schema_keys.NAME}"):  # a key where the name of a stage should be
            return self._nearest(asked)
        found = self._nearest(dotted)
        # The key of the stage that was named.
        stage = asked.split(".")[:2] if dotted.split(".")[1:2] == [schema_keys.NAME] else []
        return ".".join([*stage, *found.split(".")[2:]]) if stage and found.startswith(f"{stage[0]}.") else found

    def _nearest(self, dotted: str) -> str:
        section, _, last = dotted.rpartition(".")
        if meant := ELSEWHERE.get(last, ""):
            tuned = meant.replace("pretrain.", "finetune.NAME.train.") if section.startswith("finetune") else meant
            return tuned if self.known else ""
        lasts = {key: key.rpartition(".")[2] for key in self.all}
        here = [key for key in self.all if key == f"{section}.{lasts[key]}".lstrip(".")]
        for keys in (here, self.all):
            near = difflib.get_close_matches(last, [lasts[key] for key in keys], 1, 0.7)
            # Of several keys of that name, one that is in the same section.
            inside = sorted((key for key in keys if lasts[key] in near), key=lambda key: not key.startswith(section))
            if inside:
                return inside[0]
        return next(iter(difflib.get_close_matches(dotted, self.all, 1, 0.6)), "")

    def unknown(self, dotted: str) -> str:
        """The line about a key that there is not."""
        dashes = "" if self.has_sections else "--"
        if nearest := self.nearest(dotted):
            return f"unknown key {dashes}{dotted}; the nearest is {dashes}{nearest}, see {self.where(nearest)}"
        place = f"{REFERENCE} has all keys" if self.has_sections else f"see {self.prog} --help"
        return f"unknown key {dashes}{dotted}; {place}"


def check_words(argv: Sequence[str], keys: Keys) -> None:
    """`UserError` for an option that is none."""
    for word in argv[: argv.index("--") if "--" in argv else len(argv)]:
        dotted = word.removeprefix("--").split("=")[0].removesuffix("+")
        general = keys.general(dotted)
        above = keys.known.get(general.rpartition(".")[0])
        if word in ("-h", "--help") or not word.startswith("--") or (above and above.kind == "pairs"):
            continue
        if above and above.kind != "stages":
            raise UserError(f"--{dotted}: give --{dotted.rpartition('.')[0]} as a whole: {above.wanted}")
        if general not in keys.all or general.endswith(f".{schema_keys.NAME}"):
            raise UserError(keys.unknown(dotted))


def check_file(path: Path, keys: Keys) -> None:
    """`UserError` for a key in a YAML file that is none, or a section that is no section; not YAML at all is left."""
    import yaml

    try:
        root = yaml.compose(path.read_text(encoding="utf-8", errors="replace"), Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return
    if root is None:
        raise UserError(f"{path}: is empty; a recipe has KEY: VALUE lines, see {REFERENCE}")
    for message, line in _wrong(root, keys.kind, "", keys):
        raise UserError(f"{path}: line {line}: {message}")


def _wrong(node: Any, kind: type, prefix: str, keys: Keys) -> Iterator[tuple[str, int]]:
    """What is wrong in the node of a section, with its line."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        name = prefix.rstrip(".")
        what = f"{name}: has keys of its own" if name else "no key is here"
        return (yield f"{what}; write KEY: VALUE lines, see {keys.where(name)}", node.start_mark.line + 1)
    hints = typing.get_type_hints(kind)
    for key, value in node.value:
        dotted, nested = f"{prefix}{key.value}", schema_keys.nested_kind(hints.get(key.value))
        if key.tag == "tag:yaml.org,2002:merge":
            yield from _wrong(value, kind, prefix, keys)
        elif key.value not in hints:
            yield keys.unknown(dotted), key.start_mark.line + 1
        elif nested and typing.get_origin(hints[key.value]) is list:
            for item in value.value if isinstance(value, yaml.SequenceNode) else []:
                yield from _wrong(item, nested, f"{dotted}.", keys)
        elif nested and typing.get_origin(hints[key.value]) is dict:
            for name, item in value.value if isinstance(value, yaml.MappingNode) else []:
                if name.tag != "tag:yaml.org,2002:str":
                    yield (
                        f"{dotted}: {name.value} is not a text to YAML, so no name; write it in quotes",
                        key.start_mark.line + 1,
                    )
                yield from _wrong(item, nested, f"{dotted}.{name.value}.", keys)
        elif nested and not (value.tag == "tag:yaml.org,2002:null" and hints[key.value] is not nested):
            yield from _wrong(value, nested, f"{dotted}.", keys)


def readable(error: BaseException, keys: Keys, section: str = "") -> tuple[str, str]:
    """One line for an error of the argument parser; and the key, if its value is what is wrong.

    Args:
        section: that the parser parsed, if it was not the whole recipe.
    """
    text = " ".join(str(error).split())
    if found := re.search(r"Expected a (.*?)Got value: (.*?)(?: - Expected a <class 'NoneType'>.*)?$", text):
        dotted = ".".join(filter(None, [section, _dotted(text[: found.start()])]))
        return _wrong_value(dotted, found[1], found[2], keys)
    if found := re.search(r"argument --([\w.-]+): expected one argument", text):
        known = keys.known.get(found[1])
        return f"--{found[1]}: its value is missing{f'; give {known.wanted}' if known else ''}", ""
    if found := re.search(r"arguments are required: ([\w, ]+)", text):
        if key := _dotted(text):
            return f"{key}: {found[1]} is missing; see {keys.where(key)}", key
        names = ", ".join(f"--{name}" if name in keys.own else name.upper() for name in found[1].split(", "))
        return f"missing: {names}; see {keys.prog} --help", ""
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        return _stray(found[1], keys), ""
    if found := re.search(r"argument (\w+): invalid choice: '(.*)' \(choose from (.*)\)", text):
        choices = found[3].replace("'", "")  # Python 3.11 has them in quotes
        return f"{found[1]}: {found[2]} is none of {choices}; choose one of them", ""
    if found := re.search(r"[kK]ey \"([\w.]+)\": Unable to load config", text):
        return f"{found[1]}: has keys of its own; give --{found[1]}.KEY, see {keys.where(found[1])}", ""
    if "Problems parsing config" in text:
        return f"not YAML ({text.split(': ', 1)[-1]}); correct it", "config"
    return text.replace("Parser key ", "key "), ""


def _dotted(text: str) -> str:
    """The key that an error is about, of which the parser names the parts: an outer key, then those in it."""
    dotted = ""
    for part in re.findall(r'key "([\w.]+)"', text):
        dotted = part if not dotted or part.startswith(f"{dotted}.") else f"{dotted}.{part}"
    return dotted


def _wrong_value(dotted: str, expected: str, value: str, keys: Keys) -> tuple[str, str]:
    dashes = "--" * (dotted in keys.own)
    if dotted == "mesh":
        wanted = "no whole number of devices along an axis; write {fsdp: 4, tensor: 2}, say,"
    else:
        wanted = f"not {keys.wanted(dotted, expected)};"
    return f"{dashes}{dotted}: {value} is {wanted} see {keys.where(dotted)}", dotted


def _stray(word: str, keys: Keys) -> str:
    """The line about a word that belongs to nothing."""
    if word.startswith("-"):
        return f"{word}: no such option; see {keys.prog} --help"
    if keys.kind is Recipe and keys.has_sections and (word in shipped.recipes() or Path(word).is_file()):
        return f"{word}: the recipe is the first word after the verb: {keys.prog} {word} ..."
    return f"{word}: a word too many; an option begins with --, see {keys.prog} --help"
