"""From a YAML file and the command line to a checked `Recipe`."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpullm.recipe import mistakes, named_sections, schema_keys, shipped
from tpullm.recipe.checks import check
from tpullm.recipe.mistakes import Keys
from tpullm.recipe.schema import Recipe
from tpullm.system import storage
from tpullm.system.errors import UserError


def add_recipe_arguments(parser) -> None:
    """`--config FILE` and one option for every key of the recipe."""
    import jsonargparse

    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="the recipe, a YAML file")
    parser.add_class_arguments(Recipe)


def parse(parser, argv: list[str], kind: type = Recipe):
    """The parsed command line; what is wrong in it, or in the file of a `kind` that it names, is a `UserError`."""
    given = _given(argv := _files_first(_found(argv, launch=kind is not Recipe)))
    files = [Path(value) for option, value in given if option == "config" and not value.startswith("--")]
    known = Keys(parser, kind)
    _check_repeated(given, list(known.known))
    mistakes.check_words(argv, known)
    for file in files if known.has_sections else []:
        mistakes.check_file(file, known)
    argv = named_sections.joined(argv, files, known)
    try:
        return parser.parse_args(argv)
    except Exception as error:
        message, key = mistakes.readable(error, known)
        if key.partition(".")[0] in named_sections.KINDS:
            message, key = named_sections.mistake(argv, files, known) or (message, key)
        typed = key != "config" and any(f"{key}.".startswith(f"{option}.") for option, _ in given)
        raise UserError(f"{files[-1]}: {message}" if key and files and not typed else message) from error


def _files_first(argv: list[str]) -> list[str]:
    """`--config FILE` before all else, wherever it stands: what is typed counts, whatever the file says."""
    files, rest, words = [], [], iter(argv)
    for word in words:
        if word == "--config":
            files += [word, *itertools.islice(words, 1)]
        else:
            (files if word.startswith("--config=") else rest).append(word)
    return files + rest


def _recipe_first(argv: list[str]) -> list[str]:
    """The first word of a verb's command line, if it is no option, is its recipe, as `--config` would be."""
    return ["--config", *argv] if argv and not argv[0].startswith("-") else argv


def _found(argv: list[str], launch: bool) -> list[str]:
    """The command line with the path of a file on this machine for each name, and each file on `gs://`."""
    found = list(argv)
    for place, argument in enumerate(argv):
        prefix = "--config=" if argument.startswith("--config=") else ""
        value = argument.removeprefix(prefix)
        if prefix or (argv[place - 1 : place] == ["--config"] and not value.startswith("--")):
            path = shipped.find(value, launch)
            found[place] = prefix + str(storage.local_copy(storage.path(path)) if storage.is_remote(path) else path)
    return found


def _given(argv: list[str]) -> list[tuple[str, str]]:
    """Options and their values: `--a b` and `--a=b`."""
    pairs = [(a.removeprefix("--"), b) for a, b in zip(argv, argv[1:], strict=False) if a.startswith("--")]
    apart = [tuple(a.removeprefix("--").split("=", 1)) for a in argv if a.startswith("--") and "=" in a]
    return [(option, value) for option, value in pairs if "=" not in option] + apart


def _check_repeated(given: list[tuple[str, str]], known: list[str]) -> None:
    """`UserError` if a recipe, or a value of a recipe's key, has a key twice: YAML would keep the last and say nothing.

    What is not YAML at all is left for the parser to refuse.
    """
    import yaml

    for option, value in given:
        path = Path(value)
        if option == "config" and path.is_file():
            text, where, prefix = path.read_text(encoding="utf-8", errors="replace"), f"{value}: line {{line}}: ", ""
        elif option in known:
            text, where, prefix = value, "", f"{option}."
        else:
            continue
        with contextlib.suppress(yaml.YAMLError):
            for key, line in _repeated(yaml.compose(text, Loader=yaml.SafeLoader), prefix):
                raise UserError(f"{where.format(line=line)}{key} is given twice; keep one of them")


def _repeated(node: Any, prefix: str) -> Iterator[tuple[str, int]]:
    """The dotted name of each key that stands in its mapping a second time, and its line."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield f"{prefix}{key.value}", key.start_mark.line + 1
            seen.add(key.value)
            yield from _repeated(value, f"{prefix}{key.value}.")
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, prefix)


def load(path: Path | str, overrides: list[str] = ()) -> Recipe:
    """The recipe in a YAML file, checked; `overrides` as on the command line (`--pretrain.steps=20`)."""
    return of_command_line([f"--config={path}", *overrides])


def of_command_line(argv: list[str]) -> Recipe:
    """The recipe of a verb's command line, checked; the run directory is looked at only if the line names no recipe."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_recipe_arguments(parser)
    return recipe_of(parser, argv)[0]


def recipe_of(parser, argv: list[str]) -> tuple[Recipe, Any]:
    """The checked recipe, and the parsed command line.

    The recipe is the first word, a name or a path (`shipped.find`), or that of `--config`; without one it is
    `RUN/recipe.yaml`.

    Raises:
        UserError: no recipe, or a value that no run could have.
    """
    arguments = parse(parser, argv := _recipe_first(argv))
    if not arguments.config:
        arguments = parse(parser, ["--config", str(_kept(arguments.run)), *argv])
    values = parser.instantiate(arguments) if hasattr(parser, "instantiate") else parser.instantiate_classes(arguments)
    return check(Recipe(**{field.name: values[field.name] for field in dataclasses.fields(Recipe)})), arguments


def _kept(run: str) -> Path:
    """The recipe in a run directory; `UserError` if there is none."""
    kept = storage.path(run) / "recipe.yaml"
    if run == Recipe().run and not kept.exists():
        raise UserError(
            "which recipe? Name one after the verb, such as quickstart (`tpullm recipes` lists them), or give --run "
            "with a run directory"
        )
    if not kept.exists():
        raise UserError(f"{kept}: no such recipe; name one (`tpullm recipes` lists them), or give the --run of a run")
    return kept


def dump(recipe: Recipe) -> str:
    """The whole recipe as YAML, every key with its value."""
    import yaml

    header = "# Written by tpullm: the whole recipe of this run. `tpullm run` makes again what a change concerns.\n"
    return header + yaml.safe_dump(dataclasses.asdict(recipe), allow_unicode=True, sort_keys=False, width=120)


def keys(kind: type = Recipe) -> list[str]:
    """Every dotted key of the recipe, sections among them."""
    found = []
    for section in schema_keys.sections(kind):
        found += [section.name] * bool(section.name and not section.repeated)
        found += [section.dotted(key) for key in section.keys]
    return found
