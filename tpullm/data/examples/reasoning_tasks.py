"""Tasks of the package reasoning-gym: prompts with answers that its own functions check."""

import dataclasses
import difflib
import functools
import json
import types
from collections.abc import Sequence
from typing import Any

from tpullm.data.examples.shapes import Prompt
from tpullm.system.errors import UserError

SOURCE = "reasoning_gym:"  # begins the name of a source
FIELD = "reasoning_gym"  # the field of an example with its task


def tasks(source: str) -> list[Prompt]:
    """The tasks of a family: `reasoning_gym:NAME`, or `reasoning_gym:NAME?size=1000&seed=1&KEY=VALUE&...`.

    A prompt has the fields `answer`, a right one, `kind`, the family, and `FIELD`, which makes the task again.

    `size` tasks (1,000), by `seed` (0) and the parameters of the family: the same for the same ones. Tasks of another
    seed are others, but a family of few tasks repeats some of them.
    """
    name, _, given = source.removeprefix(SOURCE).partition("?")
    parameters = {}
    for pair in given.split("&") if given else []:
        key, equals, value = pair.partition("=")
        if not equals or key in parameters:
            raise UserError(f"{source}: {pair} is not KEY=VALUE, each key once; write {SOURCE}{name}?size=1000, say")
        try:
            parameters[key] = json.loads(value)
        except ValueError:
            parameters[key] = value
    numbers = [parameters.pop(key, default) for key, default in (("seed", 0), ("size", 1000))]
    if not all(type(number) is int and number >= least for number, least in zip(numbers, (0, 1), strict=True)):
        raise UserError(f"{source}: size and seed are whole numbers; write {SOURCE}{name}?size=1000&seed=1, say")
    made = {"name": name, "seed": numbers[0], "size": numbers[1], "parameters": parameters}
    return [
        Prompt(
            [{"role": "user", "content": entry["question"]}],
            {"answer": str(entry["answer"]), "kind": name, FIELD: {**made, "index": index}},
        )
        for index, entry in enumerate(dataset(**made))
    ]


def dataset(name: str, seed: int, size: int, parameters: dict[str, Any]) -> Sequence[dict]:
    """The package's own dataset: `{"question", "answer", "metadata"}` each; `UserError` for what it does not have."""
    kinds = package().factory.DATASETS
    if name not in kinds:
        nearest = difflib.get_close_matches(name, kinds, 1, 0.5)
        more = f"; the nearest is {nearest[0]}" if nearest else ""
        raise UserError(f"{SOURCE}{name}: reasoning-gym has no such family{more}")
    known = {field.name for field in dataclasses.fields(kinds[name][1])} - {"seed", "size"}
    if unknown := sorted(parameters.keys() - known):
        raise UserError(f"{SOURCE}{name}: unknown parameter {unknown[0]}; it has {', '.join(sorted(known))}")
    try:
        return package().create_dataset(name, seed=seed, size=size, **parameters)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"{SOURCE}{name}: {error or 'parameters that do not go together'}; correct them") from None


@functools.cache
def package() -> types.ModuleType:
    """reasoning-gym, imported when it is needed; `UserError` if it is not installed."""
    try:
        import reasoning_gym
    except ImportError as error:
        if error.name != "reasoning_gym":
            raise
        raise UserError(f"{SOURCE}... needs the package: pip install 'tpullm[reasoning-gym]'") from None
    return reasoning_gym
