"""The data card for people: `datacard.md`, from the numbers of `datacard.py`."""

from collections.abc import Iterable, Sequence
from typing import Any

from tpullm.corpus import leak_records
from tpullm.corpus.question_windows import CHARACTERS, WORDS
from tpullm.corpus.reasons import REASONS
from tpullm.corpus.repeated_lines import MOST
from tpullm.corpus.split import FEW
from tpullm.recipe.schema import CorpusConfig

COLUMNS = {
    "source": "where the text comes from, as the recipe names it",
    "licence": "what allows its use",
    "language": "what it is written in (`code` is source code, `und` could not be told)",
    "documents": "how many separate texts",
    "characters": "how long they are together",
    "share": "of all characters; how often a source is read in training is set by its weight in the recipe",
    "training": "documents the model learns from",
    "held out": "documents kept away from training, to measure how well the model does on text it has not seen",
}


def markdown(card: dict[str, Any], config: CorpusConfig) -> str:
    """The text of `datacard.md`."""
    return "\n\n".join(_sections(card, config)) + "\n"


def _sections(card: dict[str, Any], config: CorpusConfig) -> Iterable[str]:
    yield "# Data card"
    yield (
        f"{card['documents']:,} documents with {card['characters']:,} characters. Anything trained on them should name "
        "their sources and licences: they are listed here."
    )
    header = ("source", "licence", "language", "documents", "characters", "share", "training", "held out")
    yield _table(header, [[_cell(key, row[key]) for key in row] for row in card["rows"]])
    yield "\n".join(f"- **{name}**: {meaning}." for name, meaning in COLUMNS.items())
    for key in ("licence", "language"):
        shares = card[f"by_{key}"].items()
        yield f"## Share by {key}"
        yield _table((key, "share"), [[name, _cell("share", share)] for name, share in shares])
    yield "## What was dropped, and why"
    yield from _dropped(card)
    yield from _leaks(card)
    yield from _files(card)
    yield "## How it was made"
    yield _how(card, config)


def _dropped(card: dict[str, Any]) -> Iterable[str]:
    """What was dropped by source, reason, language and licence, and the beginnings of some of it."""
    rows = [
        [*(row[key] for key in ("source", "reason", "language", "licence")), f"{row['documents']:,}", _why(row)]
        for row in card["dropped_rows"]
    ]
    header = ("source", "reason", "language", "licence", "documents", "meaning")
    yield _table(header, [[str(cell).replace("|", "\\|") for cell in row] for row in rows]) if rows else "Nothing."
    for source, reasons in card["dropped_examples"].items():
        for reason, examples in reasons.items():
            yield f"Of {source}, {reason}:"
            yield "\n".join(f"- {_place(example)}: {_quoted(example['beginning'])}" for example in examples)


def _leaks(card: dict[str, Any]) -> Iterable[str]:
    """How much of each task was found."""
    if "leaks" not in card:
        return
    yield "## Questions of tasks"
    header = ("task", "questions", "found in training text", "in documents", "documents dropped", "too short to find")
    keys = ("questions", "found", "trained_on", "dropped", "too_short")
    tasks = card["leaks"]["tasks"].items()
    yield _table(header, [[_cell("", name), *(_cell(key, task[key]) for key in keys)] for name, task in tasks])
    yield (
        f"A document holds a question if it holds {WORDS} words of it in a row, or {CHARACTERS} characters of "
        "Japanese; width, case, white space and punctuation do not count. Of a shorter question it must hold all. "
        f"`{leak_records.FILE}` names the documents."
    )
    if card["tokens_of_others"]:
        yield "Tokens of others were not searched."


def _why(row: dict[str, Any]) -> str:
    return REASONS.get(row["reason"], "a file that this source does not read")


def _place(example: dict[str, str]) -> str:
    """Where a document is: its address, or its file and record."""
    return example["url"] or " ".join(filter(None, (example["file"], example["record"]))) or "no file"


def _quoted(text: str) -> str:
    """The beginning of a text in one line, as code, so that nothing in it is Markdown."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`" if text.strip() else "no text"


def _files(card: dict[str, Any]) -> Iterable[str]:
    """Which packages the text came with; which files were read in part, in another encoding, or not at all."""
    if card["packages"]:
        yield "## Text that came with packages of PyPI"
        yield "\n".join(
            f"- {source}: `{package['name']}` {package['version']}. Licence: {package['licence']}."
            for source, packages in card["packages"].items()
            for package in packages
        )
    if card["tokens_of_others"]:
        yield "## Tokens of others"
        yield "\n".join(
            f"- {source}: {licence}. They are read as they are; `tokens/manifest.json` counts them."
            for source, licence in card["tokens_of_others"].items()
        )
    if card["encodings"]:
        yield "## Files that are not UTF-8"
        yield "\n".join(
            f"- {source}: {count:,} read as {name}."
            for source, found in card["encodings"].items()
            for name, count in found.items()
        )
    if card["personal_data_replaced"]:
        yield "## Personal data"
        yield "\n".join(
            f"- {source}: {count:,} mail addresses, phone numbers and IP addresses were replaced."
            for source, count in card["personal_data_replaced"].items()
        )
    if card["read_in_part"]:
        yield "## What was read in part"
        yield "\n".join(
            f"- {source}: {part['bytes']:,} of {part['of_bytes']:,} bytes, from {part['files']:,} of "
            f"{part['of_files']:,} files, chosen by the hash of their names: {_listed(part['names'], part['files'])}."
            for source, part in card["read_in_part"].items()
        )
    if card["skipped_files"]:
        yield "## Files that were not read"
        yield "\n".join(
            f"- {source}, {reason}: {_listed(names, card['dropped'][source][reason])}."
            for source, reasons in card["skipped_files"].items()
            for reason, names in reasons.items()
        )


def _listed(names: list[str], count: int) -> str:
    shown = ", ".join(f"`{name}`" for name in names)
    return f"{shown} and {count - len(names):,} more" if count > len(names) else shown


def _how(card: dict[str, Any], config: CorpusConfig) -> str:
    return (
        f"By tpullm {card['tpullm']}, seed {card['seed']}. Each source was read, its text extracted. What is "
        f"unreadable, shorter than {config.minimum_characters} characters, repetitive or in another language was "
        f"dropped (unless the recipe says `filter: false`); of exact {'and near ' if config.near_duplicates else ''}"
        "copies one was kept (unless it says `deduplicate: false`): where one is held out, that one. Texts longer than "
        f"{config.maximum_characters:,} characters were cut at a line's end.{_lines(config)}\n\n"
        f"Held out are the documents whose text has a SHA-256 in the lowest {config.held_out_fraction:.1%} of its "
        "range, or those that the recipe names. The choice does not depend on the order of the documents or on other "
        f"documents. A source of fewer than {FEW} documents is cut into stretches first, and those with the lowest "
        "SHA-256 are held out."
    )


def _lines(config: CorpusConfig) -> str:
    """The sentence about lines that documents have in common."""
    if not config.repeated_lines:
        return ""
    return (
        f" A document was dropped if it had more than {MOST:.0%} of its characters in lines that stand in more than "
        f"{config.repeated_lines:,} documents (unless the recipe says `filter: false` or `deduplicate: false`)."
    )


def _cell(key: str, value: Any) -> str:
    if key == "share":
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
