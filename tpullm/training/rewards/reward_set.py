"""The rewards of a stage: from settings to a number for each answer and each reward, in order.

No score depends on the clock, except where an answer is a program that runs (`code_tests.py`).
"""

import difflib
import inspect
import math
import typing
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tpullm.system.errors import UserError
from tpullm.training.rewards.known_failures import weighted_sum
from tpullm.training.rewards.own_function import OwnFunction
from tpullm.training.rewards.scorer import Example, Scorer
from tpullm.training.rewards.shipped_rewards import REWARDS

SECONDS = 60.0  # for a function of the user's, for one batch
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}


class Rewards:
    """Rewards by rule.

    Args:
        settings: for each reward `name`, one of `REWARDS`, or `function`, `FILE.py:FUNCTION`; `weight` (1 without it);
            `label`, its name in all results (else its name, or that of the function); and its parameters. A function
            also has `seconds` for a batch and `processes` that share it.
        count_tokens: of a text, by the tokenizer; for `length` in tokens.

    Attributes:
        weights: of each reward, by its label.

    Raises:
        UserError: a setting is unknown or wrong: one line that names it.
    """

    def __init__(self, settings: Sequence[dict[str, Any]], count_tokens: Callable[[str], int] | None = None):
        self.weights: dict[str, float] = {}
        self._scorers: dict[str, Scorer] = {}
        self._shipped: dict[str, str] = {}  # label → name
        if not settings:
            raise UserError("rewards: there is none; give at least one, such as {name: polite}")
        try:
            for setting in settings:
                self._add(setting, count_tokens)
        except BaseException:
            self.close()
            raise

    def _add(self, setting: dict[str, Any], count_tokens: Callable | None) -> None:
        if not isinstance(setting, dict) or ("name" in setting) == ("function" in setting):
            raise UserError(f"rewards: {setting}: give each a `name` or a `function`, such as {{name: polite}}")
        parameters = dict(setting)
        name, where = parameters.pop("name", None), parameters.pop("function", None)
        label = parameters.pop("label", name or str(where).rpartition(":")[2])
        weight = parameters.pop("weight", 1.0)
        if label in self.weights:
            raise UserError(f"rewards: two are named {label}; give one of them a `label` of its own")
        if not _is_number(weight) or not math.isfinite(weight):
            raise UserError(f"reward {label}: weight: {weight} is not a number; give one, such as 0.5")
        try:
            if where is not None:
                self._scorers[label] = _own(where, parameters)
            else:
                self._scorers[label] = _shipped(name, parameters, count_tokens)
                self._shipped[label] = name
        except UserError as error:
            raise UserError(f"reward {label}: {error}") from None
        self.weights[label] = float(weight)

    def score(
        self, answers: Sequence[str], prompts: Sequence[Sequence[dict]], fields: Sequence[dict]
    ) -> dict[str, np.ndarray]:
        """The scores of each reward, float64 `[answers]`, in the order of the settings and of the answers.

        Args:
            answers: the texts of the model.
            prompts: `{"role", "content"}` each.
            fields: what else the example of each answer has.

        Raises:
            UserError: a reward can't score an example; the line names both.
        """
        texts = [answer.encode("utf-8", "replace").decode() for answer in answers]  # half a surrogate is no character
        batch = [Example(n, *parts) for n, parts in enumerate(zip(texts, prompts, fields, strict=True))]
        apart = [label for label in self._scorers if self._in_processes(label)]
        with ThreadPoolExecutor(max(1, len(apart))) as threads:
            try:
                begun = {label: threads.submit(self._score, label, batch) for label in apart}
                here = {label: self._score(label, batch) for label in self._scorers if label not in apart}
                return {label: here[label] if label in here else begun[label].result() for label in self._scorers}
            except BaseException:  # an error, or Ctrl-C: what still works is not waited for
                self.close()
                raise

    def total(self, scores: dict[str, np.ndarray]) -> np.ndarray:
        """The sum of `scores` by the weights, of any shape."""
        return weighted_sum(scores, self.weights)

    def close(self) -> None:
        """End the processes of all rewards; a later `score` starts them again."""
        for scorer in self._scorers.values():
            scorer.close()

    def __enter__(self) -> "Rewards":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _in_processes(self, label: str) -> bool:
        return label not in self._shipped or REWARDS[self._shipped[label]].in_processes

    def _score(self, label: str, batch: Sequence[Example]) -> np.ndarray:
        asked = [example for example in batch if label not in self._shipped or example.answer.strip()]
        scores = np.zeros(len(batch))
        try:
            scores[[example.number for example in asked]] = self._scorers[label].score(asked)
        except UserError as error:
            raise UserError(f"reward {label}: {error}") from None
        return scores


def _own(where: Any, parameters: dict[str, Any]) -> OwnFunction:
    seconds, processes = parameters.pop("seconds", SECONDS), parameters.pop("processes", 1)
    if not _is_number(seconds) or not isinstance(processes, int):
        raise UserError(f"seconds {seconds}, processes {processes}: give a number, and a whole number")
    return OwnFunction(str(where), seconds, processes, parameters)


def _shipped(name: Any, parameters: dict[str, Any], count_tokens: Callable | None) -> Scorer:
    if name not in REWARDS:
        nearest = difflib.get_close_matches(str(name), REWARDS, 1, 0.5)
        more = f"the nearest is {nearest[0]}" if nearest else f"there are {', '.join(REWARDS)}"
        raise UserError(f"no reward has this name; {more}")
    make = REWARDS[name].make
    known = parameters_of(name)
    for key, value in parameters.items():
        if key not in known:
            nearest = difflib.get_close_matches(key, known, 1, 0.5)
            more = f"the nearest is {nearest[0]}" if nearest else f"it has {', '.join(known) or 'none'}"
            raise UserError(f"unknown parameter {key}; {more}")
        if not _fits(value, known[key].annotation):
            raise UserError(f"{key}: {value} is not {_wanted(known[key].annotation)}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in parameters:
            raise UserError(f"{key} is missing; give {_wanted(parameter.annotation)}")
    context = {"count_tokens": count_tokens} if "count_tokens" in inspect.signature(make).parameters else {}
    return make(**parameters, **context)


def parameters_of(name: str) -> dict[str, inspect.Parameter]:
    """The parameters of a shipped reward, with types and defaults."""
    found = dict(inspect.signature(REWARDS[name].make).parameters)
    found.pop("count_tokens", None)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, typing.get_args(kind)[0]) for item in value)
    if kind in (int, float):
        return _is_number(value) and (kind is float or isinstance(value, int))
    return isinstance(value, kind)


def _wanted(kind: Any) -> str:
    return "a list of texts" if typing.get_origin(kind) is list else _WORDS[kind]
