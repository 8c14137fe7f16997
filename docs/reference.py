"""Writes docs/en/reference.md: every key of a recipe and of a launch, as `tpullm.recipe.schema_keys` reads them.

python docs/reference.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # this checkout, wherever tpullm is installed from

from tpullm.launch.job import LaunchConfig  # noqa: E402
from tpullm.recipe.schema import Recipe  # noqa: E402
from tpullm.recipe.schema_keys import NAME, Key, Section, sections  # noqa: E402

PAGE = ROOT / "docs" / "en" / "reference.md"
HEAD = """\
# Every recipe key

<!-- Made by `python docs/reference.py`. Change the docstrings in tpullm/recipe/schema/, not this page. -->

A recipe is a YAML file. Each of its keys can also be given on the command line, where it wins over the file:

```sh
tpullm plan 8b --topology v6e:16x16 --pretrain.batch_size 1024
```

A key that a recipe leaves out has its default. `RUN/recipe.yaml` holds the whole recipe of a run, defaults included.
An unknown key is an error, and the error names the nearest key. The last section has the keys of
[`tpullm launch`](#launch), which are not part of a recipe.

The last column says what happens if you change a key and give the same command again. *Again* makes the stage
again, with the stages that read it; the old one is kept in `RUN/replaced`. The others resume: with *same bits*, with
*roundings*, which is the same result up to the order of sums, with other *skipped steps*, or with another *length*.
"""
COLUMNS = ("key", "type", "default", "meaning", "another value")
TYPES = {
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "str": "text",
    "list": "list",
    "pairs": "mapping",
    "section": "list of sections",
    "stages": "sections by name",
}


def page() -> str:
    """The whole page."""
    lines, seen = [HEAD], {}
    for kind, name in ((Recipe, "recipe"), (LaunchConfig, "launch")):
        for section in sections(kind):
            heading = section.name.removesuffix(f".{NAME}").rpartition(".")[2] or name
            lines += _section(section, heading, seen, len(COLUMNS) - (kind is LaunchConfig))
    return "\n".join(lines)


def _section(section: Section, name: str, seen: dict[tuple[Key, ...], str], columns: int) -> list[str]:
    """The heading of a section, which is its anchor, and the table of its keys, with the first `columns`."""
    depth = section.name.replace(f".{NAME}", "").count(".")
    lines = [f"{'#' * (2 + depth)} {name}", ""]
    if section.keys in seen:
        return [*lines, f"`{section.name}` has the same keys as [`{seen[section.keys]}`](#{seen[section.keys]}).", ""]
    seen[section.keys] = name
    if section.repeated:
        lines += [f"`{section.name}` is a list of mappings with these keys.", ""]
    elif section.name:
        lines += [f"{_cell(section.title)} Write `{section.name}.KEY`.", ""]
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(_cells, section.keys)]
    return [*lines, *(f"| {' | '.join(row[:columns])} |" for row in rows), ""]


def _cells(key: Key) -> list[str]:
    shown = f"[`{key.name}`](#{key.name})" if key.kind in ("section", "stages") else f"`{key.name}`"
    kind = ", ".join(f"`{choice}`" for choice in key.choices if choice) or TYPES[key.kind]
    default = f"`{key.default}`" if key.default else ""
    return [shown, kind, default, _cell(key.help), key.changes.value]


def _cell(text: str) -> str:
    """One line that begins with a capital and ends with a period, with nothing that breaks a table."""
    line = " ".join(text.split()).replace("|", "\\|").rstrip(".")
    return f"{line[:1].upper()}{line[1:]}."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
