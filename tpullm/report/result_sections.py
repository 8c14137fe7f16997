"""The figures of what a model can do: its losses, its user's own text, the truth, after tuning, on tasks.

Each of these sections of the page has a template of its name with the sentences.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from tpullm.report.charts import WORDS, Line, padded_range
from tpullm.report.language import Language
from tpullm.report.run_data import RunData, finite_number, finite_numbers, nested_value, series_by_tokens
from tpullm.run import manifest
from tpullm.system.words import count, percent, probability, three_decimals

Section = dict[str, Any] | None
Rows = Sequence[dict[str, Any]]  # the lines of a `metrics.jsonl`
_CLOSE = 0.35  # nats a token above the truth: the part of the curve that the second chart shows
_STEPS, _STEPS_OF_BLANKS = 6, 4  # whose texts and bars are shown, the first and the last among them
_RIGHT_ANSWERS, _WRONG_ANSWERS, _REWARDED_ANSWERS = 8, 4, 4  # that are shown
_SUM = "sum"  # the weighted sum, among the rewards


def _early_and_late(rows: Rows, what: str, most: int, factor: int) -> Rows:
    """At most so many of the rows with a list `what`: the first, the last, and those at the last step divided by
    `factor`, again and again, since most is learned early."""
    rows = [row for row in rows if isinstance(row.get(what), list) and finite_number(row, "step") is not None]
    if len(rows) <= most:
        return rows
    wanted = [rows[0]["step"], *(rows[-1]["step"] / factor**n for n in range(most - 1))]
    nearest = {min(range(len(rows)), key=lambda place: abs(rows[place]["step"] - step)) for step in wanted}
    return [rows[place] for place in sorted(nearest)]


def growing_texts(rows: Rows) -> dict[str, list[tuple[float, str]]]:
    """By prompt: the steps that measured it, and what the model wrote."""
    prompts: dict[str, list[tuple[float, str]]] = {}
    for row in _early_and_late(rows, "samples", _STEPS, 2):
        for sample in row["samples"]:
            written = prompts.setdefault(str(sample.get("prompt", "")), [])
            written.append((row["step"], str(sample.get("text", ""))))
    return prompts


def growing_blanks(rows: Rows) -> list[dict[str, Any]]:
    """Of each blank that was measured on the way: bars of some steps, on one scale, and the distance from the truth.

    The words are the likeliest by the truth, in its order, so that a bar keeps its place.
    """
    measured: dict[str, list[tuple[float, list, float | None]]] = {}
    chosen = {row["step"] for row in _early_and_late(rows, "blanks", _STEPS_OF_BLANKS, 4)}
    distances: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for blank in row.get("blanks") or []:
            name = str(blank.get("text", ""))
            words = [(of.get("word"), finite_number(of, "model"), finite_number(of, "truth")) for of in blank["words"]]
            if row["step"] in chosen:
                steps = measured.setdefault(name, [])
                steps.append((row["step"], words[:WORDS], finite_number(blank, "total_variation")))
            x, y = finite_number(row, "tokens"), finite_number(blank, "total_variation")
            distances.setdefault(name, []).extend([(x, y)] * (x is not None and y is not None))
    found = []
    for name, steps in measured.items():
        longest = max((value for _, words, _ in steps for _, *values in words for value in values), default=0) or 1.0
        bars = [
            (step, words, tuple(max(0.0, 1 - sum(word[column] for word in words)) for column in (1, 2)), distance)
            for step, words, distance in steps
        ]
        found.append({"text": name, "steps": bars, "longest": longest, "distances": distances[name]})
    return found


def held_out_lines(text: Language, rows: Rows, what: str = "eval_loss") -> list[Line]:
    """A line for each held-out source; tenki has the accent colour, since its true entropy is known."""
    names = sorted({name: None for row in rows for name in row.get(what) or {}}, key=lambda name: name != "tenki")
    return [Line(text("{source}, held out", source=n), series_by_tokens(rows, what, n), i) for i, n in enumerate(names)]


def losses(data: RunData) -> dict[str, Any]:
    """The lines of `templates/loss.html`: all of pretraining, and the last part of tenki's curve.

    Beside the first losses, the gap to the truth is too small to see.
    """
    text, rows, truth = data.language, data.pretrain, finite_number(data.results, "tenki", "entropy_nats_per_token")
    truth = data.entropy if truth is None else truth
    training = Line(text("training"), series_by_tokens(rows, "loss"), 5, "faint")
    lines, close, limits = [training, *held_out_lines(text, rows)], [], None
    if data.compared:  # one colour a run, and of held-out text only the first source
        lines = []
        for colour, (name, of_run) in enumerate(data.compared.items()):
            if loss := series_by_tokens(of_run, "loss"):
                lines.append(Line(text("{run}: training", run=name), loss, colour, "faint"))
            for held_out in held_out_lines(text, of_run)[:1]:
                name_of_line = text("{run}: {line}", run=name, line=held_out.name)
                lines.append(Line(name_of_line, held_out.points, colour))
    if truth is not None:
        name, ends = text("the truth: entropy of tenki"), (training.points[0], training.points[-1])
        lines.append(Line(name, [(x, truth) for x, _ in ends], 0, "dashed"))
        near = [(x, y) for x, y in series_by_tokens(rows, "eval_loss", "tenki") if y < truth + _CLOSE]
        if len(near) > 1:
            limits = padded_range(min(truth, *(y for _, y in near)), max(truth, *(y for _, y in near)))
            level = [(near[0][0], truth), (near[-1][0], truth)]
            close = [Line(text("{source}, held out", source="tenki"), near, 0), Line(name, level, 0, "dashed")]
    return {"lines": lines, "close": close, "limits": limits}


def yours(data: RunData) -> Section:
    """How the model continues the user's text, which words it expects in it, and how well it predicts it."""
    found = data.results.get("yours")
    if not found:
        return None
    packed = finite_number(found, "compressor", "bits_per_byte")
    model = finite_number(data.results, "bits_per_byte", "yours")
    name, blanks = nested_value(found, "compressor", "name"), []
    for row in found.get("blanks") or []:
        if row.get("words") and row.get("word"):
            shares = [(word.get("word"), finite_number(word, "model")) for word in row["words"]]
            bars = [(word, share, probability(share)) for word, share in shares if word and share is not None]
            place = finite_number(row, "place") or 0
            blanks.append({"text": str(row.get("text", "")), "word": row["word"], "bars": bars, "place": place})
    return {
        "packed": (model, packed) if model and packed and name else None,
        "compressor": name,
        "times_read": finite_number(found, "times_read") or 0.0,
        "continuations": [
            {"prompt": item["prompt"], "text": str(item.get("text", "")), "original": str(item.get("original", ""))}
            for item in found.get("continuations") or []
            if item.get("prompt")
        ],
        "blanks": blanks,
        "first": sum(blank["place"] == 1 for blank in blanks),
        "five": sum(1 <= blank["place"] <= 5 for blank in blanks),
    }


def gap_to_truth(data: RunData) -> float | None:
    """The held-out loss on tenki minus its entropy, in nats a token; None if either is missing."""
    loss, entropy = (finite_number(data.results, "tenki", f"{name}_nats_per_token") for name in ("loss", "entropy"))
    given = finite_number(data.results, "tenki", "gap_nats_per_token")
    return given if given is not None or loss is None or entropy is None else loss - entropy


def truth(data: RunData) -> Section:
    """The gap to the entropy, the blanks, the swapped objects."""
    results = data.results
    loss, entropy = (finite_number(results, "tenki", f"{name}_nats_per_token") for name in ("loss", "entropy"))
    terms, blanks = (loss, entropy, gap_to_truth(data)), []
    for row in nested_value(results, "blank", "table") or []:
        if row.get("words"):
            words = [(of.get("word"), finite_number(of, "model"), finite_number(of, "truth")) for of in row["words"]]
            words = [word for word in words if None not in word]
            blanks.append((str(row.get("text", "")), words, finite_number(row, "total_variation")))
    section = {
        "gap": None if None in terms else terms,
        "tokens": finite_number(results, "tenki", "tokens"),
        "blanks": blanks,
        "mean": finite_number(results, "blank", "mean_total_variation"),
        "swaps": _chosen_swaps(nested_value(results, "swaps", "table") or []),
        "fitting": finite_number(results, "swaps", "accuracy"),
        "pairs": finite_number(results, "swaps", "pairs"),
    }
    return section if section["gap"] or blanks or section["swaps"] or section["fitting"] is not None else None


def _chosen_swaps(rows: Rows) -> list[dict[str, Any]]:
    """One object for every verb, リンゴ and 本 first, and some that the model got wrong: parts and answers."""
    rows = [row for row in rows if row.get("prefix") and row.get("verb")]
    chosen: dict[Any, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row.get("object") not in ("リンゴ", "本")):
        chosen.setdefault(row.get("verb"), row)
    wrong = [row for row in rows if not row.get("right")]
    swaps = []
    for row in {row.get("prefix"): row for row in [*chosen.values(), *wrong[:6]]}.values():
        prefix, thing, verb = (str(row.get(key, "")) for key in ("prefix", "object", "verb"))
        before, found, after = prefix.partition(thing) if thing else (prefix, "", "")
        likelihood = finite_number(row, "probability")
        share = "" if likelihood is None else percent(likelihood)
        said = {"said": str(row.get("model_verb", "")), "right": bool(row.get("right")), "verb": verb, "share": share}
        swaps.append({"before": before, "found": found, "after": after} | said)
    return swaps


def finetune(data: RunData) -> Section:
    """Answers before and after tuning, how many are right; the curves of each stage, and what it kept."""
    text, answers = data.language, data.results.get("answers") or []
    base, tuned = (finite_number(data.results, name, "accuracy") for name in ("base", "tuned"))
    if tuned is None and not data.tuned and not answers:
        return None
    rules = data.results.get("rules") or {}
    if rules:  # answers in the model's own words: hardly one is the expected one, so form is what is shown
        base = tuned = None
        answers = [{**answer, "right": None} for answer in answers]
    right = [answer for answer in answers if answer.get("right")]
    wrong = [answer for answer in answers if not answer.get("right")]
    every = -(-len(right) // _RIGHT_ANSWERS) or 1  # spread over all: neighbouring questions are of one kind
    by_kind = {kind: finite_numbers(found) for kind, found in (data.results.get("kinds") or {}).items()}
    # A guess beside them.
    keys = [key for key in ("base", "tuned", "guess") if any(key in found for found in by_kind.values())]
    scores = [
        (kind, *(percent(found[key]) if key in found else "" for key in keys), count(found.get("questions", 0)))
        for kind, found in by_kind.items()
    ]
    kinds = {"conversations": text("conversations"), "preferences": text("preferences"), "prompts": text("prompts")}
    read, any_documents = [], False  # what each stage reads, and in which shares
    for name in data.tuned:
        config = nested_value(data.manifests, name, "inputs", "config") or {}
        documents = finite_numbers(config.get("documents"))
        shares = {what: 1 - sum(documents.values()) for key, what in kinds.items() if config.get(key)} | documents
        read.append((name, ", ".join(f"{what} {percent(share)}" for what, share in shares.items())))
        any_documents |= bool(documents)
    return {
        "stages": read if any_documents else [],
        "base": base,
        "shots": finite_number(data.results, "base", "shots"),  # solved questions that it was shown before each
        "tuned": tuned,
        "asked": finite_number(data.results, "tuned", "questions"),
        "kinds": (keys, scores) if len(by_kind) > 1 else None,
        "conversations": finite_number(data.results, "conversation", "conversations"),
        "by_turn": list(enumerate(nested_value(data.results, "conversation", "right_by_turn") or [], start=1)),
        "right": len(right),
        "right_shown": right[::every],
        "wrong": len(wrong),
        "wrong_shown": wrong[:_WRONG_ANSWERS],
        "grown": [growing_texts(rows) for rows in data.tuned.values()],
        "learned": [found for name, rows in data.tuned.items() if (found := _curves_of_stage(text, name, rows))],
        "kept": _kept_of_earlier_text(data),
        "rules": [
            (rule, percent(found.get("base", 0.0)), percent(found.get("tuned", 0.0))) for rule, found in rules.items()
        ],
        "bits": [
            (name, three_decimals(found["before"]), three_decimals(found["after"]))
            for name, found in (data.results.get("learned") or {}).items()
        ],
    }


def _curves_of_stage(text: Language, stage: str, rows: Rows) -> Section:
    """The loss of a stage, or what it has instead; of a stage that learned from rewards, its rewards and answers."""

    def reward_by_step(key: str) -> list[tuple[float, float]]:
        points = [(finite_number(row, "step"), finite_number(row, key, _SUM)) for row in rows]
        return [(step, reward) for step, reward in points if step is not None and reward is not None]

    if any("rewards" in row for row in rows):
        judged, cells, shown = [row for row in rows if "eval_reward" in row], None, []
        if len(judged) > 1:  # the first and the last step that measured held-out prompts
            ends, cells = (judged[0], judged[-1]), []
            for name in (name for name in ends[1]["eval_reward"] if name != _SUM):
                shares = [finite_number(row, "eval_reward", name) for row in ends]
                cells.append((name, *("" if share is None else three_decimals(share) for share in shares)))
            answers = zip(*(row.get("eval_answers") or [] for row in ends), strict=False)
            shown = [(str(after["prompt"]), str(before["answer"]), str(after["answer"])) for before, after in answers]
        curves = {"training": reward_by_step("rewards"), "held_out": reward_by_step("eval_reward")}
        return {"name": stage, "rewards": curves | {"rows": cells, "answers": shown[:_REWARDED_ANSWERS]}}
    curve, title, held_out = series_by_tokens(rows, "loss"), text("{stage}: loss, nats a token", stage=stage), None
    # Else held-out text has another unit.
    if any("margin" in row for row in rows):
        title = text("{stage}: loss of a pair of answers", stage=stage)
        held_out = [Line(text("held-out pairs"), series_by_tokens(rows, "eval_loss", "preferences"), 0)]
    elif any("eval_accuracy" in row for row in rows):
        title = text("{stage}: loss of a judged answer", stage=stage)
        held_out = [Line(text("held-out answers"), series_by_tokens(rows, "eval_loss", "judged"), 0)]
    elif any("eval_divergence" in row for row in rows):
        title = text("{stage}: divergence from the teacher, nats a token", stage=stage)
        held_out = held_out_lines(text, rows, "eval_divergence")
    held_out = held_out_lines(text, rows) if held_out is None else held_out
    return {"rewards": None, "title": title, "curve": curve, "held_out": held_out} if curve else None


def _kept_of_earlier_text(data: RunData) -> tuple[list[str], list[tuple[str, ...]]] | None:
    """What the stages kept of the text that was learned before: bits a byte on held-out text after each."""
    before = finite_numbers(data.results.get("bits_per_byte"))
    stages = {name: finite_numbers(nested_value(data.results, "stages", name, "bits_per_byte")) for name in data.tuned}
    stages = {name: found for name, found in stages.items() if found}
    if not before or not stages:
        return None
    columns = (before, *stages.values())
    rows = [(source, *(three_decimals(c[source]) if source in c else "" for c in columns)) for source in before]
    return list(stages), rows


def export(data: RunData) -> Section:
    """The files for programs of others, and by program the command that begins a conversation."""
    return {"commands": list(data.commands.items())} if data.commands else None


def measured(data: RunData) -> Section:
    """The recipe's own questions and each task, with the scores before and after training."""
    text, own = data.language, []
    # Answers in the model's own words have rules for their form instead (`finetune`).
    whens = {} if data.results.get("rules") else {"base": text("before tuning"), "tuned": text("after tuning")}
    for key, when in whens.items():
        share, interval = finite_number(data.results, key, "accuracy"), nested_value(data.results, key, "interval")
        if share is not None and interval:
            own.append((when, text("by writing"), percent(share), _interval_in_words(text, interval)))
    kinds = [finite_numbers(kind) for kind in (data.results.get("kinds") or {}).values()]
    total = sum(kind.get("questions", 0.0) for kind in kinds)
    if own and total:
        guess = sum(kind.get("guess", 0.0) * kind.get("questions", 0.0) for kind in kinds) / total
        own.append((text("without a model"), "", percent(guess), ""))
    # Of each task: of which stage, when, and the figures: those of `evaluate --tasks`, else those of the training.
    by_task: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for stage, rows in {"pretrain": data.pretrain, **data.tuned}.items():
        on_the_way, finished = _measured_while_training(rows), bool(data.manifests.get(stage))
        first = on_the_way[0]["tasks"] if on_the_way and on_the_way[0].get("step") == 0 else {}
        last, step = (on_the_way[-1]["tasks"], finite_number(on_the_way[-1], "step")) if on_the_way else ({}, None)
        measured_after = data.measured.get(stage, {})
        for task, figures in {**last, **measured_after}.items():
            asked = by_task.setdefault(task, [])
            if task in first and not asked:
                asked.append((stage, text("before {stage}", stage=stage), first[task]))
            if finished or task in measured_after:
                asked.append((stage, text("after {stage}", stage=stage), figures))
            elif step:
                asked.append((stage, text("{stage}, step {step}", stage=stage, step=count(step)), figures))
    tasks = [found for task, asked in by_task.items() if (found := _task_section(data, task, asked))]
    questions = finite_number(data.results, "tuned", "questions") or 0
    return {"own": own, "questions": questions, "tasks": tasks} if own or tasks else None


def _measured_while_training(rows: Rows) -> list[dict[str, Any]]:
    return [row for row in rows if isinstance(row.get("tasks"), dict)]


def _task_section(data: RunData, task: str, asked: Sequence[tuple[str, str, dict[str, Any]]]) -> Section:
    """The scores of a task, its curves over the stages that measured it on the way, and what repeats it."""
    text, (last_stage, _, last) = data.language, asked[-1]
    names = {"choice": text("by choosing"), "written": text("by writing")}
    rows = []
    for _, when, figures in asked:
        for name, value, interval, is_share in _scores_of_task(figures):
            sure = _interval_in_words(text, interval) if is_share else ""
            rows.append((when, names.get(name, name), percent(value) if is_share else f"{value:.4g}", sure))
    if not rows:
        return None
    if (chance := finite_number(last, "chance")) is not None:
        rows.append((text("by guessing"), names["choice"], percent(chance), ""))
    curves = []
    for stage, of_stage in {"pretrain": data.pretrain, **data.tuned}.items():
        points: dict[str, list[tuple[float, float]]] = {}
        for row in _measured_while_training(of_stage):
            for name, value, _, is_share in _scores_of_task(row["tasks"].get(task) or {}):
                if is_share and finite_number(row, "step") is not None:
                    points.setdefault(names.get(name, name), []).append((row["step"], value))
        lines = [Line(name, found, n) for n, (name, found) in enumerate(points.items()) if len(found) > 1]
        curves += [(stage, lines)] if lines else []
    settings = last.get("settings") or {}
    return {
        "name": task,
        "rows": rows,
        "curves": curves,
        "figures": last,
        "read_before": finite_numbers(last.get("read_before")),
        "settings": settings,
        "command": manifest.command(task, last, f"RUN/{last_stage}") if settings else "",
    }


def _scores_of_task(figures: dict[str, Any]) -> Iterator[tuple[str, float, Any, bool]]:
    """The name, the value and the interval of each score, and whether it is a share of questions.

    Of the rules for a choice it is the likeliest one alone. Scores that are no share, such as a perplexity, have no
    interval or one of any size, and of a loss less is better.
    """
    metrics = {name: (finite_number(found, "value"), found) for name, found in (figures.get("metrics") or {}).items()}
    shares = {**(figures.get("pass_at_k") or {})}
    shares |= {"choice": nested_value(figures, "likelihood", "likelihood"), "written": figures.get("written")}
    for name, (value, found) in {**metrics, **{n: (finite_number(f, "share"), f) for n, f in shares.items()}}.items():
        if value is not None:
            interval, better = found.get("interval"), (figures.get("better") or {}).get(name.partition(" (")[0], True)
            yield name, value, interval, bool(interval) and 0 <= interval[0] <= interval[1] <= 1 and better


def _interval_in_words(text: Language, interval: Sequence[float]) -> str:
    low, high = interval
    return text("{low} to {high}", low=math.floor(100 * low), high=math.ceil(100 * high))
