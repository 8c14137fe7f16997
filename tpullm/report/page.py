"""The report of a run: the figures of its headline and of its first steps, for `templates/report.html`.

A section that the run has nothing for is left out. The functions of `SECTIONS` find the figures; the template of the
same name has the sentences. Some sections are in `result_sections.py`.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tpullm.corpus.document import REASONS
from tpullm.report.html import mixed, phrase
from tpullm.report.rendering import render
from tpullm.report.result_sections import (
    export,
    finetune,
    gap_to_truth,
    growing_blanks,
    growing_texts,
    losses,
    measured,
    truth,
    yours,
)
from tpullm.report.run_data import RunData, finite_number, finite_numbers, nested_value, series_by_tokens
from tpullm.run import hours
from tpullm.system.words import count, percent

Section = dict[str, Any] | None
MOST_ROWS = 20  # of sources, languages and licences; the data card has them all
_UNREAD = "unknown extension"  # the reason in corpus/sources.py for a file that it can't read; the extension follows


def page(data: RunData, live: bool = False) -> str:
    """The report as one HTML document; the same data give the same text.

    Args:
        live: while stages of the run are missing, the page says what is being made, and asks its server again and
            again for what is new. Results of an evaluation are then those of a model that was replaced, and left out.
    """
    going_on = progress(data) if live else None
    data = dataclasses.replace(data, results={}) if going_on else data
    read = series_by_tokens(data.pretrain, "loss")
    dates = [str(made["finished"]) for made in data.manifests.values() if made.get("finished")]
    names = sorted(SECTIONS, key=lambda name: not going_on or name != going_on["section"])  # what changes comes first
    sections = {name: found for name in names if (found := SECTIONS[name](data)) is not None}
    return render(
        "report.html",
        data.language,
        data=data,
        progress=going_on,
        held_out=series_by_tokens(data.pretrain, "eval_loss", "tenki"),
        number=finite_number,
        sections=sections,
        gap=gap_to_truth(data),
        read=read[-1] if read else None,
        parameters=finite_number(data.results, "model", "parameters"),
        bits=finite_numbers(data.results.get("bits_per_byte")),
        finished=max(dates, default=""),
    )


def progress(data: RunData) -> Section:
    """The stages with the seconds of those that are made, and how far a training is; None if all are made."""
    missing = [stage for stage in data.stages if not data.manifests.get(stage)]
    if not missing:
        return None
    made = {stage: finite_number(data.manifests, stage, "seconds") for stage in data.stages if stage not in missing}
    rows = data.pretrain if missing[0] == "pretrain" else data.tuned.get(missing[0], [])
    step, steps = max((finite_number(row, "step") or 0 for row in rows), default=None), data.steps.get(missing[0])
    pace = [seconds for row in rows if (seconds := finite_number(row, "step_seconds")) is not None]
    return {
        "stages": [(stage, "made" if stage in made else "now" if stage == missing[0] else "") for stage in data.stages],
        "section": "pretrain" if missing[0] == "pretrain" else "finetune" if missing[0] in data.steps else "",
        "seconds": made,
        "step": None if step is None or not steps else (step, steps),
        "left": pace[-1] * (steps - step) if pace and steps else None,
    }


def collect(data: RunData) -> Section:
    """The data card: the largest rows in its order, one row for all others, and why documents were dropped."""
    text, rows = data.language, data.datacard.get("rows")
    if not rows:
        return None
    largest = sorted(range(len(rows)), key=lambda place: -rows[place]["characters"])
    shown = [rows[place] for place in sorted(largest[:MOST_ROWS])]
    others = [rows[place] for place in largest[MOST_ROWS:]]
    if others:
        name = text("{number} more", number=count(len(others)))
        keys = ("documents", "held_out", "characters", "share")
        summed = {key: sum(row[key] for row in others) for key in keys}
        shown.append({"source": name, "language": "", "licence": ""} | summed)
    characters, reasons = Counter(), Counter()
    for row in rows:
        characters[row["source"]] += row["characters"]
    for counts in data.datacard.get("dropped", {}).values():
        reasons.update(counts)
    dropped = []
    for reason, times in reasons.most_common():
        meaning = text.known(REASONS[reason]) if reason in REASONS else text("a file that this source does not read")
        told = text.known(reason)
        if reason.startswith(_UNREAD):  # it names the extension
            told = text("unknown extension {extension}", extension=reason.removeprefix(_UNREAD).strip())
        dropped.append((told, mixed(meaning), count(times)))
    return {
        "characters": list(characters.items()),
        "rows": [
            (phrase(row["source"]), row["language"], row["licence"])
            + (*(count(row[key]) for key in ("documents", "held_out", "characters")), percent(row["share"]))
            for row in shown
        ],
        "dropped": dropped,
        "dropped_documents": count(reasons.total()),
    }


def tokenize(data: RunData) -> Section:
    """The tokens of the corpus by source. (Example texts as tokens are `data.splits`.)"""
    sources = nested_value(data.manifests, "tokens", "sources") or {}
    if not data.splits and not sources:
        return None
    rows = []
    for source, splits in sources.items():
        size, total = (sum(finite_number(of, what) or 0 for of in splits.values()) for what in ("bytes", "tokens"))
        tokens = [count(finite_number(splits, split, "tokens") or 0) for split in ("train", "held_out")]
        rows.append((phrase(source), *tokens, f"{size / max(total, 1):.2f}"))
    return {
        "vocabulary": finite_number(data.manifests, "tokenizer", "vocabulary_size") or data.model.vocabulary_size,
        "in_bytes": any(piece.startswith("<0x") for pieces in data.splits for piece, _ in pieces),
        "rows": rows,
    }


def transformer(data: RunData) -> Section:
    """The sizes of the model's parts, tokens for its drawing, and the attention picture if there is one."""
    c = data.model
    if not c.vocabulary_size:
        return None
    picture, matrices = "", (3 if c.gated else 2) * c.width
    mlps = [(len(numbers), of, max(of.experts, 1) + of.shared_experts) for of, numbers in c.stacks.values()]
    tokens = nested_value(data.results, "attention", "tokens")
    weights = nested_value(data.results, "attention", "weights")
    if tokens and weights:
        import numpy as np  # only where there is something to draw

        from tpullm.report.pictures import attention_html

        picture = attention_html(tokens, np.asarray(weights), data.language, alone=False)
    pieces = [piece for piece, _ in data.splits[0][:4]] if data.splits else ["今日", "は", "いい", "天気"]
    return {
        "tokens": _word_chips(pieces[:-1]),
        "next": _word_chips(pieces[-1:]),
        "attention": c.layers * 2 * c.width * c.head_width * (c.heads + c.kv_heads),
        "feed_forward": sum(layers * matrices * of.mlp_width * each for layers, of, each in mlps),
        "tables": c.vocabulary_size * c.width * (1 if c.tied_embeddings else 2),
        "picture": picture,
    }


def _word_chips(words: Sequence[str], middle: int = 180) -> list[tuple[float, int, str]]:
    """Words side by side, centred: where each begins, its width, and the word."""
    widths = [14 + sum(7 if character.isascii() else 14 for character in word) for word in words]
    x, chips = middle - (sum(widths) + 6 * (len(words) - 1)) / 2, []
    for word, width in zip(words, widths, strict=True):
        chips.append((x, width, word))
        x += width + 6
    return chips


def pretrain(data: RunData) -> Section:
    """The loss against the tokens read, on held-out text too; rates, gradients, experts; what the model writes."""
    read, text = series_by_tokens(data.pretrain, "loss"), data.language
    if not read:
        return None
    titles = {"learning_rate": text("Learning rate"), "tokens_per_second": text("Tokens a second")}
    curves = [(title, series_by_tokens(data.pretrain, key)) for key, title in titles.items()]
    busiest, least = (series_by_tokens(data.pretrain, "expert_load", key) for key in ("highest", "lowest"))
    grown, manifests = growing_texts(data.pretrain), data.manifests
    branch = nested_value(manifests, "pretrain", "inputs", "upstream", "branch")
    eval_losses: dict[str, float] = {}
    for row in data.pretrain:
        eval_losses |= finite_numbers(row.get("eval_loss"))
    eval_losses |= finite_numbers(nested_value(data.results, "loss_nats_per_token"))
    by_bytes = {name: series_by_tokens(data.pretrain, "eval_bits_per_byte", name) for name in eval_losses}
    bits = {name: points[-1][1] for name, points in by_bytes.items() if points}
    bits |= finite_numbers(nested_value(data.results, "bits_per_byte"))
    return {
        "blind": math.log(data.model.vocabulary_size or 1),
        "losses": losses(data),
        "read": read[-1],
        # Of each held-out text, tenki first: the loss, as choices, and bits a byte.
        "held_out": [
            (phrase(name), f"{own:.3f}", f"{math.exp(min(own, 99)):,.1f}", f"{bits[name]:.3f}" if name in bits else "")
            for name, own in sorted(eval_losses.items(), key=lambda item: item[0] != "tenki")
        ],
        "speed": [(title, found, (0.0, max(y for _, y in found) * 1.06 or 1.0)) for title, found in curves if found],
        "gradients": _gradients_by_layer(data.pretrain),
        "experts": (busiest, least, [(x, 1.0) for x, _ in busiest]) if busiest and least else None,
        "grown": grown,
        "blanks": growing_blanks(data.pretrain),
        "from_noise": not manifests.get("base")
        and not branch
        and any(written[0][0] == 0 for written in grown.values()),
        "samples": [
            {"prompt": sample.get("prompt") or "", "text": sample["text"]}
            for sample in data.results.get("samples") or []
            if sample.get("text")
        ],
    }


def _gradients_by_layer(rows: Sequence[dict[str, Any]]) -> tuple[list, list] | None:
    """The norm of the gradient by layer, if the log has it: (columns, rows). The parts of a layer make one row."""
    found = [row for row in rows if row.get("gradient_norms")]
    squares: list[Counter[str]] = [Counter() for _ in found]
    for row, column in zip(found, squares, strict=True):
        for part, norm in finite_numbers(row["gradient_norms"]).items():
            column[part.split(".")[0]] += norm**2
    names = dict.fromkeys(name for column in squares for name in column)
    if not names:
        return None
    by_layer = [(name, [math.sqrt(column[name]) if name in column else None for column in squares]) for name in names]
    return [finite_number(row, "tokens") or finite_number(row, "step") for row in found], by_layer


def speed(data: RunData) -> Section:
    """The time of each stage, the machine, the rates of training, the prediction, and where the time went."""
    results = data.results
    finished = {stage: finite_number(data.manifests, stage, "seconds") for stage in data.manifests}
    seconds = finite_numbers(results.get("seconds")) or finite_numbers(finished)
    machine = {key: value for key, value in (results.get("machine") or {}).items() if value not in (None, "")}
    if machine.get("device") == machine.get("platform"):
        machine.pop("device", None)  # for a CPU, JAX repeats the platform
    medians = {}  # over all steps, because some of them wait for a checkpoint
    for key in ("tokens_per_second", "mfu", "data_wait_share", "step_seconds"):
        values = sorted(value for _, value in series_by_tokens(data.pretrain, key))
        medians[key] = values[len(values) // 2] if values else None
    predicted, measured = finite_number(data.plan, "step_seconds"), medians.pop("step_seconds")
    rates = finite_numbers(medians)
    if not (seconds or machine or rates):
        return None
    goodput, went = None, {kind: seconds for kind, seconds in hours.seconds_by_kind(data.hours).items() if seconds}
    if "train" in went:  # where the time of pretraining went, over all processes that worked on it
        interruptions, planned = hours.planned_goodput(data.hours, data.plan.get("run"))
        goodput = {
            "seconds": went,
            "share": went["train"] / sum(went.values()),
            "interruptions": interruptions if "run" in data.plan else 0,
            "planned": planned,
            "skipped": sum(len(row.get("skipped") or []) for row in data.pretrain),
        }
    return {
        "seconds": seconds,
        "machine": machine,
        "rates": rates,
        "predicted": None if predicted is None or measured is None else (predicted, measured),
        "goodput": goodput,
    }


def recipe(data: RunData) -> Section:
    """Nothing to find: the template shows `data.recipe`."""
    return {}


_IN_ORDER = (collect, tokenize, transformer, pretrain, yours, truth, finetune, measured, export, speed, recipe)
SECTIONS: dict[str, Callable[[RunData], Section]] = {make.__name__: make for make in _IN_ORDER}
