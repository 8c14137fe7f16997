"""Tasks of EleutherAI's lm-evaluation-harness: its names, and YAML files of one's own."""

import contextlib
import difflib
import importlib.metadata
import logging
import math
import os
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.errors import UserError
from tpullm.log import one_line
from tpullm.measuring import measured_model
from tpullm.measuring.intervals import bootstrap, wilson
from tpullm.measuring.measured_model import MeasuredModel
from tpullm.measuring.question_task import Asking

YAML = (".yaml", ".yml")
NO_BARS = ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS")  # ours is the one that is shown


def known(tasks: Sequence[str]) -> Any:
    """The harness's index of tasks, which has all of these.

    Raises:
        UserError: the package is not installed, or a task is not known.
    """
    for variable in NO_BARS:
        os.environ.setdefault(variable, "1")  # read when the packages are imported
    try:
        with _quiet():
            from lm_eval.tasks import TaskManager

            manager = TaskManager()
    except ImportError:
        raise UserError(
            f"--tasks: {tasks[0]}: tasks of the harness need the package: pip install 'tpullm[lm-eval]'; a file of "
            "questions (.jsonl, .json, .parquet) needs nothing"
        ) from None
    for task in tasks:
        _check(task, set(manager.all_tasks))
    return manager


def measure(
    model: MeasuredModel, tasks: Sequence[str], manager: Any, asking: Asking, name: str
) -> dict[str, dict[str, Any]]:
    """The figures of tasks, by the names that the harness has for them.

    Args:
        tasks: names of tasks, groups and tags, and YAML files.
        manager: of `known`.
        name: of the model.

    Returns:
        Of each group and task its `version`, `settings` and `metrics`: of each the `value`, and the `interval` where it
        is a mean over questions. Of a task also the `prompt` of its first question, and `scores`: of each metric that
        is such a mean, the score of each question in its order.

    Raises:
        UserError: a task has no question, or can't be loaded or run.
    """
    from lm_eval import evaluator

    from tpullm.measuring.harness_model import HarnessModel

    try:
        with _quiet():
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
    except UserError:
        raise
    except Exception as error:  # foreign files and foreign code: anything may be wrong
        if _is_ours(error):
            raise
        why = f"{type(error).__name__}: {one_line(str(error), 300)}"
        raise UserError(f"--tasks: {', '.join(tasks)}: the harness can't load or run them ({why})") from error
    groups = {group: _of_group(results, group) for group in results.get("groups", {})}
    return groups | {task: _of_task(results, task, asking) for task in results["configs"]}


def _is_ours(error: Exception) -> bool:
    """Whether the model failed, and not the task."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == measured_model.__name__ for frame, _ in frames)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The harness and what it imports log errors alone; ours is the progress."""
    logger = logging.getLogger("lm_eval")
    before, disabled = logger.level, logging.root.manager.disable
    logger.setLevel(logging.ERROR)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
        logging.disable(disabled)


def _check(task: str, known: set[str]) -> None:
    if task.endswith(YAML):
        if not Path(task).is_file():
            raise UserError(f"--tasks: {task}: no such file; correct the name")
    elif task not in known:
        near = difflib.get_close_matches(task, known, 1)
        raise UserError(
            f"--tasks: {task}: the harness has no such task{f', did you mean {near[0]}?' if near else ''}; a file of "
            "questions ends in .jsonl, .json or .parquet, a task of your own in .yaml"
        )


def _of_task(results: dict[str, Any], task: str, asking: Asking) -> dict[str, Any]:
    config, samples = results["configs"][task], results["samples"][task]
    if not samples:
        raise UserError(f"--tasks: {task}: has no question; look at its files")
    return {
        "version": str(results["versions"].get(task)),
        "settings": {
            "harness": importlib.metadata.version("lm_eval"),
            "shots": results["n-shot"].get(task),
            "seed": asking.seed,
            "limit": asking.limit,
            "form": "chat" if asking.chat else "the task's",
            "questions": results["n-samples"][task],
            "dataset": config.get("dataset_path"),
            "output": config.get("output_type"),
        },
        "prompt": str(samples[0]["arguments"][0][0]),
        "metrics": _metrics(results["results"][task], samples),
        "better": {name: bool(higher) for name, higher in results.get("higher_is_better", {}).get(task, {}).items()},
        "scores": _scores(results["results"][task], samples),
    }


def _of_group(results: dict[str, Any], group: str) -> dict[str, Any]:
    """The figures over several tasks."""
    tasks = _tasks_of(results["group_subtasks"], group)
    samples = [sample for task in tasks for sample in results["samples"][task]]
    settings = {"harness": importlib.metadata.version("lm_eval"), "shots": "", "tasks": tasks}
    metrics = _metrics(results["groups"][group], samples)
    return {"version": str(results["versions"].get(group)), "settings": settings, "metrics": metrics}


def _tasks_of(groups: dict[str, list[str]], group: str) -> list[str]:
    below = groups.get(group)
    return [group] if below is None else [task for each in below for task in _tasks_of(groups, each)]


def _metrics(found: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each metric with its interval."""
    return {
        name: {"value": value, "count": len(values), "interval": _interval(value, values)}
        for name, value, values in _values(found, samples)
    }


def _scores(found: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Of each metric that is a mean over questions, the score of each question, in the order of the questions."""
    in_order = sorted(samples, key=lambda sample: sample["doc_id"])
    return {
        name: list(map(float, values))
        for name, value, values in _values(found, in_order)
        if _interval(value, values) is not None
    }


def _values(found: dict[str, Any], samples: list[dict[str, Any]]) -> Iterator[tuple[str, float, list]]:
    """Of each metric its name, its value, and what each question gave; it is `METRIC,FILTER` in the harness."""
    for key, value in found.items():
        metric, _, filtered = key.partition(",")
        if isinstance(value, int | float) and not metric.endswith("_stderr") and filtered:
            values = [sample[metric] for sample in samples if sample["filter"] == filtered and metric in sample]
            yield metric if filtered == "none" else f"{metric} ({filtered})", value, values


def _interval(value: float, values: list) -> list[float] | None:
    """The interval of a metric that is the mean of what each question gave; None for others, such as perplexity."""
    if not values or not all(isinstance(each, int | float | np.number) for each in values):
        return None
    if not math.isclose(float(np.mean(values)), value, rel_tol=1e-6, abs_tol=1e-9):
        return None
    if set(values) <= {0, 1}:
        return list(wilson(int(sum(values)), len(values)))
    return list(bootstrap(np.array(values, np.float64)))
