"""The YAML files that come with tpullm, by name: the recipes, and the settings of `tpullm launch`.

`tpullm/configs` is a link to `configs/` in a checkout and a folder in a wheel, so the files have one place in both.
"""

import difflib
import re
from pathlib import Path

from tpullm.system import storage
from tpullm.system.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
FIELD = re.compile(r"#   (\w+) +(\S.*)")
CONTINUED = re.compile(r"# {10,}(\S.*)")


def recipes() -> dict[str, Path]:
    """The recipes by name, which is the stem of the file."""
    found = (path for folder in ("", "pretrain/", "tune/") for path in sorted(CONFIGS.glob(f"{folder}*.yaml")))
    return {path.stem: path for path in found}


def launches() -> dict[str, Path]:
    """The settings of `tpullm launch` by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("launch/*.yaml"))}


def find(word: str, launch: bool = False) -> str:
    """The path of the recipe (or, with `launch`, of the launch settings) that the user means by `word`.

    A word with a slash or an ending (`./mine`, `mine.yaml`, `gs://bucket/mine.yaml`) is a path. Any other word is a
    name that comes with tpullm, so a documented command does the same in every folder, whatever files lie there. If
    there is no such name, the word is the path of a file without an ending.

    Raises:
        UserError: there is neither such a name nor such a file.
    """
    if storage.is_remote(word):
        return word
    path, named = Path(word), launches() if launch else recipes()
    is_name = "/" not in word and not path.suffix
    if is_name and word in named:
        return str(named[word])
    if path.is_file():
        return word
    if path.is_dir():
        raise UserError(f"{word}: is a folder; give a YAML file, a name of `tpullm recipes`, or a run directory")
    nearest = difflib.get_close_matches(path.stem, named, 1, 0.7)
    known = f"the names are {', '.join(named)}" if launch else "`tpullm recipes` lists all names"
    missing = "file or run directory" if not is_name else "launch settings" if launch else "recipe"
    raise UserError(
        f"{word}: no such {missing}; " + (f"the nearest name is {nearest[0]} ({known})" if nearest else known)
    )


def is_run(word: str) -> bool:
    """Whether the user means a run directory by `word`, and not a recipe by its name or its file."""
    if word in recipes() or Path(word).suffix in (".yaml", ".yml"):
        return False
    return (storage.path(word) / "recipe.yaml").is_file()


def head(path: Path) -> dict[str, str]:
    """What the comment at the top of a recipe says: `title`, and its fields `command`, `hardware`, `time`, `result`."""
    found, last = {"title": ""}, "title"
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if field := FIELD.fullmatch(line):
            last = field[1]
            found[last] = field[2]
        elif more := CONTINUED.fullmatch(line) if last != "title" else re.fullmatch(r"# (\S.*)", line):
            found[last] = f"{found[last]} {more[1]}".strip()
    return found
