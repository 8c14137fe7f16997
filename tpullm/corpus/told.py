"""What collect tells a user of the files that it read, in three lines: what was read, what was not, what else it chose.

Conversations whose speakers have roles are kept for the tuning, of the user's own text alone: `conversations.jsonl`.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tpullm.corpus import tasks
from tpullm.corpus.document import NOT_READ, NOT_UTF8
from tpullm.corpus.files import kinds
from tpullm.corpus.files.desktop.chats import CHAT
from tpullm.corpus.files.source_files import UNKNOWN, Found, name_of
from tpullm.corpus.sources import YOURS
from tpullm.corpus.tasks import TALKS, Task
from tpullm.recipe.schema import Recipe, Source
from tpullm.run.stages import CONVERSATIONS
from tpullm.system import storage

NAMED, GROUPS = 2, 6  # of files that are named for a reason, and of reasons


def lines(source: Source, found: Found, done: Sequence[Task], recipe: Recipe, learned: int) -> list[str]:
    """The lines about a source.

    Args:
        source: its kind is `files`.
        found: its files.
        done: its tasks.
        recipe: says which stage learns from conversations.
        learned: the number of conversations for it.
    """
    summaries = [tasks.part_summary(task) for task in done]
    not_read = [row for summary in summaries for row in summary["not_read"]]
    noted = {name: text for summary in summaries for name, text in summary["noted"].items()}
    unread = {name for name, _ in not_read}
    by_kind = Counter(file.kind for file in found.read if name_of(file, source) not in unread)
    shown = ", ".join(f"{count:,} {kind}" for kind, count in by_kind.most_common()) or "none"
    documents = sum(summary["documents"] for summary in summaries)
    told = [f"read: {by_kind.total():,} files ({shown}), {documents:,} documents"]
    if reasons := _why_not(found.skipped, not_read):
        told.append(f"not read: {'; '.join(reasons)}")
    chosen = _about_conversations(learned, recipe) if source.name == YOURS else []
    return [*told, *filter(None, ["; ".join([*chosen, *_choices(noted, recipe)])])]


def _why_not(skipped: dict[str, list[str]], not_read: Iterable[Sequence[str]]) -> list[str]:
    """The files that are not read, by what to do with them: the reasons of most files first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, why in not_read:
        groups[why].append(name)
    for reason, names in skipped.items():
        for name in names:
            if reason == NOT_READ:  # the name says why
                groups[name.partition(": ")[2]].append(name.partition(": ")[0])
            else:
                ending = Path(name).suffix.lower()
                groups[kinds.way_out(ending) if reason.startswith(UNKNOWN) else reason].append(name)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    told = [f"{_names(names)} ({why})" for why, names in ordered[:GROUPS]]
    return [*told, *([f"{sum(len(names) for _, names in ordered[GROUPS:]):,} more"] if ordered[GROUPS:] else [])]


def _names(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def stage_of(recipe: Recipe) -> str:
    """The first stage of tuning that learns from conversations; "" if there is none."""
    return next((name for name, stage in recipe.finetune.items() if stage.conversations), "")


def _about_conversations(learned: int, recipe: Recipe) -> list[str]:
    if not learned:
        return []
    stage = stage_of(recipe)
    where = f"finetune.{stage} learns from them too" if stage else "no stage of `finetune` learns from conversations"
    return [f"{learned:,} conversations with an assistant: {where}"]


def _choices(noted: dict[str, str], recipe: Recipe) -> list[str]:
    """What readers chose: a line for chats, and one for tables."""
    is_chat = {name: text.startswith(CHAT) for name, text in noted.items()}
    chats = [f"{name} is {noted[name]}" for name, chat in is_chat.items() if chat]
    tables = [f"of {name} {noted[name]}" for name, chat in is_chat.items() if not chat]
    told = []
    if chats and not recipe.text_assistant:
        told.append(f"{_names(chats)}: read as text; to tune on it, say who answers: --text_assistant NAME")
    if tables:
        told.append(f"{_names(tables)} (--text_key NAME reads another one)")
    return told


def write_conversations(documents: Path, done: Iterable[Task]) -> int:
    """Write the conversations of the user's own text, each once; how many there are."""
    found: dict[str, str] = {}
    for task in done:
        if task.source.name == YOURS and tasks.part_summary(task)["talks"]:
            for line in task.part.beside(TALKS).read_text("utf-8").split("\n"):
                if line:
                    found.setdefault(hashlib.sha256(line.encode()).hexdigest(), line)
    if found:
        storage.write_text(documents / CONVERSATIONS, "".join(f"{line}\n" for line in found.values()))
    else:
        (documents / CONVERSATIONS).unlink(missing_ok=True)
    return len(found)


def why_nothing(summaries: Iterable[dict[str, Any]]) -> str:
    """Why no document is left where files could not be read: the first of them; "" if there is none."""
    first = next((row for summary in summaries for row in summary["not_read"]), None)
    return f"{first[0]}: {first[1]}" if first and first[1] not in (NOT_READ, NOT_UTF8.dropped) else ""
