"""Several models on the same tasks and texts: what each gives, and how the others differ from the first.

One model at a time is in memory. All answers are kept in one folder, by the hash of the parameters and of the request,
so a model that has answered is not asked again. A difference is a bootstrap of pairs, of questions and documents alike.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tpullm import __version__
from tpullm.engine.session import Found, session_of
from tpullm.evaluation import compared_texts, evaluate_tasks
from tpullm.evaluation.compared_texts import ComparedText
from tpullm.evaluation.measured_model import KeptAnswers, MeasuredModel
from tpullm.evaluation.programming_task import passed_programs
from tpullm.evaluation.question_task import RULES, WRITTEN, answers_by, character_f1
from tpullm.evaluation.statistics import answer_agreement, calibration, compared_means
from tpullm.evaluation.tasks import Asking, Tasks
from tpullm.model.architecture import parameter_count
from tpullm.system.cluster import hosts
from tpullm.system.log import say

SHARE = {"share": True}  # a figure from 0 to 1, which is written in percent
EXAMPLES = 3  # of each kind that are shown
SHOWN = (WRITTEN, "likelihood")  # the measures of which examples are shown


def compare_task(given: Sequence[dict[str, Any]], labels: Sequence[str], seed: int) -> dict[str, Any]:
    """The figures of a task.

    Args:
        given: by model, as `evaluate_tasks.measure_tasks` has it.
        labels: of the models.
        seed: chooses the examples.

    Returns:
        `version`, `settings` and `prompt`, which repeat it; `figures` by measure (`statistics.compared_means`), with
        the `agreement` of each model with the first where answers are right or wrong. Of a file of questions also
        `examples`, on which models differ; and if there are choices, `chance` and the `calibration` of each model.
    """
    first = given[0]
    found = {key: first[key] for key in ("version", "settings", "prompt", "chance") if key in first}
    if all("read_before" in own for own in given):  # a group of tasks has none
        found["read_before"] = [own["read_before"] for own in given]
    if "questions" not in first:
        return found | {"figures": _compare_harness_metrics(given)}
    rows = [own["questions"] for own in given]
    if "pass_at_k" in first:
        shares = [np.array([np.mean(each) for each in passed_programs(own).values()]) for own in rows]
        return found | {"figures": {"pass@1": _compare_scores(shares) | SHARE}}
    figures = {}
    for measure in (*RULES, WRITTEN):
        right = [np.array([is_right for _, _, is_right in answers_by(own, measure)], np.float64) for own in rows]
        if right[0].size:
            figures[measure] = _compare_scores(right) | SHARE
    f1 = [np.array([character_f1(row["written"], row["answers"]) for row in of_model]) for of_model in rows]
    found["figures"] = figures | {"f1": compared_means(f1) | SHARE}
    found["examples"] = []
    for label, other in zip(labels[1:], rows[1:], strict=True):
        for measure in (measure for measure in SHOWN if measure in found["figures"]):
            found["examples"] += _disagreeing_questions(rows[0], other, label, measure, seed)
    if "probabilities" in first:
        right = [row["choices"].index(row["answers"][0]) for row in rows[0] if "choices" in row]
        found["calibration"] = [calibration(own["probabilities"], right) for own in given]
    return found


def _compare_harness_metrics(given: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    figures = {}
    for metric, of_first in given[0]["metrics"].items():
        higher = given[0].get("better", {}).get(metric.partition(" (")[0], True)
        if all(metric in own.get("scores", {}) for own in given):
            scores = [np.array(list(own["scores"][metric].values())) for own in given]
            figures[metric] = _compare_scores(scores, higher)
            continue
        values = [own["metrics"][metric]["value"] for own in given]  # no mean over questions: no interval is known
        figures[metric] = {
            "count": of_first["count"],
            "better": "higher" if higher else "lower",
            "scores": [{"value": value, "interval": None} for value in values],
            "deltas": [{"value": value - values[0], "interval": None, "word": ""} for value in values[1:]],
        }
    return figures


def _compare_scores(scores: Sequence[np.ndarray], higher_is_better: bool = True) -> dict[str, Any]:
    """The figure of scores, with the agreement with the first model if they are right or wrong."""
    found = compared_means(scores, higher_is_better)
    if all(np.isin(own, (0, 1)).all() for own in scores):
        found["agreement"] = [answer_agreement(own == 1, scores[0] == 1) for own in scores[1:]]
    return found


def _disagreeing_questions(first: list[dict], other: list[dict], label: str, measure: str, seed: int) -> list[dict]:
    """Questions that one of two models answers right and the other wrong: how many, and some, drawn by the seed."""
    asked = list(zip(answers_by(first, measure), answers_by(other, measure), strict=True))
    found = []
    for kind, right in (("only_first", (True, False)), ("only_other", (False, True))):
        places = [place for place, (one, two) in enumerate(asked) if (one[2], two[2]) == right]
        drawn = np.sort(np.random.default_rng(seed).permutation(places)[:EXAMPLES]).astype(int).tolist()
        shown = [
            {"question": row["question"], "answers": row["answers"], "said": [one, two]}
            for (row, one, _), (_, two, _) in map(asked.__getitem__, drawn)
        ]
        found.append({"model": label, "measure": measure, "kind": kind, "count": len(places), "shown": shown})
    return found


def compare_models(
    models: dict[str, tuple[str, Found]],
    tasks: Tasks,
    texts: Sequence[ComparedText],
    asking: Asking,
    folder: Path,
    mesh: dict[str, int] | None,
) -> dict[str, Any]:
    """The figures of all models. With several hosts, all of them call this, and host 0 keeps the answers.

    Args:
        models: by their labels, the words that name them and what was found; the others are compared with the first.
        tasks: whose figures are compared.
        texts: documents, whose loss is compared.
        asking: how questions are asked; its seed also chooses the examples that are shown.
        folder: of `answers.jsonl`, which grows with each answer: the same command resumes, and asks nothing twice.
        mesh: how devices share a model; None chooses it.

    Returns:
        `models`, `tasks` (see `compare_task`), `texts`, and what repeats the comparison.
    """
    start, facts, given, nats = time.monotonic(), [], [], []
    with closing(KeptAnswers(folder)) as answers:
        for number, (label, (name, found)) in enumerate(models.items(), 1):
            if hosts.is_first():
                say(f"compare: {label}, model {number} of {len(models)}")
            session = model = None  # free this model before loading the next
            session = session_of(found, mesh=mesh)
            model = MeasuredModel(session, answers)
            given.append(evaluate_tasks.measure_tasks(model, name, tasks, asking))
            evaluate_tasks.add_read_before(session, tasks, given[-1])
            nats.append([compared_texts.nats_by_stretch(model, text.documents) for text in texts])
            model.warn_of_cuts(f"compare: {label}")
            facts.append({"label": label, "name": name, "hash": model.parameters})
            facts[-1] |= {"parameters": parameter_count(session.architecture.shapes)}
            facts[-1] |= {"vocabulary": session.architecture.config.vocabulary_size, "context": session.context_length}
            facts[-1] |= {"dtype": str(session.dtype), "talks": session.talks, "requests": model.counts}
    labels = list(models)
    return {
        "models": facts,
        "settings": asking.of_questions(),
        "program": {"tpullm": __version__, "jax": jax.__version__, "device": jax.devices()[0].device_kind},
        "tasks": {name: compare_task([of[name] for of in given], labels, asking.seed) for name in given[0]},
        "texts": _compare_texts(texts, nats) if texts else {},
        "seconds": round(time.monotonic() - start, 1),
    }


def _compare_texts(texts: Sequence[ComparedText], nats: list[list[np.ndarray]]) -> dict[str, Any]:
    """Bits a byte: over all texts, by text, and by place in a document; documents are what is paired.

    Args:
        nats: by model and text, `[documents, stretches]`.
    """
    sizes = [compared_texts.bytes_by_stretch(text.documents) for text in texts]
    bits = [[own / np.log(2) for own in of_model] for of_model in nats]
    by_text = [
        {"name": text.name, "version": text.version, "documents": len(text.documents), "bytes": int(size.sum())}
        | {"figure": _bits_per_byte([of_model[number] for of_model in bits], size)}
        for number, (text, size) in enumerate(zip(texts, sizes, strict=True))
    ]
    whole, every = np.concatenate(sizes), [np.concatenate(of_model) for of_model in bits]
    ends = [*compared_texts.STRETCHES[1:], None]
    by_place = []
    for number, (start, end) in enumerate(zip(compared_texts.STRETCHES, ends, strict=True)):
        there = whole[:, number] > 0
        if there.any():
            found = _bits_per_byte([of_model[there, number, None] for of_model in every], whole[there, number, None])
            by_place.append({"from": start, "to": end, "bytes": int(whole[:, number].sum()), "figure": found})
    return {"all": _bits_per_byte(every, whole), "by_text": by_text, "by_place": by_place}


def _bits_per_byte(bits: Sequence[np.ndarray], sizes: np.ndarray) -> dict[str, Any]:
    """Bits a byte of documents; both arguments have the stretches that count, `[documents, stretches]`."""
    return compared_means([own.sum(axis=1) for own in bits], higher_is_better=False, sizes=sizes.sum(axis=1))
