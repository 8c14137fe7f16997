"""Explain a word that the program prints: a column of a training's line, a row of a table, a unit.

In English or in Japanese, as the terminal is. A word is understood in both languages.
"""

from pathlib import Path

import yaml

from tpullm.cli.options import add_json, print_json
from tpullm.system import language
from tpullm.system.errors import UserError
from tpullm.system.words import nearest


def add_arguments(parser) -> None:
    """The options of `tpullm explain`."""
    about = "a word or words of a table or a line; none: all of them"
    parser.add_argument("words", metavar="WORD", nargs="*", type=str, help=about)
    add_json(parser)


def main(arguments) -> None:
    """Print the explanation of a word, or the list of all words."""
    entries, word, spoken = known_words(), " ".join(arguments.words), language.chosen()
    named = {name.lower(): name for entry in entries for name in (entry, entries[entry]["name"])}
    if not word:
        names = {entry: of["name"] if spoken == "ja" else entry for entry, of in entries.items()}
        lines = [entry if name == entry else f"{entry} ({name})" for entry, name in names.items()]
        return print_json(list(entries)) if arguments.json else print("\n".join(lines))
    if word.lower() not in named:
        raise UserError(f"{word}: is not explained; {nearest(word.lower(), named)}")
    name = named[word.lower()]
    entry = next(entry for entry, of in entries.items() if name in (entry, of["name"]))
    if arguments.json:
        return print_json({"word": entry, "name": entries[entry]["name"], "explanation": entries[entry][spoken]})
    print(f"{entries[entry]['name'] if spoken == 'ja' else entry}: {entries[entry][spoken]}")


def known_words() -> dict[str, dict[str, str]]:
    """Each word with its `name` in Japanese, and its explanation in `en` and `ja`."""
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
