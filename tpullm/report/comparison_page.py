"""How models differ, as one HTML page: the models, each task, the texts, and all that repeats the comparison."""

import json
from typing import Any

from tpullm import __version__
from tpullm.report.html import Markup, document, join, paragraph, phrase, section, table, tag
from tpullm.report.language import Language, count
from tpullm.report.task_comparison import main_figure, task
from tpullm.report.versus import Versus, said, versus, written

CARDS = 4


def comparison_page(results: dict[str, Any], text: Language) -> str:
    """The page of the results of `tpullm compare`; the same results give the same text."""
    labels = [model["label"] for model in results["models"]]
    tasks = [task(text, labels, name, found) for name, found in results["tasks"].items()]
    parts = {
        "models": (text("Models"), [_models(text, results["models"])]),
        "tasks": (text("Tasks"), tasks),
        "texts": (text("Texts"), _texts(text, labels, results["texts"])),
        "again": (text("To repeat it"), _again(text, results)),
    }
    made = {name: section(name, title, *body) for name, (title, body) in parts.items() if body}
    links = [tag("a", parts[name][0], href=f"#{name}") for name in made]
    header = tag(
        "header",
        tag("p", text("tpullm comparison"), " · ", tag("b", *_between(labels)), class_="eyebrow"),
        tag("h1", text("How the models differ")),
        paragraph(_lead(text, labels[0]), class_="lead"),
        tag("div", *_cards(text, labels, results)[:CARDS], class_="headline"),
        tag("nav", *links, aria_label=text("Parts")),
    )
    footer = tag("footer", text("Made by tpullm {version}.", version=__version__))
    return document(text, text("How the models differ"), header, tag("main", *made.values()), footer)


def _between(labels: list[str]) -> list[Any]:
    return [part for label in labels for part in (" / ", phrase(label))][1:]


def _lead(text: Language, first: str) -> str:
    compared = text("The other models are compared with {first}.", first=first)
    interval = text(
        "Each difference has an interval that holds the truth 95 times in 100. Where it holds 0, or where fewer than "
        "six scores differ, the models can't be told apart. Of 20 equal models, chance calls one better or worse."
    )
    return text.join(compared, interval)


def _cards(text: Language, labels: list[str], results: dict[str, Any]) -> list[Markup]:
    """The main differences of each model from the first."""
    found = [(name, main_figure(text, of_task)) for name, of_task in results["tasks"].items()]
    if results["texts"]:
        found.append((text("Texts"), Versus(text("bits a byte"), False, results["texts"]["all"])))
    cards = []
    for title, of in found:
        for label, delta in zip(labels[1:], of.figure["deltas"], strict=True):
            value = tag("b", f"{100 * delta['value']:+.1f}" if of.share else written(delta["value"], "+"))
            unit = text("{measure}, points", measure=of.name) if of.share else of.name
            note = tag("p", unit, tag("br"), phrase(label), tag("br"), said(text, delta["word"]))
            cards.append(tag("div", tag("span", phrase(title), class_="name"), value, note, class_="figure"))
    return cards


def _models(text: Language, models: list[dict[str, Any]]) -> Markup:
    header = ("", text("parameters"), text("vocabulary"), text("context, tokens"))
    rows = [
        (
            phrase(model["label"]),
            text.compact(model["parameters"]),
            count(model["vocabulary"]),
            count(model["context"]),
        )
        for model in models
    ]
    return table(header, rows)


def _texts(text: Language, labels: list[str], found: dict[str, Any]) -> list[Markup]:
    if not found:
        return []
    about = text(
        "Bits that the model needs for each byte of text: fewer are better. It does not depend on the tokenizer, so "
        "models with different tokenizers can be compared. Differences are paired over documents."
    )
    figures = [Versus(text("all texts"), False, found["all"])]
    if len(found["by_text"]) > 1:
        figures += [Versus(each["name"], False, each["figure"]) for each in found["by_text"]]
    places = [Versus(_place(text, each), False, each["figure"]) for each in found["by_place"]]
    return [
        paragraph(about),
        versus(text, labels, figures),
        tag("h3", text("By place in the document")),
        paragraph(text("Later in a document, a model can use more of what stands before, up to its context.")),
        versus(text, labels, places),
    ]


def _place(text: Language, place: dict[str, Any]) -> str:
    if place["to"] is None:
        return text("from byte {start}", start=count(place["from"]))
    return text("from byte {start} to {end}", start=count(place["from"]), end=count(place["to"]))


def _again(text: Language, results: dict[str, Any]) -> list[Markup]:
    kept = {
        "models": {model["label"]: model["hash"] for model in results["models"]},
        "settings": results["settings"],
        "program": results["program"],
        "tasks": {
            name: {key: found[key] for key in ("version", "settings") if key in found}
            for name, found in results["tasks"].items()
        },
        "texts": {each["name"]: each["version"] for each in results["texts"].get("by_text", [])},
    }
    details = tag(
        "details",
        tag("summary", text("Show versions, settings and hashes")),
        tag("pre", tag("code", json.dumps(kept, ensure_ascii=False, indent=2))),
    )
    said_of_it = text("The same command gives the same figures. `results.json` has all figures, and whole examples.")
    return [paragraph(said_of_it), tag("pre", tag("code", results["command"])), join([details])]
