"""How models differ, as one HTML page: the figures of `results.json` for `templates/comparison.html`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpullm.report.charts import Line
from tpullm.report.html import phrase
from tpullm.report.language import Language
from tpullm.report.rendering import render
from tpullm.system.words import count, percent, three_decimals

KINDS = ("both", "only_first", "only_other", "neither")  # how two models agree, as `results.json` has it


@dataclass(frozen=True)
class Versus:
    """One figure of all models.

    Args:
        name: what is measured.
        share: the scores are shares, shown in percent, and their differences in points.
        figure: as `results.json` has it.
        whole: the difference at the right end of the picture.
    """

    name: str
    share: bool
    figure: dict[str, Any]
    whole: float = 1.0


def comparison_page(results: dict[str, Any], text: Language) -> str:
    """The page of the results of `tpullm compare`; the same results give the same text."""
    labels = [model["label"] for model in results["models"]]
    texts, places, main = [], [], []
    for name, found in results["tasks"].items():
        figures = _figures_of_task(text, found)
        # The rule for choices that no tokenizer changes, else the written answer, else the first metric.
        first = figures.get("per byte") or figures.get("written") or next(iter(figures.values()))
        main.append((name, first))
    if found := results["texts"]:
        main.append((text("Texts"), Versus(text("bits a byte"), False, found["all"])))
        texts = [Versus(text("all texts"), False, found["all"])]
        if len(found["by_text"]) > 1:
            texts += [Versus(each["name"], False, each["figure"]) for each in found["by_text"]]
        for each in found["by_place"]:
            where = text("from byte {start}", start=count(each["from"]))
            if each["to"] is not None:
                where = text("from byte {start} to {end}", start=count(each["from"]), end=count(each["to"]))
            places.append(Versus(where, False, each["figure"]))
    cards = [
        (title, each, label, delta)
        for title, each in main
        for label, delta in zip(labels[1:], each.figure["deltas"], strict=True)
    ]
    repeats = {  # beside the command
        "models": {model["label"]: model["hash"] for model in results["models"]},
        "settings": results["settings"],
        "program": results["program"],
        "tasks": {
            name: {key: found[key] for key in ("version", "settings") if key in found}
            for name, found in results["tasks"].items()
        },
        "texts": {each["name"]: each["version"] for each in results["texts"].get("by_text", [])},
    }
    return render(
        "comparison.html",
        text,
        written=written,
        labels=labels,
        cards=cards[:4],
        sections=["models", *["tasks"] * bool(results["tasks"]), *["texts"] * bool(texts), "again"],
        models=[
            (phrase(each["label"]), text.compact(each["parameters"]), count(each["vocabulary"]), count(each["context"]))
            for each in results["models"]
        ],
        tasks=[_compared_task(text, labels, name, found) for name, found in results["tasks"].items()],
        texts=_on_one_scale(texts),
        places=_on_one_scale(places),
        command=results["command"],
        kept=json.dumps(repeats, ensure_ascii=False, indent=2),
    )


def written(value: float, sign: str = "") -> str:
    """A number with three decimals; a perplexity can have ten digits, and gets four."""
    return f"{value:{sign}.3f}" if abs(value) < 10_000 else f"{value:{sign}.4g}"


def _on_one_scale(figures: Sequence[Versus]) -> list[Versus]:
    """The same figures, with all differences drawn on one scale."""
    deltas = [delta for each in figures for delta in each.figure["deltas"]]
    ends = [abs(end) for delta in deltas for end in (delta["value"], *(delta["interval"] or ()))]
    return [replace(each, whole=max(ends, default=1.0) or 1.0) for each in figures]


def _measure_names(text: Language) -> dict[str, str]:
    """Names of the measures of a file of questions; the harness's metrics keep theirs."""
    return {
        "likelihood": text("likeliest choice"),
        "per token": text("likeliest per token"),
        "per byte": text("likeliest per byte"),
        "pmi": text("likeliest by PMI"),
        "written": text("written answer"),
        "f1": text("characters of the written answer (F1)"),
    }


def _figures_of_task(text: Language, found: dict[str, Any]) -> dict[str, Versus]:
    names = _measure_names(text) if "examples" in found else {}
    return {key: Versus(names.get(key, key), "share" in each, each) for key, each in found["figures"].items()}


def _compared_task(text: Language, labels: Sequence[str], name: str, found: dict[str, Any]) -> dict[str, Any]:
    """A task: its figures, notes, who is right where, examples, and calibration."""
    figures, notes = list(_figures_of_task(text, found).values()), []
    if "chance" in found:
        notes.append(text("By guessing: {share}.", share=percent(found["chance"])))
    for label, read in zip(labels, found.get("read_before", ()), strict=False):
        if read["looked_for"] and read["found"]:
            values = {"found": count(read["found"]), "asked": count(read["asked"]), "model": label}
            notes.append(text("{found} of {asked} questions are in the training text of {model}.", **values))
    calibration = None
    if given := found.get("calibration"):
        calibration = lines, errors = [], []
        for number, (label, own) in enumerate(zip(labels, given, strict=True)):
            lines.append(Line(label, [(each["probability"], each["share"]) for each in own["bins"]], number))
            errors.append((phrase(label), three_decimals(own["error"]), count(own["count"])))
    return {
        "name": name,
        "notes": notes,
        # The units of the harness's metrics differ, so each has its own scale.
        "figures": _on_one_scale(figures) if "examples" in found else [_on_one_scale([each])[0] for each in figures],
        "agreement": [
            (f"{each.name}: {label}", *(count(of[kind]) for kind in KINDS))
            for each in figures
            for label, of in zip(labels[1:], each.figure.get("agreement", ()), strict=False)
        ],
        "examples": [
            group | {"measure": _measure_names(text)[group["measure"]]}
            for group in found.get("examples", ())
            if group["shown"]
        ],
        "calibration": calibration,
        "prompt": found.get("prompt"),
    }
