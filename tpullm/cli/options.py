"""Options that several verbs have, and their output as JSON."""

import argparse
import dataclasses
import functools
import json
from typing import Any

from tpullm.system.errors import UserError


def add_model(parser, when: str = "") -> None:
    """MODEL, the first word of a command line, in any of its forms; `when` says when it is needed."""
    about = "a run directory, one of its stages, one checkpoint, a folder in the format of Hugging Face, a GGUF file"
    parser.add_argument("model", metavar="MODEL", help=f"{when}{about}")


def add_adapters(parser) -> None:
    """`--adapter`, which may be given several times: the model is in memory once."""
    about = "an adapter of the model: a stage that was tuned with one, or a folder in the format of PEFT; or several"
    parser.add_argument("--adapter", action="append", default=[], help=about)


def add_weights(parser) -> None:
    """`--weights`: the bits of the matrices while the model is in use."""
    about = "int8, int4: round the matrices of all layers so when they are read; `compare --weights` says what it costs"
    parser.add_argument("--weights", choices=("int8", "int4"), help=about)


def add_mesh(parser) -> None:
    """`--mesh`, of a verb without a recipe."""
    from tpullm.recipe.parsing import value_of

    mesh = functools.partial(value_of, "mesh")
    parser.add_argument("--mesh", type=mesh, help="how devices share a model, as in a recipe")


def add_asking(parser) -> None:
    """`--shots`, `--seed`, `--limit` and `--chat`: how a model is asked."""
    parser.add_argument("--shots", type=int, default=0, help="examples before each question; 0: as the task says")
    parser.add_argument("--seed", type=int, default=0, help="chooses the examples")
    parser.add_argument("--limit", type=int, default=0, help="at most this many questions or documents of each; 0: all")
    about = "ask in the chat template of the model; default: if it is a run's and was tuned on conversations"
    parser.add_argument("--chat", action=argparse.BooleanOptionalAction, help=about)


def asking_of(arguments):
    """The `Asking` of these options; `UserError` if a number is below 0."""
    from tpullm.evaluation.tasks import Asking

    for option in ("shots", "limit", "seed"):
        if getattr(arguments, option) < 0:
            raise UserError(f"--{option}: {getattr(arguments, option)} is below 0; use 0 or more")
    given = [field.name for field in dataclasses.fields(Asking) if hasattr(arguments, field.name)]
    return Asking(**{name: getattr(arguments, name) for name in given} | {"chat": bool(arguments.chat)})


def in_the_form_of(asking, chat: bool | None, found: dict):
    """The `Asking` in the form that `--chat` asks for, or by default the models: as conversations if all of them are of
    runs and were tuned on conversations.

    Args:
        found: the models by their names (`session.find_model`).

    Raises:
        UserError: `--chat`, and a model has no chat template.
    """
    if chat and (bare := [word for word, own in found.items() if not own.tokenizer.has_template]):
        raise UserError(f"--chat: {bare[0]} has no chat template; leave --chat out")
    usual = all(own.model and own.talks for own in found.values())
    return dataclasses.replace(asking, chat=usual if chat is None else chat)


def words_of(option: str) -> list[str]:
    """The words of an option that has commas between them."""
    return list(filter(None, map(str.strip, option.split(","))))


def add_reproducible(parser) -> None:
    """`--reproducible`: the same bits alone and among others."""
    about = "a text is the same alone and among others, to the last bit; takes longer"
    parser.add_argument("--reproducible", action="store_true", help=about)


def add_json(parser, when: str = "") -> None:
    """`--json`; `when` says when it can be used."""
    parser.add_argument("--json", action="store_true", help=f"{when}print one JSON value and nothing else")


def print_json(value: Any) -> None:
    """One line of JSON, with Japanese as it is."""
    print(json.dumps(value, ensure_ascii=False))


def check_at_least_one(arguments, *options: str) -> None:
    """`UserError` if one of the options is below 1."""
    for option in options:
        if getattr(arguments, option) < 1:
            raise UserError(f"--{option}: {getattr(arguments, option)} is less than 1; use 1 or more")
