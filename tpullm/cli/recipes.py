"""List the recipes that come with tpullm, or print one to copy.

The machine, the time and the result of each come from the comment at the top of its file.
"""

import shutil
import textwrap
from pathlib import Path

from tpullm.cli.options import add_json, print_json
from tpullm.recipe import shipped
from tpullm.system.errors import UserError

WIDEST = 100  # characters of a line


def add_arguments(parser) -> None:
    """The options of `tpullm recipes`."""
    parser.add_argument("name", nargs="?", default="", help="print the YAML file of this recipe")
    add_json(parser)


def main(arguments) -> None:
    """Print the list, or the file of one recipe."""
    heads = {name: shipped.head(path) for name, path in shipped.recipes().items()}
    heads = dict(sorted(heads.items(), key=lambda item: _size(item[1]["hardware"])))
    if arguments.json and arguments.name:
        raise UserError("--json: prints the list; leave out --json or the name")
    if arguments.name:
        print(Path(shipped.find(arguments.name)).read_text(encoding="utf-8"), end="")
    elif arguments.json:
        print_json([{"name": name} | head for name, head in heads.items()])
    else:
        print("\n".join(_recipe_lines(heads)))


def _size(hardware: str) -> tuple[bool, int]:
    """Sorts `2 CPU cores` before `4 TPU v5e chips` before `1,024 TPU v5p chips`."""
    return "TPU" in hardware, int(hardware.split()[0].replace(",", ""))


def _recipe_lines(heads: dict[str, dict[str, str]]) -> list[str]:
    width, first = min(shutil.get_terminal_size().columns, WIDEST), max(map(len, heads)) + 2
    lines = []
    for name, head in heads.items():
        texts = (head["title"], f"{head['hardware']}, {head['time']}", head["result"])
        block = [line for text in texts for line in textwrap.wrap(text, width - first)]
        lines += [f"{name:<{first}}{block[0]}", *(" " * first + line for line in block[1:]), ""]
    return [
        *lines,
        "To run one:   tpullm run quickstart",
        "To edit one:  tpullm recipes quickstart > mine.yaml",
        "              tpullm run mine.yaml",
    ]
