"""A model on tasks of EleutherAI's lm-evaluation-harness, which asks and judges."""

import importlib.metadata
import math
import re
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tpullm.evaluation import measured_model
from tpullm.evaluation.harness_tasks import YAML, failures, quiet
from tpullm.evaluation.measured_model import MeasuredModel
from tpullm.evaluation.question_task import Asking
from tpullm.evaluation.statistics import of_mean
from tpullm.system.errors import UserError

MOST = 1 << 20  # bytes of a YAML file that are looked at


def measure(
    model: MeasuredModel, tasks: Sequence[str], manager: Any, asking: Asking, name: str
) -> dict[str, dict[str, Any]]:
    """The figures of tasks, by the names that the harness has for them.

    Args:
        tasks: names of tasks, groups and tags, and YAML files.
        manager: of `harness_tasks.known`.
        name: of the model.

    Returns:
        Of each group and task its `version`, `settings` and `metrics`: of each the `value`, and the `interval` where it
        is a mean over questions. Of a task also the `prompt` of its first question, and `scores`: of each metric that
        is such a mean, the score of each question by the number of its document.

    Raises:
        UserError: a task has no question, or can't be loaded or run.
    """
    from lm_eval import evaluator

    from tpullm.evaluation.harness_model import HarnessModel

    with failures(tasks, ours=_is_ours), quiet():
        results = evaluator.simple_evaluate(
            HarnessModel(model, name, asking.seed),
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=asking.shots or None,
            limit=asking.limit or None,
            bootstrap_iters=0,  # its own starts processes, beside JAX's threads
            apply_chat_template=asking.chat,
            fewshot_as_multiturn=asking.chat,
            random_seed=asking.seed,
            numpy_random_seed=asking.seed,
            torch_random_seed=None,
            fewshot_random_seed=asking.seed,
        )
    groups = {group: _of_group(results, group, asking) for group in results.get("groups", {})}
    found = groups | {task: _of_task(results, task, asking) for task in results["configs"]}
    files = {name: word for word in tasks if word.endswith(YAML) for name in _named_in(word)}
    return {name: of | ({"file": files[name]} if name in files else {}) for name, of in found.items()}


def _named_in(file: str) -> list[str]:
    """The names of the task or group that a YAML file is: with tags of the harness's own, it is no plain YAML."""
    with open(file, encoding="utf-8", errors="replace") as opened:
        found = re.findall(r"^(?:task|group): *(\S+) *$", opened.read(MOST), re.MULTILINE)
    return [name.strip("'\"") for name in found]


def _is_ours(error: Exception) -> bool:
    """Whether the model failed, and not the task."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == measured_model.__name__ for frame, _ in frames)


def _of_task(results: dict[str, Any], task: str, asking: Asking) -> dict[str, Any]:
    config, samples = results["configs"][task], results["samples"][task]
    if not samples:
        raise UserError(f"--tasks: {task}: has no question; look at its files")
    return {
        "version": str(results["versions"].get(task)),
        "settings": _settings(asking)
        | {
            "shots": results["n-shot"].get(task),
            "questions": results["n-samples"][task],
            "dataset": config.get("dataset_path"),
            "output": config.get("output_type"),
        },
        "prompt": str(samples[0]["arguments"][0][0]),
        "metrics": _metrics(results["results"][task], samples),
        "better": _better(results, task),
        "scores": _scores(results["results"][task], samples),
    }


def _settings(asking: Asking) -> dict[str, Any]:
    return {
        "harness": importlib.metadata.version("lm_eval"),
        "shots": asking.shots or "",
        "seed": asking.seed,
        "limit": asking.limit,
        "form": "chat" if asking.chat else "the task's",
    }


def _better(results: dict[str, Any], task: str) -> dict[str, bool]:
    """Of each metric whether a higher one is better, where the harness knows."""
    known = results.get("higher_is_better", {}).get(task, {})
    return {name: higher for name, higher in known.items() if higher is not None}


def _of_group(results: dict[str, Any], group: str, asking: Asking) -> dict[str, Any]:
    """The figures over several tasks."""
    tasks = _tasks_of(results["group_subtasks"], group)
    samples = [sample for task in tasks for sample in results["samples"][task]]
    return {
        "version": str(results["versions"].get(group)),
        "settings": _settings(asking) | {"tasks": tasks},
        "metrics": _metrics(results["groups"][group], samples),
        "better": _better(results, group),
    }


def _tasks_of(groups: dict[str, list[str]], group: str) -> list[str]:
    below = groups.get(group)
    return [group] if below is None else [task for each in below for task in _tasks_of(groups, each)]


def _metrics(found: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each metric with its interval."""
    return {
        name: {"value": value, "count": len(values), "interval": _interval(value, values)}
        for name, value, _, values in _values(found, samples)
    }


def _scores(found: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Of each metric that is a mean over questions, the score of each question, by the number of its document."""
    in_order = sorted(samples, key=lambda sample: sample["doc_id"])
    return {
        name: {sample["doc_id"]: float(score) for sample, score in zip(given, values, strict=True)}
        for name, value, given, values in _values(found, in_order)
        if _interval(value, values) is not None
    }


def _values(
    found: dict[str, Any], samples: list[dict[str, Any]]
) -> Iterator[tuple[str, float, list[dict[str, Any]], list[Any]]]:
    """Of each metric its name, its value, its samples, and what each gave; it is `METRIC,FILTER` in the harness."""
    for key, value in found.items():
        metric, _, filtered = key.partition(",")
        if isinstance(value, int | float) and not metric.endswith("_stderr") and filtered:
            given = [sample for sample in samples if sample["filter"] == filtered and metric in sample]
            name = metric if filtered == "none" else f"{metric} ({filtered})"
            yield name, value, given, [sample[metric] for sample in given]


def _interval(value: float, values: list) -> list[float] | None:
    """The interval of a metric that is the mean of what each question gave; None for others, such as perplexity."""
    if not values or not all(isinstance(each, int | float | np.number) for each in values):
        return None
    if not math.isclose(float(np.mean(values)), value, rel_tol=1e-6, abs_tol=1e-9):
        return None
    return list(of_mean(values))
