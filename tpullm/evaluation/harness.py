"""A model on tasks of EleutherAI's lm-evaluation-harness (Gao et al. 2021), which asks and judges.

The harness asks in text, by three kinds of requests. Text becomes tokens as the harness's own `hf` model makes them of
an exported model, so the numbers of both are equal; the intervals are ours. Only imported where the package `lm_eval`
is needed.
"""

import functools
import importlib.metadata
import math
import re
import traceback
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval import evaluator
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tpullm.evaluation import measured_model
from tpullm.evaluation.harness_tasks import YAML, harness_failures, quiet_harness
from tpullm.evaluation.likelihoods import Continuation
from tpullm.evaluation.measured_model import MeasuredModel, Writing
from tpullm.evaluation.statistics import of_mean
from tpullm.evaluation.tasks import Asking
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.system.errors import UserError

MOST = 1 << 20  # bytes of a YAML file that are looked at


def measure_by_harness(
    model: MeasuredModel, tasks: Sequence[str], manager: Any, asking: Asking, name: str
) -> dict[str, dict[str, Any]]:
    """The figures of tasks, by the names that the harness has for them.

    Args:
        tasks: names of tasks, groups and tags, and YAML files.
        manager: of `harness_tasks.harness_index`.
        name: of the model.

    Returns:
        Of each group and task its `version`, `settings` and `metrics`: of each the `value`, and the `interval` where it
        is a mean over questions. Of a task also the `prompt` of its first question, and `scores`: of each metric that
        is such a mean, the score of each question by the number of its document.

    Raises:
        UserError: a task has no question, or can't be loaded or run.
    """
    with harness_failures(tasks, ours=is_model_error), quiet_harness():
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
    names = (*results.get("groups", {}), *results["configs"])
    found = {each: figures_of_group(results, each, asking) for each in names}
    for file in (word for word in tasks if word.endswith(YAML)):
        with open(file, encoding="utf-8", errors="replace") as opened:
            # With tags of the harness's own, it is no plain YAML.
            named = re.findall(r"^(?:task|group): *(\S+) *$", opened.read(MOST), re.MULTILINE)
        for each in found.keys() & {name.strip("'\"") for name in named}:
            found[each]["file"] = file
    return found


def is_model_error(error: Exception) -> bool:
    """Whether the model failed, and not the task."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == measured_model.__name__ for frame, _ in frames)


def figures_of_group(results: dict[str, Any], name: str, asking: Asking) -> dict[str, Any]:
    """The figures of a task, or over the tasks of a group, from what the harness returns.

    They come with what repeats the measurement, and of each metric whether a higher one is better, where it is known.
    """
    settings = {"harness": importlib.metadata.version("lm_eval"), "shots": asking.shots or "", "seed": asking.seed}
    settings |= {"limit": asking.limit, "form": "chat" if asking.chat else "the task's"}
    known = results.get("higher_is_better", {}).get(name, {})
    better = {metric: higher for metric, higher in known.items() if higher is not None}
    found = {"version": str(results["versions"].get(name)), "settings": settings, "better": better}
    if name in results.get("groups", {}):
        settings["tasks"] = _tasks_of_group(results["group_subtasks"], name)
        samples = [sample for task in settings["tasks"] for sample in results["samples"][task]]
        metrics, _ = metric_figures(results["groups"][name], samples)
        return found | {"metrics": metrics}
    config, samples = results["configs"][name], results["samples"][name]
    if not samples:
        raise UserError(f"--tasks: {name}: has no question; look at its files")
    settings |= {"shots": results["n-shot"].get(name), "questions": results["n-samples"][name]}
    settings |= {"dataset": config.get("dataset_path"), "output": config.get("output_type")}
    metrics, scores = metric_figures(results["results"][name], samples)
    return found | {"prompt": str(samples[0]["arguments"][0][0]), "metrics": metrics, "scores": scores}


def _tasks_of_group(groups: dict[str, list[str]], group: str) -> list[str]:
    below = groups.get(group)
    return [group] if below is None else [task for each in below for task in _tasks_of_group(groups, each)]


def metric_figures(found: dict[str, Any], samples: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
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
        values, interval = [sample[metric] for sample in given], None
        are_numbers = values and all(isinstance(each, int | float | np.number) for each in values)
        # Others, such as perplexity, are no mean of what each question gave.
        if are_numbers and math.isclose(float(np.mean(values)), value, rel_tol=1e-6, abs_tol=1e-9):
            interval = of_mean(values)
            by_document = {sample["doc_id"]: float(sample[metric]) for sample in given}
            scores[name] = dict(sorted(by_document.items()))
        metrics[name] = {"value": value, "count": len(values), "interval": interval}
    return metrics, scores


class HarnessModel(TemplateLM):
    """Answers the harness by a `MeasuredModel`.

    Args:
        model: the model.
        name: what it is called in results.
        seed: of sampling, for tasks that ask for it.
    """

    eot_token_id = prefix_token_id = max_length = tokenizer_name = tok_encode = None  # of each object: see `__init__`

    def __init__(self, model: MeasuredModel, name: str, seed: int = 0):
        super().__init__()
        self._model, self._seed, self.tokenizer_name = model, seed, name
        tokenizer = self._texts = model.session.tokenizer
        named = getattr(tokenizer, "named_end", None)  # of a published model, the files may name several
        self.eot_token_id = tokenizer.eos_id if named is None else named
        self.prefix_token_id = self.eot_token_id if tokenizer.bos_id is None else tokenizer.bos_id
        self.max_length = model.session.context_length
        # Kept, as the choices of a question, and questions with the same examples, follow closely.
        self.tok_encode = functools.lru_cache(4096)(self._ids)

    def _ids(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """The ids of a text, after the token that begins one unless the text has it or `add_special_tokens` is False.

        The names of special tokens in it are these tokens: that is how chat templates arrive here.
        """
        ids = self._texts.encode_marked(string)
        begins = ids[:1] == [self.prefix_token_id] and add_special_tokens is None
        return ids if begins or add_special_tokens is False else [*self._texts.begin, *ids]

    def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
        asked = [Continuation(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        return [tuple(found) for found in self._model.likelihoods(asked)]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows of the context that do not overlap."""
        asked, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, windows):
                asked.append(Continuation(tuple(context), tuple(continuation)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, found in zip(owners, self._model.likelihoods(asked), strict=True):
            sums[number] += found.log_probability
        return sums

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the texts that the task names."""
        times: Counter = Counter()
        asked = []
        for request in requests:
            context, settings = request.args
            settings = normalize_gen_kwargs(settings)
            sampling = GREEDY
            if settings["do_sample"] and settings.get("temperature"):
                usual = {"top_k": 0, "top_p": 1, "min_p": 0}
                top_k, top_p, min_p = (settings.get(key) or number for key, number in usual.items())
                sampling = Sampling(float(settings["temperature"]), int(top_k), float(top_p), float(min_p))
            stops = handle_stop_sequences(settings["until"], self._texts.piece(self.eot_token_id))
            # One that is asked several times is answered by several seeds.
            seed = self._seed + times[context] if sampling.temperature else 0
            times[context] += 1
            ids = tuple(self.tok_encode(context))
            asked.append(Writing(ids, settings["max_gen_toks"], tuple(stops), sampling, seed))
        return self._model.written(asked)

    def apply_chat_template(self, chat_history: Sequence[dict], add_generation_prompt: bool = True) -> str:
        """A conversation as text: up to where the model answers, or to the end of what it began to say."""
        if add_generation_prompt:
            return self._texts.prompt_text(chat_history)
        return self._texts.prompt_text(chat_history[:-1]) + chat_history[-1]["content"]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template, for the results."""
        return getattr(self._texts, "template", None) or self.tokenizer_name
