"""The keys of a recipe as data: names, types, defaults and explanations, read from the dataclasses of `schema/`.

The first sentence of an explanation says what the key is; the rest is for `--help-all` and the reference.
"""

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tpullm.recipe.fields import Changes, declared_change

# What a value of a kind is called.
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list, such as [a, b]",
    "pairs": "pairs, such as {fsdp: 4, tensor: 2}",
    "section": "a list of sections",
    "stages": "stages by name, such as '{talk: {conversations: [chats.jsonl]}}'",
}
# What a list of sections looks like, by its key.
LISTS = {
    "sources": "a list, such as '[{name: mine, kind: text, path: my_texts, licence: CC0-1.0}]'",
    "phases": "a list, such as '[{start: 0.8, weights: {mine: 1}}]'",
}
NAME = "NAME"  # in a dotted key: any name, of sections that the recipe names itself


@dataclass(frozen=True)
class Key:
    """One key.

    Args:
        name: without its section, `steps`.
        default: as YAML would have it.
        hint: the type of its value.
        help: what it is, in full.
        changes: what another value changes.
    """

    name: str
    default: str
    hint: Any
    help: str
    changes: Changes = Changes.RESULT

    @property
    def short(self) -> str:
        """The first sentence of the explanation."""
        return _first_sentence(self.help)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that are possible, if they are a fixed list."""
        return tuple(map(str, typing.get_args(self.hint))) if typing.get_origin(self.hint) is typing.Literal else ()

    @property
    def kind(self) -> str:
        """`pairs` for a dictionary, `list`, `section` for a list of sections, `stages` for sections by name, else the
        name of the type."""
        if _nested_kind(self.hint):
            return "stages" if typing.get_origin(self.hint) is dict else "section"
        kind = typing.get_origin(self.hint) or self.hint
        return {list: "list", tuple: "list", dict: "pairs", typing.Literal: "str"}.get(kind) or kind.__name__

    @property
    def holds(self) -> Any:
        """The type of the values of `pairs`."""
        return typing.get_args(self.hint)[1] if self.kind == "pairs" else None

    @property
    def wanted(self) -> str:
        """What its value must be, in words."""
        words = LISTS.get(self.name, WORDS[self.kind]) if self.kind == "section" else WORDS[self.kind]
        return f"one of {', '.join(self.choices)}" if self.choices else words


@dataclass(frozen=True)
class Section:
    """Keys that stand together.

    Args:
        name: dotted, `pretrain.optimizer`; empty for the top of the recipe.
        title: the first sentence of the explanation of its key.
        keys: those that are no sections themselves.
        repeated: a list of such sections, as `corpus.sources` is.
        same_as: another section, shown before, with the same keys.
    """

    name: str
    title: str
    keys: tuple[Key, ...]
    repeated: bool = False
    same_as: str = ""

    def dotted(self, key: Key) -> str:
        """The full name of one of its keys."""
        return f"{self.name}.{key.name}" if self.name else key.name


def sections(
    kind: Any, name: str = "", title: str = "", repeated: bool = False, above: Changes = Changes.RESULT
) -> Iterator[Section]:
    """The section of a dataclass, then those in it, in the order of the fields.

    A list of sections, or sections by name, are a key too.

    Args:
        above: what the key that holds the section changes; if not the result, so do the keys in it.
    """
    hints, helps, keys, inner = typing.get_type_hints(kind), explanations(kind), [], []
    for field in dataclasses.fields(kind):
        hint, nested = hints[field.name], _nested_kind(hints[field.name])
        is_list, is_named = typing.get_origin(hint) is list, typing.get_origin(hint) is dict
        changes = declared_change(field) if above is Changes.RESULT else above
        if nested:
            path = (f"{name}.{field.name}" if name else field.name) + f".{NAME}" * is_named
            inner.append((nested, path, _first_sentence(helps[field.name]), is_list, changes))
        if not nested or is_list or is_named:
            keys.append(Key(field.name, _default_as_typed(field), hint, helps[field.name], changes))
    yield Section(name, title, tuple(keys), repeated)
    for part in inner:
        yield from sections(*part)


def chosen(known: Sequence[Section], names: Sequence[str]) -> list[Section]:
    """Some keys and sections of a recipe, by their dotted names, in that order; single keys stand first.

    A section brings those in it, and so do sections by name; a list of sections (`corpus.sources`) is a key here. A
    section with the keys of an earlier one refers to that.
    """
    by_name = {section.dotted(key): key for section in known for key in section.keys if key.kind != "stages"}
    keys = {name: by_name[name] for name in names if name in by_name}
    single = [dataclasses.replace(key, name=name) for name, key in keys.items()]
    found = [Section("", "", tuple(single))] if single else []
    for name in names:
        for section in known:
            shown = any(other.same_as and section.name.startswith(f"{other.name}.") for other in found)
            if name not in keys and f"{section.name}.".startswith(f"{name}.") and not shown:
                same = next((other.name for other in found if other.keys == section.keys), "")
                found.append(dataclasses.replace(section, same_as=same))
    return found


def general(dotted: str, known: Sequence[Section]) -> str:
    """A dotted key with `NAME` for the name that a recipe gives its section: `finetune.NAME.train` for
    `finetune.talk.train`. Of a list, without the name: `corpus.sources.path` for `corpus.sources.mine.path`."""
    for section in known:
        parts = dotted.removeprefix(f"{section.name}.").split(".") if section.repeated else []
        if len(parts) == 2 and dotted.startswith(f"{section.name}.") and parts[1] in [key.name for key in section.keys]:
            return f"{section.name}.{parts[1]}"
        above, _, last = section.name.rpartition(".")
        if last == NAME and dotted.startswith(f"{above}."):
            _, *rest = dotted.removeprefix(f"{above}.").split(".")
            return ".".join([section.name, *rest])
    return dotted


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0].removesuffix(".")


@functools.cache
def explanations(kind: Any) -> dict[str, str]:
    """What the docstring's `Args:` say of each field."""
    entries = inspect.cleandoc(kind.__doc__).partition("\nArgs:\n")[2]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", entries, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _default_as_typed(field: dataclasses.Field) -> str:
    """The default as it would be typed; empty text is shown as ''."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {each}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(f"'{each}'" if isinstance(each, str) else str(each) for each in value) + "]"
    return str(value) if value != "" else "''"


def _nested_kind(hint: Any) -> Any:
    """The dataclass that a type is or has (a list or a dict of it); `None` if none."""
    return next((part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)), None)
