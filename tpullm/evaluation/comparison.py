"""Several models on the same tasks and texts: what each gives, and how the others differ from the first.

One model at a time is in memory. All answers are kept in one folder, by the hash of the parameters and of the request,
so a model that has answered is not asked again. A difference is a bootstrap of pairs, of questions and documents alike.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tpullm import __version__
from tpullm.engine.session import Found, loaded
from tpullm.evaluation import compared_texts, evaluate_tasks
from tpullm.evaluation.compared_texts import ComparedText
from tpullm.evaluation.evaluate_tasks import Tasks
from tpullm.evaluation.kept_answers import KeptAnswers
from tpullm.evaluation.measured_model import MeasuredModel
from tpullm.evaluation.question_files import character_f1
from tpullm.evaluation.question_task import RULES, Asking
from tpullm.evaluation.statistics import agreement, calibration, figure
from tpullm.model.architecture import parameter_count
from tpullm.system.cluster import hosts
from tpullm.system.log import say, warn
from tpullm.training.rewards.code_tests import PASSED

SHARE = {"share": True}  # a figure from 0 to 1, which is written in percent
EXAMPLES = 3  # of each kind that are shown
SHOWN = ("written", "likelihood")  # the measures of which examples are shown


def task(given: Sequence[dict[str, Any]], labels: Sequence[str], seed: int) -> dict[str, Any]:
    """The figures of a task.

    Args:
        given: by model, as `evaluate_tasks.measured` has it.
        labels: of the models.
        seed: chooses the examples.

    Returns:
        `version`, `settings` and `prompt`, which repeat it; `figures`, by measure (see `differences.figure`), with the
        `agreement` of each model with the first where answers are right or wrong. Of a file of questions also
        `examples`, on which models differ; and if there are choices, `chance` and the `calibration` of each model.
    """
    first = given[0]
    found = {key: first[key] for key in ("version", "settings", "prompt", "chance") if key in first}
    if all("read_before" in own for own in given):  # a group of tasks has none
        found["read_before"] = [own["read_before"] for own in given]
    if "questions" not in first:
        return found | {"figures": _of_harness(given)}
    rows = [own["questions"] for own in given]
    if "pass_at_k" in first:
        scores = [_passed(of_model) for of_model in rows]
        return found | {"figures": {"pass@1": figure(scores) | _agreements(scores) | SHARE}}
    found["figures"] = {measure: each | SHARE for measure, each in _of_file(rows).items()}
    found["examples"] = [
        examples
        for number, label in enumerate(labels[1:], 1)
        for measure in SHOWN
        if measure in found["figures"]
        for examples in _examples(rows[0], rows[number], label, measure, seed)
    ]
    if "probabilities" in first:
        right = [row["choices"].index(row["answers"][0]) for row in rows[0] if "choices" in row]
        found["calibration"] = [calibration(own["probabilities"], right) for own in given]
    return found


def _of_harness(given: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    figures = {}
    for metric, of_first in given[0]["metrics"].items():
        higher = given[0].get("better", {}).get(metric.partition(" (")[0], True)
        if all(metric in own.get("scores", {}) for own in given):
            scores = [np.array(list(own["scores"][metric].values())) for own in given]
            figures[metric] = figure(scores, higher) | _agreements(scores)
            continue
        values = [own["metrics"][metric]["value"] for own in given]  # no mean over questions: no interval is known
        figures[metric] = {
            "count": of_first["count"],
            "better": "higher" if higher else "lower",
            "scores": [{"value": value, "interval": None} for value in values],
            "deltas": [{"value": value - values[0], "interval": None, "word": ""} for value in values[1:]],
        }
    return figures


def _of_file(rows: Sequence[list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The figures of a file of questions: by each rule for the likeliest choice, and of what was written."""
    figures = {}
    for measure in (*RULES, "written"):
        if _asked(rows[0], measure):
            scores = [np.array(_right(of_model, measure), np.float64) for of_model in rows]
            figures[measure] = figure(scores) | _agreements(scores)
    f1 = [np.array([character_f1(row["written"], row["answers"]) for row in of_model]) for of_model in rows]
    return figures | {"f1": figure(f1)}


def _passed(rows: list[dict[str, Any]]) -> np.ndarray:
    """Of each problem of programming the share of its programs that pass."""
    verdicts: dict[str, list[bool]] = {}
    for row in rows:
        verdicts.setdefault(row["problem"], []).append(row["verdict"] == PASSED)
    return np.array([np.mean(of_problem) for of_problem in verdicts.values()])


def _asked(rows: list[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    """The questions that a measure is of."""
    return rows if measure == "written" else [row for row in rows if "likeliest" in row]


def _right(rows: list[dict[str, Any]], measure: str) -> list[bool]:
    if measure == "written":
        return [row["right"] for row in rows]
    return [row["likeliest"][measure] == row["answers"][0] for row in _asked(rows, measure)]


def _agreements(scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """With the first model; nothing if scores are not right or wrong."""
    if not all(np.isin(own, (0, 1)).all() for own in scores):
        return {}
    return {"agreement": [agreement(own == 1, scores[0] == 1) for own in scores[1:]]}


def _examples(
    first: list[dict[str, Any]], other: list[dict[str, Any]], label: str, measure: str, seed: int
) -> list[dict[str, Any]]:
    """Questions that one of two models answers right and the other wrong: how many, and some, drawn by the seed."""
    asked = list(zip(_asked(first, measure), _asked(other, measure), strict=True))
    right = np.array(_right(first, measure)), np.array(_right(other, measure))
    found = []
    for kind, differs in (("only_first", right[0] & ~right[1]), ("only_other", right[1] & ~right[0])):
        places = np.flatnonzero(differs)
        drawn = np.sort(np.random.default_rng(seed).permutation(places)[:EXAMPLES]).tolist()
        shown = [
            {"question": one["question"], "answers": one["answers"]}
            | {"said": [_said(one, measure), _said(two, measure)]}
            for one, two in map(asked.__getitem__, drawn)
        ]
        found.append({"model": label, "measure": measure, "kind": kind, "count": len(places), "shown": shown})
    return found


def _said(row: dict[str, Any], measure: str) -> str:
    return row["written"] if measure == "written" else row["likeliest"][measure]


@dataclass(frozen=True)
class Compared:
    """What models are compared on.

    Args:
        tasks: None are none.
        texts: documents, whose loss is compared.
        asking: how questions are asked; its seed also chooses the examples that are shown.
    """

    tasks: Tasks | None
    texts: Sequence[ComparedText]
    asking: Asking


@dataclass(frozen=True)
class _OfModel:
    """What one model gives.

    Args:
        facts: of the model, for the results.
        tasks: `evaluate_tasks.measured`, with `read_before` of each file of questions.
        nats: of each text, `[documents, stretches]`.
    """

    facts: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    nats: list[np.ndarray]


def compare(
    models: dict[str, tuple[str, Found]], compared: Compared, folder: Path, mesh: dict[str, int] | None
) -> dict[str, Any]:
    """The figures of all models. With several hosts, all of them call this, and host 0 keeps the answers.

    Args:
        models: by their labels, the words that name them and what was found; the others are compared with the first.
        folder: of `answers.jsonl`, which grows with each answer: the same command resumes, and asks nothing twice.
        mesh: how devices share a model; None chooses it.

    Returns:
        `models`, `tasks` (see `compared_tasks.task`), `texts`, and what repeats the comparison.
    """
    start, given = time.monotonic(), []
    with closing(KeptAnswers(folder)) as answers:
        for number, (label, (name, found)) in enumerate(models.items(), 1):
            if hosts.is_first():
                say(f"compare: {label}, model {number} of {len(models)}")
            given.append(_measured(label, name, found, compared, answers, mesh))
    seed, labels = compared.asking.seed, list(models)
    return {
        "models": [of_model.facts for of_model in given],
        "settings": asdict(compared.asking),
        "program": {"tpullm": __version__, "jax": jax.__version__, "device": jax.devices()[0].device_kind},
        "tasks": {name: task([of.tasks[name] for of in given], labels, seed) for name in given[0].tasks},
        "texts": _texts(compared.texts, [of_model.nats for of_model in given]),
        "seconds": round(time.monotonic() - start, 1),
    }


def _measured(
    label: str, name: str, found: Found, compared: Compared, answers: KeptAnswers, mesh: dict[str, int] | None
) -> _OfModel:
    """What one model gives; its memory is free again when this returns."""
    session = loaded(found, mesh=mesh)
    model = MeasuredModel(session, answers)
    tasks = evaluate_tasks.measured(model, name, compared.tasks, compared.asking) if compared.tasks else {}
    if compared.tasks:
        evaluate_tasks.add_read_before(session, compared.tasks, tasks)
    nats = [compared_texts.nats(model, text.documents) for text in compared.texts]
    if model.counts.cut and hosts.is_first():
        warn(
            f"compare: {label}: {model.counts.cut:,} of {model.counts.requests:,} requests are longer than the context "
            f"of {session.context_length} tokens, and lost their beginning"
        )
    facts = {
        "label": label,
        "name": name,
        "hash": model.parameters,
        "parameters": parameter_count(session.architecture.shapes),
        "vocabulary": session.architecture.config.vocabulary_size,
        "context": session.context_length,
        "dtype": str(session.dtype),
        "talks": session.talks,
        "requests": asdict(model.counts),
    }
    return _OfModel(facts, tasks, nats)


def _texts(texts: Sequence[ComparedText], nats: list[list[np.ndarray]]) -> dict[str, Any]:
    """Bits a byte: over all texts, by text, and by place in a document; documents are what is paired.

    Args:
        nats: by model and text, `[documents, stretches]`.
    """
    if not texts:
        return {}
    sizes = [compared_texts.sizes(text.documents) for text in texts]
    bits = [[own / np.log(2) for own in of_model] for of_model in nats]
    by_text = [
        {"name": text.name, "version": text.version, "documents": len(text.documents), "bytes": int(size.sum())}
        | {"figure": _loss([of_model[number] for of_model in bits], size)}
        for number, (text, size) in enumerate(zip(texts, sizes, strict=True))
    ]
    whole, every = np.concatenate(sizes), [np.concatenate(of_model) for of_model in bits]
    ends = [*compared_texts.STRETCHES[1:], None]
    by_place = []
    for number, (start, end) in enumerate(zip(compared_texts.STRETCHES, ends, strict=True)):
        there = whole[:, number] > 0
        if there.any():
            found = _loss([of_model[there, number, None] for of_model in every], whole[there, number, None])
            by_place.append({"from": start, "to": end, "bytes": int(whole[:, number].sum()), "figure": found})
    return {"all": _loss(every, whole), "by_text": by_text, "by_place": by_place}


def _loss(bits: Sequence[np.ndarray], sizes: np.ndarray) -> dict[str, Any]:
    """Bits a byte of documents; both arguments have the stretches that count, `[documents, stretches]`."""
    return figure([own.sum(axis=1) for own in bits], higher_is_better=False, sizes=sizes.sum(axis=1))
