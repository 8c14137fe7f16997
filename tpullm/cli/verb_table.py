"""The verbs, whose table is `verb_table.yaml`: for each a line of help, the keys that it reads, and two examples.

A verb's module has its name (`import_` for `import`). `tpullm VERB --help` begins with the module's docstring.
"""

import keyword
from dataclasses import dataclass, field
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Verb:
    """One verb.

    Args:
        help: its line in the overview.
        examples: command lines that work, without `tpullm VERB`.
        keys: keys and sections of the recipe that the verb reads, the most important section first. A verb with keys
            takes a recipe (a name or a file, `--run`, `--section.key`). Keys that it only compares, to see whether an
            earlier stage is up to date, are not listed.
        writes: it makes a stage, so the recipe is kept in the run directory.
        computes: it computes with JAX, in a process whose environment is set up first
            (`system/process/environment.py`).
        reads: it parses its command line itself.
        joins: it takes no recipe, and several hosts can run it together.
        shows: an option with which it reads a MODEL that was made, instead of a recipe (`show_main` of its module).
        options: it has options beside the keys of its recipe.
    """

    help: str
    examples: list[str]
    keys: list[str] = field(default_factory=list)
    writes: bool = False
    shows: str = ""
    computes: bool = True
    reads: bool = False
    joins: bool = False
    options: bool = False

    @property
    def recipe(self) -> bool:
        """Whether it takes a recipe."""
        return bool(self.keys)

    @property
    def adds(self) -> str:
        """The function of its module that adds options to its parser; empty if it has none."""
        return "add_show_arguments" if self.shows else "add_arguments" if self.options or not self.recipe else ""


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C: 2 ms of each start, else 29
_TABLE = yaml.load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"), _LOADER)
VERBS = {name: Verb(**of) for name, of in _TABLE["verbs"].items()}
GROUPS: dict[str, list[str]] = _TABLE["groups"]  # of verbs in the overview


def module_of(verb: str) -> str:
    """The name of a verb's module. A verb that is a keyword of Python gets an underscore."""
    return f"tpullm.cli.{verb}{'_' * keyword.iskeyword(verb)}"
