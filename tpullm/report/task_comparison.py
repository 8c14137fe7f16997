"""One task on the comparison page: scores and differences, who is right where, examples, calibration."""

from collections.abc import Sequence
from typing import Any

from tpullm.report.charts import Line, line_chart
from tpullm.report.html import Markup, figure, paragraph, phrase, shows, table, tag
from tpullm.report.language import Language, count, percent, three_decimals
from tpullm.report.versus import Versus, versus

LONGEST = 300  # characters of a question or an answer that are shown
KINDS = ("both", "only_first", "only_other", "neither")  # how two models agree, as `results.json` has it


def task(text: Language, labels: Sequence[str], name: str, found: dict[str, Any]) -> Markup:
    """All of a task."""
    shown = list(_figures(text, found).values())
    parts = [
        tag("h3", phrase(name), class_="task"),
        *_notes(text, labels, found),
        versus(text, labels, shown, one_scale="examples" in found),
    ]
    return tag(
        "div",
        *parts,
        *_agreement(text, labels, found),
        *_examples(text, labels, found),
        *_calibration(text, labels, found),
        *_prompt(text, found),
    )


def main_figure(text: Language, found: dict[str, Any]) -> Versus:
    """The rule for choices that no tokenizer changes, else the written answer, else the first metric."""
    figures = _figures(text, found)
    return figures.get("per byte") or figures.get("written") or next(iter(figures.values()))


def _figures(text: Language, found: dict[str, Any]) -> dict[str, Versus]:
    ours = "examples" in found  # of a file of questions
    return {key: Versus(_measure(text, key, ours), "share" in each, each) for key, each in found["figures"].items()}


def _measure(text: Language, key: str, ours: bool) -> str:
    """The name of a measure; the harness's metrics keep theirs."""
    names = {
        "likelihood": text("likeliest choice"),
        "per token": text("likeliest per token"),
        "per byte": text("likeliest per byte"),
        "pmi": text("likeliest by PMI"),
        "written": text("written answer"),
        "f1": text("characters of the written answer (F1)"),
    }
    return names[key] if ours else key


def _notes(text: Language, labels: Sequence[str], found: dict[str, Any]) -> list[Markup]:
    told = []
    if "chance" in found:
        told.append(text("By guessing: {share}.", share=percent(found["chance"])))
    for label, read in zip(labels, found.get("read_before", ()), strict=False):
        if read["looked_for"] and read["found"]:
            values = {"found": count(read["found"]), "asked": count(read["asked"]), "model": label}
            told.append(text("{found} of {asked} questions are in the training text of {model}.", **values))
    return [paragraph(text.join(*told), class_="note")] if told else []


def _agreement(text: Language, labels: Sequence[str], found: dict[str, Any]) -> list[Markup]:
    ours = "examples" in found
    rows = [
        (f"{_measure(text, key, ours)}: {label}", *(count(of[kind]) for kind in KINDS))
        for key, each in found["figures"].items()
        for label, of in zip(labels[1:], each.get("agreement", ()), strict=False)
    ]
    header = ("", text("both right"), text("only {model}", model=labels[0]), text("only this one"), text("neither"))
    return [tag("h3", text("Which questions are answered right")), table(header, rows)] if rows else []


def _examples(text: Language, labels: Sequence[str], found: dict[str, Any]) -> list[Markup]:
    groups = [group for group in found.get("examples", ()) if group["shown"]]
    if not groups:
        return []
    parts = [tag("h3", text("Where they differ"))]
    for group in groups:
        right = labels[0] if group["kind"] == "only_first" else group["model"]
        wrong = group["model"] if group["kind"] == "only_first" else labels[0]
        values = {"right": right, "wrong": wrong, "shown": len(group["shown"]), "all": count(group["count"])}
        values["measure"] = _measure(text, group["measure"], True)
        about = text("{measure}: {right} is right and {wrong} is wrong. {shown} of {all} shown.", **values)
        cards = [_example(text, (labels[0], group["model"]), group["kind"], each) for each in group["shown"]]
        parts += [paragraph(about, class_="note"), tag("div", *cards, class_="cards")]
    return parts


def _example(text: Language, labels: tuple[str, str], kind: str, example: dict[str, Any]) -> Markup:
    right = tag("span", text("right"), class_="mark right")
    wrong = tag("span", text("wrong"), class_="mark wrong")
    marks = (right, wrong) if kind == "only_first" else (wrong, right)
    cells = [
        (tag("dt", phrase(label)), tag("dd", phrase(_clipped(text, said)), mark))
        for label, said, mark in zip(labels, example["said"], marks, strict=True)
    ]
    expected = tag("dt", text("expected")), tag("dd", phrase(_clipped(text, " / ".join(example["answers"]))))
    question = tag("p", phrase(_clipped(text, example["question"])), class_="question")
    return tag("div", question, tag("dl", *(cell for row in (*cells, expected) for cell in row)), class_="card answer")


def _clipped(text: Language, said: str) -> str:
    said = said.strip()
    return (said[:LONGEST] + "…" if len(said) > LONGEST else said) or text("(nothing)")


def _calibration(text: Language, labels: Sequence[str], found: dict[str, Any]) -> list[Markup]:
    given = found.get("calibration")
    if not given:
        return []
    lines = [
        Line(label, [(each["probability"], each["share"]) for each in own["bins"]], number)
        for number, (label, own) in enumerate(zip(labels, given, strict=True))
    ]
    lines.append(Line(text("as right as it is sure"), [(0.0, 0.0), (1.0, 1.0)], 5, "dashed"))
    title = text("Share of right choices")
    chart = line_chart(
        text, title, lines, text("probability of the likeliest choice"), y_range=(0.0, 1.0), values=False
    )
    said = text(
        "The probability of a choice is that among the choices. Above the dashed line a model is right more often than "
        "it is sure; below it, it is too sure. The error is the mean distance from the line, over the questions. With "
        "few questions it is above 0 by chance alone."
    )
    rows = [
        (phrase(label), three_decimals(own["error"]), count(own["count"]))
        for label, own in zip(labels, given, strict=True)
    ]
    header = ("", text("calibration error (ECE)"), text("questions"))
    return [tag("h3", text("Calibration")), figure(chart), shows(text, said), table(header, rows)]


def _prompt(text: Language, found: dict[str, Any]) -> list[Markup]:
    if "prompt" not in found:
        return []
    return [tag("details", tag("summary", text("Show the first prompt")), tag("pre", tag("code", found["prompt"])))]
