"""From a YAML file and the command line to a checked `Recipe` and its run directory."""

import dataclasses
import difflib
import re
import types
import typing
from pathlib import Path
from typing import Any

from tpullm import storage
from tpullm.config import Recipe, check
from tpullm.errors import UserError


def add_recipe_arguments(parser) -> None:
    """`--config FILE` and one option for every key of the recipe."""
    import jsonargparse

    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="the recipe, a YAML file")
    parser.add_class_arguments(Recipe)


def open_run(parser, arguments) -> tuple[Recipe, Path]:
    """The recipe and the run directory.

    Without `--config` the recipe is `RUN/recipe.yaml`; the recipe is kept there.

    Raises:
        UserError: no recipe, a run directory that belongs to another recipe, or a value that no run could have.
    """
    run = Path(arguments.run)
    kept = run / "recipe.yaml"
    recipe = _instantiate(parser, arguments)
    if not arguments.config:
        if not kept.exists():
            raise UserError(f"{kept}: no such recipe; give one with --config FILE, or --run RUN of a run that has one")
        recipe = _merge(parser, kept, arguments)
    elif kept.exists():
        owner = load(kept).name
        if owner != recipe.name:
            raise UserError(f"{run}: was made by the recipe '{owner}', not '{recipe.name}'; choose another --run")
    check(recipe)
    text = dump(recipe)
    if not kept.exists() or kept.read_text(encoding="utf-8") != text:
        storage.write_text(kept, text)
    return recipe, run


def _merge(parser, kept: Path, arguments) -> Recipe:
    """The kept recipe with what the command line overrides."""
    from jsonargparse import dict_to_namespace

    defaults = parser.get_defaults()
    base = dict_to_namespace(_yaml(kept))
    for key, value in arguments.items():
        if key in defaults and value != defaults[key]:
            base[key] = value
    return _instantiate(parser, parser.parse_object(base.as_dict()))


def _instantiate(parser, arguments) -> Recipe:
    values = parser.instantiate(arguments) if hasattr(parser, "instantiate") else parser.instantiate_classes(arguments)
    names = [field.name for field in dataclasses.fields(Recipe)]
    return Recipe(**{name: values[name] for name in names})


def load(path: Path | str, overrides: list[str] = ()) -> Recipe:
    """The recipe in a YAML file, checked; `overrides` as on the command line (`--pretrain.steps=20`)."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    add_recipe_arguments(parser)
    try:
        arguments = parser.parse_args([f"--config={path}", *overrides])
    except Exception as error:
        raise UserError(f"{path}: {readable(error)}") from error
    return check(_instantiate(parser, arguments))


def dump(recipe: Recipe) -> str:
    """The whole recipe as YAML, every key with its value."""
    import yaml

    header = "# Written by tpullm: the whole recipe of this run. Change it and `tpullm run` makes what depends on it again.\n"
    return header + yaml.safe_dump(dataclasses.asdict(recipe), allow_unicode=True, sort_keys=False, width=120)


def _yaml(path: Path) -> dict:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())[:160]})") from error


def readable(error: BaseException) -> str:
    """One line for an error of the argument parser: which key, what is wrong, and the nearest key if it is unknown."""
    text = " ".join(str(error).split())
    unknown = re.search(r"(?:does not accept (?:option|nested key)|Option|unrecognized arguments:|Key) '?-*([\w.]+)'?", text)
    if unknown and ("accept" in text or "unrecognized" in text or "not expected" in text):
        key = unknown.group(1)
        group = re.search(r"[Gg]roup '([\w.]+)'", text) or re.search(r'Parser key "([\w.]+)"', text)
        full = f"{group.group(1)}.{key}" if group and not key.startswith(group.group(1)) else key
        nearest = difflib.get_close_matches(full, keys(), 1, 0.4) or difflib.get_close_matches(key, keys(), 1, 0.4)
        return f"unknown key {full}" + (f"; the nearest is {nearest[0]}" if nearest else "")
    return re.sub(r"Problem with given class_path '[\w.]+': ", "", text).replace("Parser key ", "key ")


def keys(kind: Any = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key of the recipe."""
    found = []
    for name, hint in typing.get_type_hints(kind).items():
        nested = _dataclass_in(hint)
        found.append(prefix + name)
        if nested:
            found += keys(nested, f"{prefix}{name}.")
    return found


def _dataclass_in(hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return hint
    if typing.get_origin(hint) in (list, typing.Union, types.UnionType):
        return next((found for part in typing.get_args(hint) if (found := _dataclass_in(part))), None)
    return None
