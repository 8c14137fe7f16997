"""List the recipes that come with tpullm, or print one to copy.

The machine, the time and the result of each come from the comment at the top of its file.
"""

import shutil
from pathlib import Path

from tpullm.cli.help import wrapped_words
from tpullm.cli.options import add_json, print_json
from tpullm.recipe import shipped
from tpullm.system.errors import UserError
from tpullm.system.language import spoken


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
        return print(Path(shipped.find(arguments.name)).read_text(encoding="utf-8"), end="")
    if arguments.json:
        return print_json([{"name": name} | head for name, head in heads.items()])
    width, first = min(shutil.get_terminal_size().columns, 100), max(map(len, heads)) + 2
    for name, head in heads.items():
        texts = (head["title"], spoken(head["hardware"]) + spoken(", ") + spoken(head["time"]), head["result"])
        block = [line for text in texts for line in wrapped_words(spoken(text).split(), width - first, "")]
        print(f"{name:<{first}}{block[0]}", *(" " * first + line for line in block[1:]), "", sep="\n")
    print(spoken("To run one:   tpullm run quickstart"))
    print(spoken("To edit one:  tpullm recipes quickstart > mine.yaml"), "              tpullm run mine.yaml", sep="\n")


def _size(hardware: str) -> tuple[bool, int]:
    """Sorts `2 CPU cores` before `4 TPU v5e chips` before `1,024 TPU v5p chips`."""
    return "TPU" in hardware, int(hardware.split()[0].replace(",", ""))
