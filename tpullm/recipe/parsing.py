"""From a YAML file and the words of a command line to checked settings: a `Recipe`, or another class of settings.

The file becomes plain values, and each `--section.key VALUE` is put into them as YAML. pydantic then checks all of it
at once, and `contradictions` of the settings what no type can say. The first mistake is a `UserError` of one line. It
names the file and the line if the key stands in the file and not on the command line.

The words that are no keys are options of the verb, which argparse reads. jsonargparse, which read all of it before,
took 0.2 s of processor time for each recipe. This takes 0.15 s for the first one, and 0.01 s for every other one.
"""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, NoReturn

import yaml

from tpullm.hardware import topologies
from tpullm.recipe import mistakes, schema_keys, shipped
from tpullm.recipe.mesh_axes import check_sizes
from tpullm.recipe.mistakes import Keys
from tpullm.recipe.schema import ALONE, Recipe
from tpullm.system import storage
from tpullm.system.errors import UserError


class Parser(argparse.ArgumentParser):
    """The options of a verb, without the keys of its settings.

    Args:
        prog: the beginning of its command lines.
    """

    def __init__(self, prog: str = "tpullm"):
        super().__init__(prog=prog, add_help=False)

    def keys(self, kind: type | None = None) -> Keys:
        """These options, and the keys of the settings."""
        return Keys(self.prog, [name.lstrip("-") for name in self._option_string_actions], kind)

    def error(self, message: str) -> NoReturn:
        """Pass on what argparse says; `parse` puts it into our words."""
        raise argparse.ArgumentError(None, message)


def load(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, checked; `overrides` as on the command line (`--pretrain.steps=20`)."""
    return of_command_line([f"--config={path}", *overrides])


def of_command_line(argv: Sequence[str]) -> Recipe:
    """The recipe of a verb's command line, checked; the run directory is looked at only if the line names no recipe."""
    return recipe_of(Parser(), argv)[0]


def recipe_of(parser: Parser, argv: Sequence[str]) -> tuple[Recipe, argparse.Namespace]:
    """The checked recipe, and the other options of the command line.

    The recipe is the first word, a name or a path (`shipped.find`), or that of `--config`; without one it is
    `RUN/recipe.yaml`. RUN is that of `--run`, or the first word. A recipe with `--text` and without `--run` works in a
    directory of the text's name, so no text takes the place of another, or of the recipe's own run.

    Raises:
        UserError: no recipe, or a value that no run could have.
    """
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        argv[:1] = ["--run" if shipped.is_run(argv[0]) else "--config", argv[0]]
    files, changes, _ = _sorted_words(argv, parser.keys(Recipe))
    if not files:
        run = dict(changes).get("run", Recipe().run)
        kept = storage.path(run) / "recipe.yaml"
        if not kept.exists() and run == Recipe().run:
            raise UserError(
                "which recipe? Name one after the verb, such as quickstart (`tpullm recipes` lists them), or a "
                "run directory"
            )
        if not kept.exists():
            fix = "name one (`tpullm recipes` lists them), or the directory of a run"
            raise UserError(f"{kept}: no such recipe; {fix}")
        argv = ["--config", str(kept), *argv]
    recipe, options = settings_of(parser, argv, Recipe)
    if files and dict(changes).get("text") and "run" not in dict(changes):
        recipe = dataclasses.replace(recipe, run=_run_of_text(recipe))
    return recipe, options


def _run_of_text(recipe: Recipe) -> str:
    """The run directory of a text: beside that of the recipe, with the name of the file or folder. The name of a recipe
    is for the run of that recipe."""
    named = recipe.text if storage.is_remote(recipe.text) else Path(recipe.text).resolve()
    name = re.sub(r"[^\w-]+", "-", PurePath(named).stem).strip("-")[:60] or "text"
    beside, slash, _ = recipe.run.rstrip("/").rpartition("/")
    return f"{beside}{slash}{name}{'-text' * (name in shipped.recipes())}"


def settings_of(parser: Parser, argv: Sequence[str], kind: type) -> tuple[Any, argparse.Namespace]:
    """The checked settings of a `kind`, such as `Recipe`, and the other options of the command line."""
    keys = parser.keys(kind)
    names, changes, rest = _sorted_words(argv, keys)
    files = [_settings_file(shipped.find(name, launch=kind is not Recipe)) for name in names]
    options = _argparse_options(parser, rest, keys)
    values = functools.reduce(_merged_section, (values for _, _, values in files), {})
    stages = {*(values.get("finetune") or {})}
    for option, text in changes:
        _put_option(values, option, text, keys)
    for option, _ in changes:  # a stage of the command line alone reads something, or its name is misspelt
        section, _, name = option.rpartition(".")[0].partition(".")
        name = name.partition(".")[0]
        if section == "finetune" and name.lower() not in stages and difflib.get_close_matches(name, stages):
            if not {"documents", "conversations", *ALONE} & {*values["finetune"][name]}:
                raise UserError(f"--{option}: {section} has no {name}; there are {', '.join(sorted(stages))}")

    def place(loc: tuple) -> str:
        whole = [schema_keys.general(option, keys.sections) for option, _ in changes]  # corpus.sources.path
        typed = any(f"{mistakes.dotted_key(loc)}.".startswith(f"{one}.") for one in [*whole, *dict(changes)])
        found = [(path, line) for path, root, _ in files if not typed and (line := _line_of_key(root, loc))]
        return "{}: line {}: ".format(*found[-1]) if found else ""

    return _checked_settings(values, kind, keys, place), options


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The options of a verb that takes no settings."""
    keys = parser.keys()
    return _argparse_options(parser, _sorted_words(argv, keys)[2], keys)


def value_of(key: str, text: str) -> Any:
    """The value of a key at the top of a recipe, from its text; `UserError` if it can't have that value."""
    keys = Parser().keys(Recipe)
    return getattr(_checked_settings({key: _yaml_value(text, f"{key}.")}, Recipe, keys, lambda loc: "--"), key)


def dump(recipe: Recipe) -> str:
    """The whole recipe as YAML, every key with its value."""
    header = "# Written by tpullm: the whole recipe of this run. `tpullm run` makes again what a change concerns.\n"
    return header + yaml.safe_dump(dataclasses.asdict(recipe), allow_unicode=True, sort_keys=False, width=120)


# ---------------------------------------------------------------- the command line


def _sorted_words(argv: Sequence[str], keys: Keys) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """A command line, sorted: the values of `--config`; keys of the settings with their texts; words for argparse."""
    files, changes, rest, words = [], [], [], iter(argv)
    for word in words:
        option, equals, value = word.removeprefix("--").partition("=")
        if word == "--":
            rest.extend([word, *words])
        elif not word.startswith("--") or option in keys.own:
            rest.append(word)
        else:
            is_file = option == "config" and keys.kind is not None
            if not is_file:
                keys.check(option)
            if not equals and (value := next(words, "--")).startswith("--"):
                raise UserError(f"--{option}: its value is missing; give {keys.wanted(option)}")
            files.append(value) if is_file else changes.append((option, value))
    return files, changes, rest


def _argparse_options(parser: Parser, words: Sequence[str], keys: Keys) -> argparse.Namespace:
    try:
        return parser.parse_args(words)
    except argparse.ArgumentError as error:
        raise UserError(mistakes.of_option(str(error), keys)) from error


def _put_option(values: dict[str, Any], option: str, text: str, keys: Keys) -> None:
    """Put the text of `--option` into the values, as YAML unless its key holds a text."""
    above, _, last = option.rpartition(".")
    key, holder = keys.find(option), keys.find(above)
    is_text = key.kind == "str" if key else bool(holder and holder.holds is str)
    value = text if is_text else _yaml_value(text, f"{option}.")
    node, names = values, above.split(".") if above else []
    for place, name in enumerate(names, 1):
        inner = node.get(name)
        if ".".join(names[:place]) in (section.name for section in keys.sections if section.repeated):
            found = [dict(one) if isinstance(one, dict) else {} for one in inner or []]  # one of them, by its name
            node[name], chosen = found, [one for one in found if one.get("name") == names[-1]]
            if len(chosen) != 1:
                known = ", ".join(str(one.get("name")) for one in found) or "none"
                raise UserError(f"--{option}: {'.'.join(names[:-1])} has no {names[-1]}; there are {known}")
            node = chosen[0]
            break
        if not isinstance(inner, dict):
            pairs = keys.find(".".join(names[:place]))
            inner = _yaml_value(pairs.default, "") if pairs else {}
        node[name] = node = dict(inner)  # a copy: two sections of a file may be one, by an anchor
    if key or holder:
        node[last] = value
    elif isinstance(value, dict):
        node[last] = _merged_section(node.get(last), value)
    else:
        raise UserError(f"{option}: has keys of its own; give --{option}.KEY, see {keys.where(option)}")


def _merged_section(old: Any, new: Any) -> Any:
    """A section with other values of some of its keys."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {name: _merged_section(old.get(name), value) for name, value in new.items()}


# ---------------------------------------------------------------- YAML


MOST_CHARACTERS = 1_000_000  # of a recipe; the longest shipped one has 9,000, and PyYAML reads 60,000 a second
MOST_VALUES = 20_000  # of a recipe, with those of an alias wherever it stands; a shipped one has at most 300

MOST_DIGITS = 15  # of a whole number


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number too, and a date is a text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*[eE][-+]?\d+"), list("-+0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)


def _read_yaml(text: str, where: str, prefix: str) -> tuple[yaml.Node | None, Any]:
    """The nodes and the values of YAML.

    Args:
        where: the file, for the message; empty is the command line.
        prefix: of the keys in it.

    Raises:
        UserError: a mapping repeats a key, a key is not a text, a number has too many digits (Python refuses 4,300, and
            `1:1:1` is a number in base 60 of any length), or there are too many values (aliases can make billions of
            them in a few lines).
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        for message, line in _wrong_keys(root, prefix, itertools.count()):
            raise UserError(f"{where}: line {line}: {message}" if where else message)
        return root, None if root is None else loader.construct_document(root)
    except RecursionError:
        raise UserError(f"{where or prefix.rstrip('.')}: values without end within values; correct it") from None


def _wrong_keys(node: yaml.Node | None, prefix: str, visits: Iterator[int]) -> Iterator[tuple[str, int]]:
    """What is wrong with a key of a mapping, or with too many values, and the line.

    Args:
        visits: counts the values, those of an alias at each place.
    """
    if next(visits) > MOST_VALUES:
        yield f"more than {MOST_VALUES:,} values, aliases written out; remove some", node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                yield f"{prefix}?: a key is a list or a mapping, so no name; write a text", line
            elif key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                yield f"{name}: is not a text to YAML, so no name; write it in quotes", line
            elif key.value in seen:
                yield f"{name} is given twice; keep one of them", line
            seen.add(key.value)
            yield from _wrong_keys(value, f"{name}.", visits)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _wrong_keys(item, prefix, visits)
    elif node and node.tag == "tag:yaml.org,2002:int" and len(node.value.replace("_", "")) > MOST_DIGITS:
        wrong = f"{node.value[:MOST_DIGITS]}… has more than {MOST_DIGITS} digits; use a smaller number"
        yield f"{prefix.rstrip('.')}: {wrong}", node.start_mark.line + 1
    elif node and (half := re.search("[\ud800-\udfff]", node.value)):
        yield f"{prefix.rstrip('.')}: {half[0]!a} is half a character; write the whole one", node.start_mark.line + 1


def _yaml_value(text: str, prefix: str) -> Any:
    """The value of a text on the command line; the text itself if it is no YAML."""
    with contextlib.suppress(yaml.YAMLError, ValueError, TypeError):
        return _read_yaml(text, "", prefix)[1]
    return text


def _settings_file(path: str) -> tuple[str, yaml.Node, dict[str, Any]]:
    """A YAML file of settings: where it is, its nodes, which know their lines, and its values."""
    if storage.is_remote(path):
        path = str(storage.local_copy(storage.path(path)))
    try:
        storage.check_file(Path(path))
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error}); name another file") from error
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{path}: has more than {MOST_CHARACTERS:,} characters, so it is no recipe; name another file")
    try:
        root, values = _read_yaml(text, path, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        look = "look there and above for a missing colon, quote, bracket or space"
        wrong = f"not YAML from column {mark.column + 1} on; {look}"
        if "\t" in re.match(r"\s*", (text.splitlines() + [""])[mark.line])[0]:
            wrong = "a tab can't indent YAML; use spaces"
        raise UserError(f"{path}: line {mark.line + 1}: {wrong}") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:  # `!!int x` is a ValueError
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())}); write it again, in UTF-8") from error
    see = f"KEY: VALUE lines, see {mistakes.REFERENCE}"
    if values is None:
        raise UserError(f"{path}: is empty; a recipe has {see}")
    if not isinstance(values, dict):
        wrong = f"no key is here; write {see}#recipe"
        raise UserError(f"{path}: line {root.start_mark.line + 1}: {wrong}")
    return path, root, values


def values_in(path: str) -> dict[str, Any]:
    """The values of a YAML file of settings, as they stand there."""
    return _settings_file(path)[2]


def _line_of_key(node: yaml.Node, loc: tuple) -> int | None:
    """The line of a key; None if it is not there.

    Args:
        loc: names of keys and places in lists, from the top.
    """
    at = node
    for part in loc:
        if isinstance(part, int) and isinstance(node, yaml.SequenceNode):
            at = node = node.value[part]
        else:
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            found = [pair for pair in pairs if pair[0].value == part]
            if not found:
                return None
            at, node = found[-1]
    return at.start_mark.line + 1


# ---------------------------------------------------------------- the checks


@functools.cache
def _settings_adapter(kind: type) -> Any:
    """pydantic's check of JSON: a list of one `kind`, of exactly its types, ranges and keys."""
    from pydantic import TypeAdapter

    return TypeAdapter(list[kind], config={"extra": "forbid", "strict": True})  # a class alone can't be given a config


def _checked_settings(values: dict[str, Any], kind: type, keys: Keys, place: Callable[[tuple], str]) -> Any:
    """The settings that the values are; `UserError` for the first mistake, an unknown key before all others.

    Args:
        place: where a key stands, as the beginning of a line.
    """
    from pydantic import ValidationError

    try:
        (settings,) = _settings_adapter(kind).validate_json(json.dumps([values], default=str))
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda one: one["type"] != mistakes.UNKNOWN)
        loc, message = mistakes.of_value(first | {"loc": first["loc"][1:]}, keys)
        raise UserError(place(loc) + message) from error
    for dotted, message in _contradictions(settings, ""):
        raise UserError(f"{place(tuple(dotted.split('.')))}{dotted}: {message}")
    if kind is Recipe:
        for name in map(str.strip, settings.topology.split(",")):  # several are for `plan`, which also takes `local`
            if name not in ("", "local"):
                topologies.parse(name)
        check_sizes(settings.mesh)
    return settings


def _contradictions(settings: Any, dotted: str) -> Iterator[tuple[str, str]]:
    """What the sections say of themselves, the outer ones last, with whole keys."""
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{dotted}.{field.name}".lstrip(".")
        for key, inner in value.items() if isinstance(value, dict) else [("", value)]:
            if dataclasses.is_dataclass(inner):
                yield from _contradictions(inner, f"{name}.{key}".rstrip("."))
    if hasattr(settings, "contradictions"):
        for key, message in settings.contradictions():
            yield f"{dotted}.{key}".strip("."), message
