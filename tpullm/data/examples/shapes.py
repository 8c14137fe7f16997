"""Rows of a file → examples of four kinds: conversations, preferences, judged answers, prompts.

A row is an object. A shape is the keys that a row must have, and a function that makes an example of it; the first row
of a file tells its shape. Each example has a `group`, a number by hash. Examples of one group are never on both sides
of what is held out.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tpullm.data.examples.turns import TRANSCRIPT, check_plain, said_by, tools, transcript, turns
from tpullm.system.errors import UserError
from tpullm.system.words import nearest
from tpullm.tokenizer.chat_template import Message, Messages, Tools


@dataclass(frozen=True)
class Conversation:
    """A conversation with at least one turn of the assistant, to learn its answers from.

    Args:
        messages: the turns.
        tools: the functions that the assistant may call, as JSON schemas; None if there are none.
    """

    messages: Messages
    tools: Tools = None

    @property
    def group(self) -> int:
        """The hash of the whole conversation, so its copies stay together."""
        return identity(self.messages, self.tools)


@dataclass(frozen=True)
class Preference:
    """A prompt, the preferred answer and the other one.

    Args:
        prompt: the turns before the answers. The last one is not the assistant's.
        chosen, rejected: the answers, one turn of the assistant each. They differ.
        tools: as in `Conversation`.
    """

    prompt: Messages
    chosen: Message
    rejected: Message
    tools: Tools = None

    @property
    def group(self) -> int:
        """The hash of the prompt, so all pairs of one prompt stay together."""
        return identity(self.prompt)


@dataclass(frozen=True)
class Judged:
    """A prompt and an answer that somebody found good or bad.

    Args:
        prompt, tools: as in `Preference`.
        answer: one turn of the assistant.
        good: the judgement.
    """

    prompt: Messages
    answer: Message
    good: bool
    tools: Tools = None

    @property
    def group(self) -> int:
        """The hash of the prompt."""
        return identity(self.prompt)


@dataclass(frozen=True)
class Prompt:
    """A prompt alone, which the model answers and a reward judges.

    Args:
        messages: the turns; the last one is not the assistant's.
        fields: what else the example says, for the reward. All of it is JSON.
        tools: as in `Conversation`.
    """

    messages: Messages
    fields: dict[str, Any] = field(default_factory=dict)
    tools: Tools = None

    @property
    def group(self) -> int:
        """The hash of the prompt."""
        return identity(self.messages)


Example = Conversation | Preference | Judged | Prompt
E = TypeVar("E", Conversation, Preference, Judged, Prompt)


def identity(messages: Messages, tools: Tools = None) -> int:
    """The first 8 bytes of the SHA-256 of a conversation, as an integer."""
    said: list = []
    for message in messages:
        more = {key: value for key, value in message.items() if key not in ("role", "content")}
        said.append([message["role"], message["content"], *([more] if more else [])])
    text = json.dumps([*said, *([tools] if tools else [])], ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split(examples: Sequence[E], held_out_fraction: float) -> tuple[list[E], list[E]]:
    """Training and held-out examples, by the hash of each group alone: neither place nor number matters."""
    parts: tuple[list[E], list[E]] = ([], [])
    for example in examples:
        parts[example.group / 2**64 < held_out_fraction].append(example)
    return parts


Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A shape of rows.

    Args:
        name: what people call it.
        keys: those that a row must have.
        read: makes an example of a row; its second argument is where the row is.
    """

    name: str
    keys: tuple[str, ...]
    read: Callable[[Row, str], Any]

    def fits(self, row: Row) -> bool:
        """Whether the row has all keys of the shape."""
        return all(row.get(key) is not None for key in self.keys)


TURNS = ("messages", "conversations", "utterances", "prompt", "completion", "chosen", "rejected")  # may hold turns
OPTIONAL = ("input", "system", "tools", "role", "content")  # keys of a row or of its turns that need not be there


def examples(rows: Iterable[tuple[str, Row]], kind: type[E], columns: "Columns") -> Iterator[tuple[str, E]]:
    """The examples of one file, each with the name of the shape.

    Args:
        rows: where each row is, and the row.
        columns: what the columns of the file are called here.

    Raises:
        UserError: a row is not of the shape of the first row, or has a mistake; the error says where.
    """
    shape = None
    for where, row in rows:
        row = columns.renamed(row)
        shape = shape or next((shape for shape in SHAPES[kind] if shape.fits(row)), None)
        if shape is None:
            there = ", ".join(repr(key)[:40] for key in [*row][:12]) or "none"
            raise UserError(
                f"{where}: its keys are {there}, which is no shape of {WHAT[kind]} "
                "(docs/en/tuning.md#shapes-of-examples); name them with `columns`"
            )
        if not shape.fits(row):
            missing = next(key for key in shape.keys if row.get(key) is None)
            raise UserError(f"{where}: has no {missing!r}, which the first example of the file has; add or remove it")
        yield shape.name, shape.read(row, where)


class Columns:
    """Which column of a file is which key of a shape; it notes which columns were found.

    Args:
        named: our key → the file's. `role` and `content` are keys of the turns in a list, all others of the row.
        kind: the kind of examples.
    """

    def __init__(self, named: Mapping[str, str], kind: type[Example]):
        known = {key for shape in SHAPES[kind] for key in shape.keys} | {*OPTIONAL}
        for ours in named if kind is not Prompt else ():  # a reward may have a field of any name
            if ours not in known:
                raise UserError(f"columns.{ours}: is no key of {WHAT[kind]}; {nearest(ours, known, 0)}")
        self._row = {theirs: ours for ours, theirs in named.items() if ours not in ("role", "content")}
        self._turn = {theirs: ours for ours, theirs in named.items() if ours in ("role", "content")}
        self._found: set[str] = set()

    def renamed(self, row: Row) -> Row:
        """The row with our keys in the place of the file's."""
        row = self._renamed(row, self._row)
        return {key: self._in_turns(value) if key in TURNS else value for key, value in row.items()}

    def _in_turns(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._in_turns(said) for said in value]
        return self._renamed(value, self._turn) if isinstance(value, dict) else value

    def _renamed(self, row: Row, names: dict[str, str]) -> Row:
        found = {theirs: ours for theirs, ours in names.items() if theirs in row}
        self._found |= {*found}
        others = {key: value for key, value in row.items() if key not in found}
        return others | {ours: row[theirs] for theirs, ours in found.items()}

    def check_found(self) -> None:
        """Refuse a column that no row had: its name may have a mistake."""
        for theirs, ours in (self._row | self._turn).items():
            if theirs not in self._found:
                raise UserError(f"columns.{ours}: no file has {theirs!r}; correct its name or remove it")


def _with_system_message(said: Messages, row: Row, where: str) -> Messages:
    """The turns, after the row's own text of the system if it has one."""
    system = row.get("system")
    if system is None or system == "":
        return said
    if said[0]["role"] == "system":
        raise UserError(f"{where}: has `system` and a message of the system; keep one of them")
    return [said_by("system", system, f"{where}, system"), *said]


def _prompt_messages(value: Any, where: str) -> Messages:
    """A prompt: the text of the user, a transcript, or messages that end before an answer."""
    where, is_text = f"{where}, prompt", isinstance(value, str)
    if is_text and not value.startswith(TRANSCRIPT):
        return [said_by("user", value, where)]
    return _answerable_turns(transcript(value, where) if is_text else turns(value, where), where)


def _answerable_turns(said: Messages, where: str) -> Messages:
    """The same turns, which an answer can follow."""
    if said[-1]["role"] in ("assistant", "system"):
        raise UserError(f"{where}: what is asked ends with the {said[-1]['role']}; end it with the user")
    return said


def _alpaca_prompt(row: Row, where: str) -> Messages:
    """The prompt of Alpaca's shape: an instruction, and below it what it is about."""
    parts = [row["instruction"], row.get("input") or ""]
    if not all(isinstance(part, str) for part in parts):
        raise UserError(f"{where}: its instruction or input is not text; write both as text")
    return [said_by("user", "\n\n".join(filter(str.strip, parts)), f"{where}, instruction")]


def _answer_messages(value: Any, where: str) -> Messages:
    """What follows a prompt: the text of the assistant, or messages."""
    if isinstance(value, dict):
        return turns([value], where)
    return [said_by("assistant", value, where)] if isinstance(value, str) else turns(value, where)


def _conversation_shape(name: str, keys: tuple[str, ...], said: Callable[[Row, str], Messages]) -> Shape:
    """A shape of conversations out of a reader of turns."""

    def read(row: Row, where: str) -> Conversation:
        messages = _with_system_message(said(row, where), row, where)
        if not any(message["role"] == "assistant" for message in messages):
            raise UserError(f"{where}: no turn of the assistant, so nothing to learn from; add one or remove the line")
        return Conversation(messages, tools(row.get("tools"), where))

    return Shape(name, keys, read)


def _prompt_and_completion(row: Row, where: str) -> Messages:
    if isinstance(row.get("label"), bool):
        raise UserError(f"{where}: its `label` judges the answer; use such a file for preferences, not conversations")
    return [*_prompt_messages(row["prompt"], where), *_answer_messages(row["completion"], f"{where}, completion")]


def _one_answer(said: Messages, where: str) -> Message:
    if len(said) != 1 or said[0]["role"] != "assistant":
        raise UserError(f"{where}: is not one turn of the assistant; give the answer alone, or all of the conversation")
    return said[0]


def _judged_answer(row: Row, where: str) -> Judged:
    if not isinstance(row["label"], bool | int | float) or row["label"] not in (0, 1):
        raise UserError(f"{where}: its label is {row['label']!r:.60}; write true for a good answer, else false")
    prompt = _with_system_message(_prompt_messages(row["prompt"], where), row, where)
    answer = _one_answer(_answer_messages(row["completion"], f"{where}, completion"), f"{where}, completion")
    return Judged(prompt, answer, bool(row["label"]), tools(row.get("tools"), where))


def _preference_pair(row: Row, where: str) -> Preference:
    """A pair, whether or not the prompt stands at the beginning of both answers."""
    prompt: Messages = []
    if row.get("prompt") is not None:
        prompt = _prompt_messages(row["prompt"], where)
    elif row.get("instruction") is not None:
        prompt = _alpaca_prompt(row, where)
    sides = [_side_of_pair(row, key, where) for key in ("chosen", "rejected")]
    before = zip(sides[0][:-1], sides[1][:-1], strict=False)
    shared = [one for one, _ in itertools.takewhile(lambda pair: _is_same_turn(*pair), before)]
    if not prompt and not shared:
        raise UserError(f"{where}: has no prompt, and its two answers have nothing in common; add a `prompt`")
    longer, shorter = (prompt, shared) if len(prompt) >= len(shared) else (shared, prompt)
    if not all(_is_same_turn(*pair) for pair in zip(longer[::-1], shorter[::-1], strict=False)):
        raise UserError(f"{where}: its answers begin with another conversation than its prompt; correct one of them")
    prompt = _answerable_turns(longer, where)
    rests = zip(sides, ("chosen", "rejected"), strict=True)
    chosen, rejected = (_one_answer(said[len(shared) :], f"{where}, {key}") for said, key in rests)
    if _is_same_turn(chosen, rejected):
        raise UserError(f"{where}: both answers are equal, so none is preferred; remove the pair")
    return Preference(_with_system_message(prompt, row, where), chosen, rejected, tools(row.get("tools"), where))


def _side_of_pair(row: Row, key: str, where: str) -> Messages:
    """The messages of one side of a pair: the answer, perhaps after its prompt."""
    value, prompt, where = row[key], row.get("prompt"), f"{where}, {key}"
    if isinstance(value, str) and value.startswith(TRANSCRIPT):
        said = transcript(value, where)
    # An answer may begin with the words of its prompt by itself. Then the other one hardly does, and no space follows.
    elif isinstance(prompt, str) and all(
        isinstance(text, str) and text.startswith(prompt) and text[len(prompt) :][:1].isspace()
        for text in (row["chosen"], row["rejected"])
    ):
        said = _answer_messages(value[len(prompt) :].lstrip(), where)
    else:
        said = _answer_messages(value, where)
    if said[-1]["role"] != "assistant":
        raise UserError(f"{where}: ends without an answer of the assistant; add it or remove the pair")
    return said


def _is_same_turn(one: Message, other: Message) -> bool:
    """Whether two turns say the same, but for white space around it."""
    return one | {"content": one["content"].strip()} == other | {"content": other["content"].strip()}


def _as_prompt_shape(shape: Shape) -> Shape:
    """A shape of conversations as prompts: what comes before the last answer, which is the field `answer`."""

    def read(row: Row, where: str) -> Prompt:
        said = shape.read({key: value for key, value in row.items() if key != "system"}, where).messages
        last = max(place for place, message in enumerate(said) if message["role"] == "assistant")
        if last == 0:
            raise UserError(f"{where}: nothing comes before its last answer, so there is no prompt; add one")
        used = {*shape.keys, *(["input"] if "instruction" in shape.keys else [])}
        asked, answer = _answerable_turns(said[:last], where), {"answer": said[last]["content"]}
        return _prompt_example(asked, row, used, answer, where)

    return Shape(shape.name, shape.keys, read)


def _prompt_example(said: Messages, row: Row, used: set[str], more: Row, where: str) -> Prompt:
    fields = more | {key: value for key, value in row.items() if key not in used | {"system", "tools"}}
    check_plain(fields, where)
    return Prompt(_with_system_message(said, row, where), fields, tools(row.get("tools"), where))


CONVERSATIONS = [
    _conversation_shape("messages", ("messages",), lambda row, at: turns(row["messages"], at)),
    _conversation_shape("ShareGPT", ("conversations",), lambda row, at: turns(row["conversations"], at)),
    _conversation_shape("utterances", ("utterances",), lambda row, at: turns(row["utterances"], at)),
    _conversation_shape(
        "Alpaca",
        ("instruction", "output"),
        lambda row, at: [*_alpaca_prompt(row, at), *_answer_messages(row["output"], f"{at}, output")],
    ),
    _conversation_shape("prompt and completion", ("prompt", "completion"), _prompt_and_completion),
]
# Of each kind, the first shape that fits a row is its shape.
SHAPES: dict[type[Example], list[Shape]] = {
    Conversation: CONVERSATIONS,
    Preference: [
        Shape("pairs with a prompt", ("prompt", "chosen", "rejected"), _preference_pair),
        Shape("pairs with an instruction", ("instruction", "chosen", "rejected"), _preference_pair),
        Shape("pairs of conversations", ("chosen", "rejected"), _preference_pair),
    ],
    Judged: [Shape("judged completions", ("prompt", "completion", "label"), _judged_answer)],
    Prompt: [
        Shape(
            "prompts",
            ("prompt",),
            lambda row, at: _prompt_example(_prompt_messages(row["prompt"], at), row, {"prompt"}, {}, at),
        ),
        *map(_as_prompt_shape, CONVERSATIONS[:-1]),
    ],
}
WHAT = {Conversation: "conversations", Preference: "preferences", Judged: "judged answers", Prompt: "prompts"}
