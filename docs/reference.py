"""Writes docs/en/reference.md: every key of a recipe and of a launch, from the dataclasses that hold the defaults.

python docs/reference.py
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

import docstring_parser
import yaml

from tpullm.config import Recipe
from tpullm.launchers.settings import LaunchConfig

PAGE = Path(__file__).parent / "en" / "reference.md"
HEAD = """\
# Every recipe key

<!-- Made by `python docs/reference.py`. Change the docstrings in tpullm/config.py, not this page. -->

A recipe is a YAML file. Each of its keys can also be given on the command line, where it wins over the file:

```sh
tpullm plan 8b --topology v6e:16x16 --pretrain.batch_size 1024
```

A key that a recipe leaves out has its default. `RUN/recipe.yaml` holds the whole recipe of a run, defaults included.
An unknown key is an error, and the error names the nearest key. The last section has the keys of
[`tpullm launch`](#launch), which are not part of a recipe.

"""
TABLE = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join([*_section(Recipe, "recipe", "", 2, {}), *_section(LaunchConfig, "launch", "", 2, {})])


def _section(kind: type, name: str, path: str, level: int, seen: dict[type, str]) -> list[str]:
    """The heading and table of a dataclass, then the sections that its fields open."""
    told = docstring_parser.parse(kind.__doc__)
    lines = [f"{'#' * level} {name}", ""]
    if kind in seen:
        return [*lines, f"`{path}` has the same keys as [`{seen[kind]}`](#{seen[kind]}).", ""]
    seen[kind] = name
    hints = typing.get_type_hints(kind)
    meanings = {parameter.arg_name: parameter.description for parameter in told.params}
    where = f" Write `{path}.KEY`." if path and "[]" not in path else ""
    if "[]" in path:
        where = f" `{path.removesuffix('[]')}` is a list of mappings with these keys."
    lines += [_cell(told.short_description) + where, "", *TABLE]
    nested = []
    for field in dataclasses.fields(kind):
        inner, is_list = _dataclass_in(hints[field.name])
        if inner:
            nested.append((inner, field.name, f"{path}.{field.name}".lstrip(".") + "[]" * is_list))
        shown = f"[`{field.name}`](#{field.name})" if inner else f"`{field.name}`"
        meaning = _cell(meanings[field.name])
        lines.append(f"| {shown} | {_type(hints[field.name])} | {_default(field)} | {meaning} |")
    lines.append("")
    for inner, inner_name, inner_path in nested:
        lines += _section(inner, inner_name, inner_path, level + 1 if path else level, seen)
    return lines


def _dataclass_in(hint: Any) -> tuple[type | None, bool]:
    """The dataclass of a section, and whether the key is a list of such sections."""
    if dataclasses.is_dataclass(hint):
        return hint, False
    for part in typing.get_args(hint):
        if dataclasses.is_dataclass(part):
            return part, typing.get_origin(hint) is list
    return None, False


def _type(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (list, tuple):
        inner = _type(parts[0])
        return f"list of {inner}s"
    if origin is dict:
        return f"mapping of {_type(parts[0])} to {_type(parts[1])}"
    if origin in (typing.Union, types.UnionType):
        return f"{_type(parts[0])} or nothing"
    return "section" if dataclasses.is_dataclass(hint) else NAMES[hint]


def _default(field: dataclasses.Field) -> str:
    """As it would stand in a recipe."""
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "required"
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    if dataclasses.is_dataclass(value):
        return ""
    if value is None or value == "":
        return "none" if value is None else "empty"
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=1000)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def _cell(text: str) -> str:
    """One line that begins with a capital and ends with a period, with nothing that breaks a table."""
    line = " ".join(text.split()).replace("|", "\\|").rstrip(".")
    return f"{line[:1].upper()}{line[1:]}."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
