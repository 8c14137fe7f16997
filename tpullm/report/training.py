"""Steps 4 and 5 on the page: pretraining, fine-tuning, and what they took."""

import math
from collections.abc import Sequence
from typing import Any

from tpullm.log import moment
from tpullm.report.charts import Line, line_chart, padded, single_bars
from tpullm.report.html import Markup, figure, paragraph, phrase, section, shows, table, tag
from tpullm.report.inputs import RunData
from tpullm.report.units import compact, count, duration, find, number, percent, short

_ANSWERS = 8
_WRONG_ANSWERS = 4
_LONGEST_ANSWER = 100  # characters: a model that was not tuned does not know when to stop
_CLOSE = 0.35  # nats a token above the truth: the part of the curve that the second chart shows


def series(rows: Sequence[dict[str, Any]], *keys: str) -> list[tuple[float, float]]:
    """(tokens, value) of the lines of `metrics.jsonl` that have the value."""
    points = [(number(row, "tokens") or number(row, "step"), number(row, *keys)) for row in rows]
    return [(x, y) for x, y in points if x is not None and y is not None]


def held_out_sources(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Sources with a held-out loss, tenki first: it has the accent colour and a truth to compare with."""
    names = {name: None for row in rows for name in row.get("eval_loss") or {}}
    return sorted(names, key=lambda name: name != "tenki")


def pretrain(data: RunData) -> Markup | None:
    """Step 4: the loss against the tokens read, learning rate and speed, what the model writes."""
    if not series(data.pretrain, "loss"):
        return None
    blind = (
        f" (a blind guess among {count(v)} tokens is {math.log(v):.1f})" if (v := data.model.vocabulary_size) else ""
    )
    return section(
        "pretrain",
        "Pretrain",
        paragraph(
            "Pretraining is one exercise, repeated: guess the next token, look at the right one, and move every "
            "parameter a little towards the better guess. The loss says how surprised the model was by the right one, "
            f"in nats a token: 0 is no surprise{blind}."
        ),
        *loss_charts(data),
        _held_out(data),
        *_speed_charts(data),
        *_experts(data),
        *_samples(data),
        number=4,
    )


def loss_charts(data: RunData) -> list[Markup]:
    """The loss of pretraining against the tokens read, on the training text and on held-out text."""
    rows, truth = data.pretrain, number(data.results, "tenki", "entropy_nats_per_token")
    training = Line("training", series(rows, "loss"), 5, "faint")
    held_out = [Line(f"{n}, held out", series(rows, "eval_loss", n), i) for i, n in enumerate(held_out_sources(rows))]
    lines = [training, *held_out]
    ends = (training.points[0][0], training.points[-1][0])
    charts = []
    if truth is not None:
        line = Line("the truth: entropy of tenki", [(x, truth) for x in ends], 0, "dashed")
        lines.append(line)
        charts = _close_chart(series(rows, "eval_loss", "tenki"), line)
    whole = line_chart("Loss, nats a token", lines, "tokens read in training", write=_nats, large=True)
    return [figure(whole), *charts]


def _close_chart(curve: list[tuple[float, float]], truth: Line) -> list[Markup]:
    """The last part of tenki's curve: the gap to the truth is too small to see beside the first losses."""
    entropy = truth.points[0][1]
    near = [(x, y) for x, y in curve if y < entropy + _CLOSE]
    if len(near) < 2:
        return []
    limits = padded(min(entropy, *(y for _, y in near)), max(entropy, *(y for _, y in near)))
    lines = [
        Line("tenki, held out", near, 0),
        Line(truth.name, [(near[0][0], entropy), (near[-1][0], entropy)], 0, "dashed"),
    ]
    chart = line_chart("The same, close to the truth", lines, "tokens read in training", limits, _nats)
    caption = (
        "The sentences of tenki are drawn from known probabilities, so we know how surprised a perfect model would be: "
        "on average no model can be below the dashed line."
    )
    return [figure(chart, caption)]


def _nats(value: float) -> str:
    return f"{value:.3f}"


def _held_out(data: RunData) -> Markup:
    read = series(data.pretrain, "loss")[-1][0]
    losses = {name: series(data.pretrain, "eval_loss", name)[-1][1] for name in _measured(data.pretrain)}
    losses |= _numbers(find(data.results, "loss_nats_per_token"))
    bits = {name: points[-1][1] for name in losses if (points := series(data.pretrain, "eval_bits_per_byte", name))}
    bits |= _numbers(find(data.results, "bits_per_byte"))
    said = f"After {compact(read)} tokens the training loss is {series(data.pretrain, 'loss')[-1][1]:.2f} nats a token."
    if not losses:
        return shows(said)
    rows = [
        (phrase(name), f"{loss:.3f}", f"{math.exp(min(loss, 99)):,.1f}", f"{bits[name]:.3f}" if name in bits else "")
        for name, loss in sorted(losses.items(), key=lambda item: item[0] != "tenki")
    ]
    header = ("held-out text", "nats a token", "choices", "bits a byte")
    explained = (
        "On text that it has not seen, the model is as unsure as if it had so many equally likely choices each time. "
        "Bits a byte is how far it would compress the text: 8 is not at all."
    )
    return tag("div", table(header, rows), shows(said, " ", explained))


def _measured(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in held_out_sources(rows) if series(rows, "eval_loss", name)]


def _numbers(values: Any) -> dict[str, float]:
    return {key: found for key in values or {} if (found := number(values, key)) is not None}


def _speed_charts(data: RunData) -> list[Markup]:
    charts = []
    for title, key in (("Learning rate", "learning_rate"), ("Tokens a second", "tokens_per_second")):
        if points := series(data.pretrain, key):
            limits = (0.0, max(y for _, y in points) * 1.06 or 1.0)
            charts.append(figure(line_chart(title, [Line(title, points)], "tokens read in training", limits)))
    if not charts:
        return []
    text = (
        "The learning rate says how far each step moves the parameters: slowly at first, then boldly, and ever smaller "
        "at the end, so that what was learned settles."
    )
    return [tag("h3", "How boldly, and how fast"), tag("div", *charts, class_="two"), paragraph(text)]


def _experts(data: RunData) -> list[Markup]:
    """Of a mixture of experts: how far the loads of the busiest and of the idlest are from an even one."""
    keys = {"the busiest expert of all layers": "highest", "the idlest": "lowest"}
    loads = {name: series(data.pretrain, "expert_load", key) for name, key in keys.items()}
    if not all(loads.values()):
        return []
    even = Line("an even load", [(x, 1.0) for x, _ in next(iter(loads.values()))], 2, "dashed")
    lines = [*(Line(name, points, i) for i, (name, points) in enumerate(loads.items())), even]
    text = (
        "Each token goes to the few experts that its router chooses. Training keeps them evenly busy: an expert that "
        "nobody asks learns nothing, and one that everybody asks makes the others' devices wait."
    )
    chart = line_chart("Tokens of an expert (an even share is 1)", lines, "tokens read in training", write=_share)
    return [tag("h3", "How evenly the experts work"), figure(chart), paragraph(text)]


def _share(value: float) -> str:
    return f"{value:.2f}"


def _samples(data: RunData) -> list[Markup]:
    samples = [sample for sample in data.results.get("samples") or [] if sample.get("text")]
    if not samples:
        return []
    written = [_sample(sample.get("prompt") or "", sample["text"]) for sample in samples]
    return [
        tag("h3", "What it writes"),
        paragraph("Given the words in colour, the pretrained model went on by itself, one token at a time."),
        tag("div", *written, class_="cards"),
    ]


def _sample(prompt: str, text: str) -> Markup:
    return tag("blockquote", tag("mark", phrase(prompt)) if prompt else None, phrase(text), class_="card sample")


def finetune(data: RunData) -> Markup | None:
    """Step 5: answers before and after, and how many are right."""
    tuned, curve = number(data.results, "tuned", "accuracy"), series(data.finetune, "loss")
    answers = data.results.get("answers") or []
    if tuned is None and not curve and not answers:
        return None
    return section(
        "finetune",
        "Fine-tune",
        paragraph(
            "A pretrained model goes on with a text; it does not know that a question wants an answer. Fine-tuning "
            "shows it conversations, and only what the assistant says counts."
        ),
        *_accuracies(data),
        *_answers(answers),
        *_finetune_chart(data, curve),
        number=5,
    )


def _accuracies(data: RunData) -> list[Markup]:
    base, tuned = (number(data.results, name, "accuracy") for name in ("base", "tuned"))
    rows = [(name, x, percent(x)) for name, x in (("before tuning", base), ("after tuning", tuned)) if x is not None]
    if tuned is None:
        return []
    asked = number(data.results, "tuned", "questions")
    of = f" of {count(asked)} held-out questions" if asked else " of the held-out questions"
    before = "" if base is None else f" Before tuning it was {percent(base)}."
    return [
        figure(single_bars(rows, "after tuning", whole=1.0), "Answers that are right, word for word."),
        shows(
            f"After tuning, {percent(tuned)}{of} are answered right.{before} It never "
            "saw these questions with their answers."
        ),
    ]


def _answers(answers: list[dict[str, Any]]) -> list[Markup]:
    if not answers:
        return []
    right = [answer for answer in answers if answer.get("right")]
    wrong = [answer for answer in answers if not answer.get("right")]
    every = -(-len(right) // _ANSWERS) or 1  # from all over: neighbours are questions of one kind
    shown = [right[::every], wrong[:_WRONG_ANSWERS]]
    of_right, of_wrong = (
        f"{len(part)} of {count(len(all_))}" for part, all_ in zip(shown, (right, wrong), strict=True)
    )
    told = [f"{of_right} right answers"] * bool(right) + [f"{of_wrong} wrong ones"] * bool(wrong)
    note = f"Shown: {', '.join(told)}."
    cards = [_answer(answer) for part in shown for answer in part]
    return [tag("h3", "Before and after"), tag("div", *cards, class_="cards"), paragraph(note, class_="note")]


def _answer(answer: dict[str, Any]) -> Markup:
    right = bool(answer.get("right"))
    mark = tag("span", "right" if right else "wrong", class_="mark right" if right else "mark wrong")
    rows = [("before", _clipped(answer.get("base")), None), ("after", _clipped(answer.get("tuned")), mark)]
    if not right:
        rows.append(("expected", _clipped(answer.get("expected")), None))
    cells = [(tag("dt", name), tag("dd", phrase(text), mark)) for name, text, mark in rows if text is not None]
    question = tag("p", phrase(_clipped(answer.get("question")) or ""), class_="question")
    return tag("div", question, tag("dl", *(cell for row in cells for cell in row)), class_="card answer")


def _clipped(text: Any) -> str | None:
    """At most so many characters; an empty answer is shown as such."""
    if text is None:
        return None
    text = str(text).strip()
    return (text[:_LONGEST_ANSWER] + "…" if len(text) > _LONGEST_ANSWER else text) or "(nothing)"


def _finetune_chart(data: RunData, curve: list[tuple[float, float]]) -> list[Markup]:
    if not curve:
        return []
    names = held_out_sources(data.finetune)
    held_out = [Line(f"{name}, held out", series(data.finetune, "eval_loss", name), i) for i, name in enumerate(names)]
    lines = [Line("training", curve, 5, "faint"), *held_out]
    return [figure(line_chart("Loss on the answers, nats a token", lines, "tokens read in tuning", write=_nats))]


def speed(data: RunData) -> Markup | None:
    """What the run took, on which machine."""
    finished = {stage: number(data.manifests, stage, "seconds") for stage in data.manifests}
    seconds = _numbers(data.results.get("seconds")) or {s: value for s, value in finished.items() if value is not None}
    machine = {key: value for key, value in (data.results.get("machine") or {}).items() if value not in (None, "")}
    if machine.get("device") == machine.get("platform"):
        machine.pop("device", None)  # of a CPU JAX knows no more
    rows = _rates(data)
    if not (seconds or machine or rows):
        return None
    times = [(stage, value, duration(value)) for stage, value in seconds.items()]
    facts = [(key, str(value)) for key, value in machine.items()] + rows
    stages = figure(single_bars(times), f"{duration(sum(seconds.values()))} in all.") if times else None
    predicted = _predicted(data)
    parts = [tag("div", stages, predicted)] if stages or predicted else []
    if facts:
        parts.append(
            tag("dl", *(cell for key, value in facts for cell in (tag("dt", key), tag("dd", value))), class_="facts")
        )
    text = paragraph("How long each step took, and on what. The same commands run on a GPU and on a TPU pod.")
    return section("speed", "Speed and machine", text, tag("div", *parts, class_="two"))


def _rates(data: RunData) -> list[tuple[str, str]]:
    found = []
    for name, key, write in (
        ("tokens a second", "tokens_per_second", short),
        ("share of the peak (MFU)", "mfu", percent),
        ("waiting for data", "data_wait_share", percent),
    ):
        values = sorted(value for _, value in series(data.pretrain, key))
        if values:
            found.append((f"{name}, median", write(values[len(values) // 2])))
    return found


def _predicted(data: RunData) -> Markup | None:
    """A step as it was predicted before training, and how long it took: median, since some wait for saves."""
    taken = sorted(value for _, value in series(data.pretrain, "step_seconds"))
    predicted = number(data.plan, "step_seconds")
    if predicted is None or not taken:
        return None
    median = taken[len(taken) // 2]
    rows = [("predicted", predicted, moment(predicted)), ("measured", median, moment(median))]
    off = round(predicted / median - 1, 2)
    said = f"{abs(off):.0%} too {'long' if off > 0 else 'short'}" if off else "right"
    caption = f"A step of pretraining, in the median. The prediction, from before it began, was {said}."
    return tag("div", tag("h3", "As fast as predicted?"), figure(single_bars(rows, "measured"), caption))
