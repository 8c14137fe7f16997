"""A model on tasks of EleutherAI's lm-evaluation-harness, which asks and judges; the intervals are ours."""

import importlib.metadata
import math
import re
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np

from tpullm.evaluation import measured_model
from tpullm.evaluation.harness_tasks import YAML, failures, quiet
from tpullm.evaluation.measured_model import MeasuredModel
from tpullm.evaluation.statistics import of_mean
from tpullm.evaluation.tasks import Asking
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

    with failures(tasks, ours=is_ours), quiet():
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
    groups = {group: of_group(results, group, asking) for group in results.get("groups", {})}
    found = groups | {task: of_task(results, task, asking) for task in results["configs"]}
    files = {name: word for word in tasks if word.endswith(YAML) for name in _named_in(word)}
    return {name: of | ({"file": files[name]} if name in files else {}) for name, of in found.items()}


def _named_in(file: str) -> list[str]:
    """The names of the task or group that a YAML file is: with tags of the harness's own, it is no plain YAML."""
    with open(file, encoding="utf-8", errors="replace") as opened:
        found = re.findall(r"^(?:task|group): *(\S+) *$", opened.read(MOST), re.MULTILINE)
    return [name.strip("'\"") for name in found]


def is_ours(error: Exception) -> bool:
    """Whether the model failed, and not the task."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == measured_model.__name__ for frame, _ in frames)


def of_task(results: dict[str, Any], task: str, asking: Asking) -> dict[str, Any]:
    """The figures of a task, from what the harness returns."""
    config, samples = results["configs"][task], results["samples"][task]
    if not samples:
        raise UserError(f"--tasks: {task}: has no question; look at its files")
    facts = {
        "shots": results["n-shot"].get(task),
        "questions": results["n-samples"][task],
        "dataset": config.get("dataset_path"),
        "output": config.get("output_type"),
    }
    metrics, scores = figures(results["results"][task], samples)
    prompt = str(samples[0]["arguments"][0][0])
    return _facts(results, task, asking, facts) | {"prompt": prompt, "metrics": metrics, "scores": scores}


def of_group(results: dict[str, Any], group: str, asking: Asking) -> dict[str, Any]:
    """The figures over several tasks."""
    tasks = _tasks_of(results["group_subtasks"], group)
    samples = [sample for task in tasks for sample in results["samples"][task]]
    metrics, _ = figures(results["groups"][group], samples)
    return _facts(results, group, asking, {"tasks": tasks}) | {"metrics": metrics}


def _tasks_of(groups: dict[str, list[str]], group: str) -> list[str]:
    below = groups.get(group)
    return [group] if below is None else [task for each in below for task in _tasks_of(groups, each)]


def _facts(results: dict[str, Any], name: str, asking: Asking, more: dict[str, Any]) -> dict[str, Any]:
    """What repeats the measurement, and of each metric whether a higher one is better, where the harness knows."""
    settings = {
        "harness": importlib.metadata.version("lm_eval"),
        "shots": asking.shots or "",
        "seed": asking.seed,
        "limit": asking.limit,
        "form": "chat" if asking.chat else "the task's",
    }
    known = results.get("higher_is_better", {}).get(name, {})
    better = {metric: higher for metric, higher in known.items() if higher is not None}
    return {"version": str(results["versions"].get(name)), "settings": settings | more, "better": better}


def figures(found: dict[str, Any], samples: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Each metric with its interval; and of each that is a mean over questions, their scores by number of document.

    Args:
        found: the harness's, by `METRIC,FILTER`.
        samples: what became of each question.
    """
    metrics, scores = {}, {}
    for key, value in found.items():
        metric, _, filtered = key.partition(",")
        if not isinstance(value, int | float) or metric.endswith("_stderr") or not filtered:
            continue
        name = metric if filtered == "none" else f"{metric} ({filtered})"
        given = [sample for sample in samples if sample["filter"] == filtered and metric in sample]
        values = [sample[metric] for sample in given]
        interval = _interval(value, values)
        metrics[name] = {"value": value, "count": len(values), "interval": interval}
        if interval is not None:
            by_document = {sample["doc_id"]: float(sample[metric]) for sample in given}
            scores[name] = dict(sorted(by_document.items()))
    return metrics, scores


def _interval(value: float, values: list) -> list[float] | None:
    """The interval of a metric that is the mean of what each question gave; None for others, such as perplexity."""
    if not values or not all(isinstance(each, int | float | np.number) for each in values):
        return None
    if not math.isclose(float(np.mean(values)), value, rel_tol=1e-6, abs_tol=1e-9):
        return None
    return list(of_mean(values))
