"""Examples to tune on, in the shapes that people have: files → conversations, preferences, judged answers, prompts.

kinds.py: what an example is. example_rows.py: files → rows (json_rows.py, parquet_rows.py). shapes.py: a row → an
example, recognized by its keys. turns.py: the turns of a conversation, checked.
"""

from collections.abc import Mapping, Sequence

from tpullm.corpus import tenki
from tpullm.data.examples import example_rows
from tpullm.data.examples.kinds import Conversation, E, Judged, Preference, Prompt, identity, split
from tpullm.data.examples.shapes import WHAT, Columns, examples
from tpullm.errors import UserError
from tpullm.log import say

__all__ = ["Conversation", "Judged", "Preference", "Prompt", "identity", "read", "split"]


def read(
    names: Sequence[str], kind: type[E], columns: Mapping[str, str], held_out_fraction: float, seed: int
) -> tuple[list[E], list[E]]:
    """Training and held-out examples of one kind, of all that a recipe names.

    Args:
        names: files and folders, here or on `gs://`. `tenki` is the built-in questions.
        kind: `Conversation`, `Preference`, `Judged` or `Prompt`.
        columns: our key → the key in the files, where they have keys of their own.
        held_out_fraction: the share to hold out, chosen by hash: of conversations by the whole, else by the prompt.
        seed: chooses the questions of `tenki` that are held out.

    Raises:
        UserError: a file is missing, broken or empty, or an example is wrong; the error names the file and the place.
    """
    named = Columns(columns, kind)
    learned: list[E] = []
    held_out: list[E] = []
    for name in names:
        parts = _tenki(kind, held_out_fraction, seed) if name == "tenki" else None
        for part in [parts] if parts else [split(made, held_out_fraction) for made in _of_files(name, kind, named)]:
            learned += part[0]
            held_out += part[1]
    named.check_found()
    return learned, held_out


def _of_files(name: str, kind: type[E], columns: Columns) -> list[list[E]]:
    """The examples of each file of a name."""
    found = []
    for path in example_rows.files(name, WHAT[kind]):
        made = list(examples(example_rows.rows(path), kind, columns))
        if not made:
            raise UserError(f"{path}: has no {WHAT[kind]} in it; write one JSON object a line")
        say(f"{path}: {len(made):,} {WHAT[kind]} ({made[0][0]})")
        found.append([example for _, example in made])
    return found


def _tenki(kind: type[E], held_out_fraction: float, seed: int) -> tuple[list[E], list[E]]:
    """The built-in questions, as conversations or as prompts with their answers."""
    make = {
        Conversation: lambda question: Conversation(next(tenki.conversations([question]))["messages"]),
        Prompt: lambda question: Prompt(
            [{"role": "user", "content": question.question}], {"answers": [*question.answers], "kind": question.kind}
        ),
    }.get(kind)
    if make is None:
        raise UserError(f"tenki: has conversations and prompts, but no {WHAT[kind]}; name a file")
    parts = tenki.split_questions(held_out_fraction, seed)
    return [make(question) for question in parts[0]], [make(question) for question in parts[1]]
