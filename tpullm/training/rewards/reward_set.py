"""The rewards of a stage: from settings to a number for each answer and each reward, in order.

No score depends on the clock, except where an answer is a program that runs (`code_tests.py`).
"""

import contextlib
import inspect
import math
import typing
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tpullm.system.errors import UserError
from tpullm.system.words import nearest
from tpullm.training.rewards import form
from tpullm.training.rewards.code_tests import CodeTests
from tpullm.training.rewards.own_function import OwnFunction
from tpullm.training.rewards.politeness import polite
from tpullm.training.rewards.reasoning import ReasoningGym
from tpullm.training.rewards.right_number import number
from tpullm.training.rewards.scorer import Each, Example, Scorer

# What makes each shipped reward from its parameters, in the order of the documentation's table. `count_tokens` is no
# parameter. Each scores from 0 to 1, and an answer without a visible character scores 0.
REWARDS: dict[str, Callable[..., Scorer]] = {
    "polite": lambda: Each(polite),
    "one_sentence": form.one_sentence,
    "length": form.length,
    "language": form.language,
    "json_schema": form.json_schema,
    "matches": form.matches,
    "number": number,
    "mentions": form.mentions,
    "code": CodeTests,
    "reasoning_gym": ReasoningGym,
    "no_repetition": form.no_repetition,
    "no_phrases": form.no_phrases,
}
SECONDS = 60.0  # for a function of the user's, for one batch
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_WORDS |= {dict: "a mapping", list[str]: "a list of texts"}


class Rewards(contextlib.AbstractContextManager):
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
        if not _fits_parameter_type(weight, float) or not math.isfinite(weight):
            raise UserError(f"reward {label}: weight: {weight} is not a number; give one, such as 0.5")
        try:
            if where is None:
                self._scorers[label] = _shipped_reward(name, parameters, count_tokens)
            else:
                limits = parameters.pop("seconds", SECONDS), parameters.pop("processes", 1)
                self._scorers[label] = OwnFunction(str(where), *limits, parameters)
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
        apart = [label for label, scorer in self._scorers.items() if not isinstance(scorer, Each)]  # in processes
        with ThreadPoolExecutor(max(1, len(apart))) as threads:
            try:
                begun = {label: threads.submit(self._score, label, batch) for label in apart}
                here = {label: self._score(label, batch) for label in self._scorers if label not in apart}
                return {label: here[label] if label in here else begun[label].result() for label in self._scorers}
            except BaseException:  # an error, or Ctrl-C: what still works is not waited for
                self.close()
                raise

    def total(self, scores: dict[str, np.ndarray]) -> np.ndarray:
        """The sum of `scores` by the weights, added in their order, of any shape."""
        return sum(self.weights[name] * np.asarray(values, np.float64) for name, values in scores.items())

    def close(self) -> None:
        """End the processes of all rewards; a later `score` starts them again."""
        for scorer in self._scorers.values():
            scorer.close()

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _score(self, label: str, batch: Sequence[Example]) -> np.ndarray:
        scorer, scores = self._scorers[label], np.zeros(len(batch))
        asked = [example for example in batch if isinstance(scorer, OwnFunction) or example.answer.strip()]
        try:
            scores[[example.number for example in asked]] = scorer.score(asked)
        except UserError as error:
            raise UserError(f"reward {label}: {error}") from None
        return scores


def _shipped_reward(name: Any, parameters: dict[str, Any], count_tokens: Callable | None) -> Scorer:
    if name not in REWARDS:
        raise UserError(f"no reward has this name; {nearest(name, REWARDS, 0.5)}")
    known = reward_parameters(name)
    for key, value in parameters.items():
        if key not in known:
            raise UserError(f"unknown parameter {key}; {nearest(key, known, 0.5)}")
        if not _fits_parameter_type(value, known[key].annotation):
            raise UserError(f"{key}: {value} is not {_WORDS[known[key].annotation]}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in parameters:
            raise UserError(f"{key} is missing; give {_WORDS[parameter.annotation]}")
    context = {"count_tokens": count_tokens} if name == "length" else {}
    return REWARDS[name](**parameters, **context)


def reward_parameters(name: str) -> dict[str, inspect.Parameter]:
    """The parameters of a shipped reward, with types and defaults."""
    found = inspect.signature(REWARDS[name]).parameters
    return {key: parameter for key, parameter in found.items() if key != "count_tokens"}


def _fits_parameter_type(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_fits_parameter_type(item, typing.get_args(kind)[0]) for item in value)
    # `True` is a whole number to Python alone.
    return isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) == (kind is bool)
