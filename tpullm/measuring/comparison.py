"""Several models on the same tasks and texts: what each gives, and how the others differ from the first.

One model at a time is in memory. All answers are kept in one folder, by the hash of the parameters and of the request.
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
from tpullm.cluster import hosts
from tpullm.inference.session import Found, loaded
from tpullm.log import say, warn
from tpullm.measuring import evaluate_tasks, text_losses
from tpullm.measuring.compared_tasks import task
from tpullm.measuring.compared_texts import ComparedText
from tpullm.measuring.differences import figure
from tpullm.measuring.evaluate_tasks import Tasks
from tpullm.measuring.kept_answers import KeptAnswers
from tpullm.measuring.measured_model import MeasuredModel
from tpullm.measuring.question_task import Asking
from tpullm.model.count import parameter_count


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
    nats = [text_losses.nats(model, text.documents) for text in compared.texts]
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
    sizes = [text_losses.sizes(text.documents) for text in texts]
    bits = [[own / np.log(2) for own in of_model] for of_model in nats]
    by_text = [
        {"name": text.name, "version": text.version, "documents": len(text.documents), "bytes": int(size.sum())}
        | {"figure": _loss([of_model[number] for of_model in bits], size)}
        for number, (text, size) in enumerate(zip(texts, sizes, strict=True))
    ]
    whole, every = np.concatenate(sizes), [np.concatenate(of_model) for of_model in bits]
    ends = [*text_losses.STRETCHES[1:], None]
    by_place = []
    for number, (start, end) in enumerate(zip(text_losses.STRETCHES, ends, strict=True)):
        there = whole[:, number] > 0
        if there.any():
            found = _loss([of_model[there, number, None] for of_model in every], whole[there, number, None])
            by_place.append({"from": start, "to": end, "bytes": int(whole[:, number].sum()), "figure": found})
    return {"all": _loss(every, whole), "by_text": by_text, "by_place": by_place}


def _loss(bits: Sequence[np.ndarray], sizes: np.ndarray) -> dict[str, Any]:
    """Bits a byte of documents; both arguments have the stretches that count, `[documents, stretches]`."""
    return figure([own.sum(axis=1) for own in bits], higher_is_better=False, sizes=sizes.sum(axis=1))
