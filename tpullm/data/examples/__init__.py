"""Examples to tune on, in the shapes that people have: files → conversations, preferences, judged answers, prompts.

example_rows.py: files → rows. shapes.py: what an example is, and a row → an example, recognized by its keys. turns.py:
the turns of a conversation, checked.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tpullm.corpus import domains, law_questions, question, tenki
from tpullm.corpus.files import source_files
from tpullm.corpus.question import Question, messages
from tpullm.data.examples import example_rows, reasoning_tasks
from tpullm.data.examples.shapes import (
    WHAT,
    Columns,
    Conversation,
    E,
    Judged,
    Preference,
    Prompt,
    examples,
    identity,
    split,
)
from tpullm.recipe.schema import Source
from tpullm.system.errors import UserError
from tpullm.system.log import say

BUILT_IN = ("tenki", "tenki_casual", "law", *domains.DOMAINS)  # names of questions that need no file

__all__ = ["BUILT_IN", "questions", "Conversation", "Judged", "Preference", "Prompt", "identity", "read", "split"]


def read(
    names: Sequence[str],
    kind: type[E],
    columns: Mapping[str, str],
    held_out_fraction: float,
    seed: int,
    laws: Sequence[Source] = (),
) -> tuple[list[E], list[E]]:
    """Training and held-out examples of one kind, of all that a recipe names.

    Args:
        names: files and folders, here or on `gs://`, and built-in questions: `tenki`, the domains, and tasks of
            reasoning-gym (`reasoning_gym:FAMILY?size=1000&KEY=VALUE`).
        kind: `Conversation`, `Preference`, `Judged` or `Prompt`.
        columns: our key → the key in the files, where they have keys of their own.
        held_out_fraction: the share to hold out, chosen by hash: of conversations by the whole, else by the prompt.
        seed: chooses the questions of `tenki` that are held out.
        laws: the sources that the questions `law` are about.

    Raises:
        UserError: a file is missing, broken or empty, or an example is wrong; the error names the file and the place.
    """
    named, found = Columns(columns, kind), ([], [])
    for name in names:
        if name in BUILT_IN or name.startswith(reasoning_tasks.SOURCE):
            parts = _built_in_examples(name, kind, held_out_fraction, seed, laws)
        else:
            of_files: list[E] = []
            for path in example_rows.example_files(name, WHAT[kind]):
                made = list(examples(example_rows.rows_of_file(path), kind, named))
                if not made:
                    raise UserError(f"{path}: has no {WHAT[kind]} in it; write one JSON object a line")
                say(f"{path}: {len(made):,} {WHAT[kind]} ({made[0][0]})")
                of_files += [example for _, example in made]
            parts = split(of_files, held_out_fraction)
        for part, into in zip(parts, found, strict=True):
            into += part
    named.check_found()
    return found


def _built_in_examples(
    name: str, kind: type[E], held_out_fraction: float, seed: int, laws: Sequence[Source]
) -> tuple[list[E], list[E]]:
    """Built-in questions or tasks of reasoning-gym: conversations, or prompts with what judges their answers."""
    if kind not in (Conversation, Prompt):
        raise UserError(f"{name}: has conversations and prompts, but no {WHAT[kind]}; name a file")
    if name.startswith(reasoning_tasks.SOURCE):
        made = reasoning_tasks.tasks(name)
        if kind is Conversation:
            said = [[*asked.messages, {"role": "assistant", "content": asked.fields["answer"]}] for asked in made]
            return split(list(map(Conversation, said)), held_out_fraction)
        return split(made, held_out_fraction)
    parts = questions(name, held_out_fraction, seed, laws)
    if kind is Conversation:
        # Of tenki several questions make a conversation; each other question is one by itself.
        talks = (tenki.conversations(part, seed) if name == "tenki" else ([asked] for asked in part) for part in parts)
        return tuple([Conversation(messages(talk)) for talk in of_part] for of_part in talks)
    prompts: tuple[list[Prompt], list[Prompt]] = ([], [])
    for part, into in zip(parts, prompts, strict=True):
        for asked in part:
            fields = {"answers": [*asked.answers], "kind": asked.kind, **asked.fields}
            into.append(Prompt([{"role": "user", "content": asked.question}], fields))
    return prompts


def questions(
    name: str, held_out_fraction: float, seed: int, laws: Sequence[Source]
) -> tuple[list[Question], list[Question]]:
    """The built-in questions of a name, to tune on and held out; `UserError` if there are none."""
    if name.startswith("tenki"):
        return (tenki.split_questions if name == "tenki" else tenki.split_casual)(held_out_fraction, seed)
    if name != "law":
        return question.split(domains.questions(name), held_out_fraction)
    files = []
    for source in laws:
        if source_files.is_url(source.path):
            raise UserError(f"law: {source.path} is not here; download it, since questions are made of files")
        files += [file.path for file in source_files.find(source, Path()).read]
    found = law_questions.questions(files)
    if not found:
        where = ", ".join(source.path for source in laws)
        raise UserError(f"law: {where} has no law with captions to ask about; give laws of e-Gov, as XML or JSON")
    return question.split(found, held_out_fraction)
