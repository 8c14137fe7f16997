"""The figures of tasks and of a run, and how models differ, as tables to read."""

from collections.abc import Iterator
from typing import Any

from tpullm.corpus.sources import YOURS
from tpullm.evaluation.question_task import RULES, WRITTEN
from tpullm.evaluation.statistics import ALIKE
from tpullm.report.tables import show as show_table
from tpullm.system.language import spoken
from tpullm.system.log import console

Row = tuple[str, str, str, str]
MEASURES = {**RULES, WRITTEN: "written answer", "f1": "its characters (F1)"}
LARGE = 10_000  # scores from here on are written with four digits
SHORT = {ALIKE: "can't tell"}  # so that the table fits a terminal of 80 columns


def show_tasks(results: dict[str, Any]) -> None:
    """Print the figures of each task."""
    cells: list[tuple[str, ...] | None] = []
    for task, figures in results["tasks"].items():
        shots = str(figures["settings"]["shots"])
        cells += [
            (*(("", "") if number else (task, shots)), *map(spoken, row))
            for number, row in enumerate(task_rows(figures))
        ]
        cells.append(None)
    header = ("task", "shots", "what is measured", "score", "95 %", "of")
    title = f"{results['model']['name']} on tasks"
    show_table(title, header, cells, right=(1, 3, 4, 5), folded=(0, 1, 2), lines="all")


def task_rows(figures: dict[str, Any]) -> Iterator[Row]:
    """What is measured, the score, its interval and the number of questions, for each figure of a task."""
    for name, found in {**figures.get("metrics", {}), **figures.get("pass_at_k", {})}.items():
        yield _score_row(name, found)
    for word, count in figures.get("verdicts", {}).items():
        if count:
            yield f"  programs: {word}", str(count), "", str(sum(figures["verdicts"].values()))
    for rule, found in figures.get("likelihood", {}).items():
        yield _score_row(MEASURES[rule], found)
    if "chance" in figures:
        yield "by guessing", f"{figures['chance']:.1%}", "", ""
    if written := figures.get("written"):
        yield _score_row(MEASURES[WRITTEN], written)
        f1 = {"share": written["f1"], "interval": written["f1_interval"], "count": written["count"]}
        yield _score_row(f"  {MEASURES['f1']}", f1)
        if written.get("no_choice"):
            yield "  no choice at all", f"{written['no_choice']:.1%}", "", str(written["count"])
    # How many of the questions are in the training text, and the scores of the others if some are.
    if read := figures.get("read_before"):
        share = f"{read['found'] / read['asked']:.1%}" if read["looked_for"] else "unknown"
        yield "in its training text", share, "", str(read["asked"]) if read["looked_for"] else ""
        for measure, own in read["unread"].items() if read.get("found") else ():
            yield _score_row(f"  {MEASURES.get(measure, measure)}, others", own)


def _score_row(name: str, found: dict[str, Any]) -> Row:
    """The row of a share of questions, or of a metric of the harness, which may have any range."""
    form, value = (".4g", found["value"]) if "value" in found else (".1%", found["share"])
    interval = " to ".join(f"{end:{form}}" for end in found["interval"] or ())
    return name, f"{value:{form}}", interval, str(found["count"])


def show_comparison(results: dict[str, Any]) -> None:
    """Print a table of each task and of the texts: each model's scores, and their differences from the first's."""
    labels = [model["label"] for model in results["models"]]
    header = ("", "score", f"minus {labels[0]} (95 %)", "")
    sections = []
    for task, found in results["tasks"].items():
        # The harness's metrics have names of their own, and any range.
        named = [(MEASURES.get(key, key), figure) for key, figure in found["figures"].items()]
        sections.append((f"{task}, {named[0][1]['count']:,} questions", named))
    if texts := results["texts"]:
        named = [("all texts", texts["all"]), *((text["name"], text["figure"]) for text in texts["by_text"])]
        for place in texts["by_place"]:
            start, end = place["from"], place["to"]
            named.append((f"bytes {start:,}-{end:,}" if end else f"from byte {start:,}", place["figure"]))
        sections.append((f"bits a byte, {texts['all']['count']:,} documents; fewer are better", named))
    for heading, figures in sections:
        cells = [row for name, figure in figures for row in [(spoken(name),), *_comparison_rows(labels, figure)]]
        show_table(heading, header, cells, right=(1, 2), folded=(0,), lines="head")


def _comparison_rows(labels: list[str], figure: dict[str, Any]) -> Iterator[Row]:
    """Of each model its label, its score, the difference with its interval, and the word for it."""
    share = "share" in figure
    # A perplexity can have ten digits.
    large = max(abs(score["value"]) for score in figure["scores"]) >= LARGE
    scale, form = (100, "+.1f") if share else (1, "+.4g" if large else "+.3f")
    for label, score, delta in zip(labels, figure["scores"], [None, *figure["deltas"]], strict=True):
        value = f"{score['value']:.1%}" if share else f"{score['value']:{form[1:]}}"
        if delta is None:
            yield f"  {label}", value, "", ""
            continue
        ends = " to ".join(f"{scale * end:{form}}" for end in delta["interval"] or ())
        difference = f"{scale * delta['value']:{form}}" + (f" ({ends})" if ends else "")
        word = spoken(SHORT.get(delta["word"], delta["word"]))
        first = figure["scores"][0]["value"]
        part = f", {delta['value'] / first:+.2%}" if figure["better"] == "lower" and first > 0 else ""  # of a loss
        yield f"  {label}", value, difference, word + part


def show_run(results: dict[str, Any]) -> None:
    """Print what `evaluate` found in a run."""
    rows = [(spoken(what), spoken(found)) for what, found in _run_rows(results)]
    show_table("What the model learned", ("", ""), rows, folded=(0, 1), lines="all", on=console())


def _run_rows(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for source, bits in results["bits_per_byte"].items():
        loss = results["loss_nats_per_token"][source]
        yield f"held-out {source}", f"{loss:.4f} nats a token, {bits:.3f} bits a byte"
    for stage, found in results.get("stages", {}).items():
        for source, bits in found["bits_per_byte"].items():
            yield f"after {stage}: held-out {source}", f"{bits:.3f} bits a byte"
    for stage, found in results.get("learned", {}).items():
        yield f"{stage}: held-out conversations", f"{found['before']:.3f} → {found['after']:.3f} bits a byte"
    if "yours" in results:
        compressor, bits = results["yours"]["compressor"], results["bits_per_byte"][YOURS]
        less = 1 - bits / compressor["bits_per_byte"] if compressor["bits_per_byte"] else 0.0
        beside = f"the model needs {abs(less):.0%} {'less' if less > 0 else 'more'}"
        yield f"your text by {compressor['name']}", f"{compressor['bits_per_byte']:.3f} bits a byte; {beside}"
        blanks = results["yours"]["blanks"]
        first, five = (sum(1 <= blank["place"] <= last for blank in blanks) for last in (1, 5))
        yield "blanks in your text", f"of {len(blanks)}, {first} guessed first, {five} among the first five"
    for name, value in results.items():
        if isinstance(value, dict) and "gap_nats_per_token" in value:
            loss, entropy, gap = (value[f"{key}_nats_per_token"] for key in ("loss", "entropy", "gap"))
            yield f"{name}: loss - true entropy", f"{loss:.4f} - {entropy:.4f} = {gap:.4f} nats a token"
    if "blank" in results:
        first, swaps = results["blank"]["table"][0], results["swaps"]
        yield f"blank {first['text']}", f"total variation from the truth {first['total_variation']:.3f}"
        yield "all blanks", f"mean total variation {results['blank']['mean_total_variation']:.3f}"
        yield "リンゴ→本: the verb follows", f"{swaps['accuracy']:.1%} of {swaps['pairs']} swaps"
    if "tuned" in results:
        tuned, base = results["tuned"], results["base"]
        shares = f"{tuned['accuracy']:.1%} / {base['accuracy']:.1%}"
        what = "word for word" if results.get("rules") else "right answers"
        yield f"{what}, tuned / base", f"{shares} of {tuned['questions']} held out"
        for kind, found in results["kinds"].items() if len(results["kinds"]) > 1 else ():
            shares = f"{found['tuned']:.1%} / {found['base']:.1%} of {found['questions']}"
            yield f"  {kind}", f"{shares}; without a model {found['guess']:.1%}"
    if talks := results.get("conversation"):
        right = talks["right_by_turn"]
        shares = f"{sum(right) / len(right):.1%} right, {min(right):.0%} or more at each turn"
        yield f"{talks['conversations']} conversations of {len(right)} turns", shares
    for rule, found in results.get("rules", {}).items():
        yield f"  {rule}, tuned / base", f"{found['tuned']:.1%} / {found['base']:.1%}"
