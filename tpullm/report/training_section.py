"""Steps 4 and 5 on the page: pretraining, fine-tuning, and what they took."""

import math
from collections.abc import Sequence
from typing import Any

from tpullm.report.charts import Line, line_chart, padded, single_bars
from tpullm.report.html import Markup, figure, paragraph, phrase, section, shows, table, tag
from tpullm.report.inputs import RunData
from tpullm.report.language import Language
from tpullm.report.units import count, find, number, percent

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
    text, vocabulary = data.language, data.model.vocabulary_size
    exercise = text(
        "Pretraining repeats one exercise: guess the next token, look at the right one, and move every parameter a "
        "little towards the better guess."
    )
    loss = text("The loss says in nats a token how much the right token surprised the model: 0 is no surprise.")
    blind = ""
    if vocabulary:
        blind = text(
            "A blind guess among {vocabulary} tokens has a loss of {loss}.",
            vocabulary=count(vocabulary),
            loss=f"{math.log(vocabulary):.1f}",
        )
    return section(
        "pretrain",
        text("Pretrain"),
        paragraph(text.join(exercise, loss, blind)),
        *loss_charts(data),
        _held_out(data),
        *_speed_charts(data),
        *_experts(data),
        *_samples(data),
        number=4,
    )


def loss_charts(data: RunData) -> list[Markup]:
    """The loss of pretraining against the tokens read, on the training text and on held-out text."""
    text, rows, truth = data.language, data.pretrain, number(data.results, "tenki", "entropy_nats_per_token")
    training = Line(text("training"), series(rows, "loss"), 5, "faint")
    lines = [training, *_held_out_lines(text, rows)]
    ends = (training.points[0][0], training.points[-1][0])
    charts = []
    if truth is not None:
        line = Line(text("the truth: entropy of tenki"), [(x, truth) for x in ends], 0, "dashed")
        lines.append(line)
        charts = _close_chart(text, series(rows, "eval_loss", "tenki"), line)
    title, x_name = text("Loss, nats a token"), text("tokens read in training")
    return [figure(line_chart(text, title, lines, x_name, write=_nats, large=True)), *charts]


def _held_out_lines(text: Language, rows: Sequence[dict[str, Any]]) -> list[Line]:
    return [
        Line(text("{source}, held out", source=name), series(rows, "eval_loss", name), i)
        for i, name in enumerate(held_out_sources(rows))
    ]


def _close_chart(text: Language, curve: list[tuple[float, float]], truth: Line) -> list[Markup]:
    """The last part of tenki's curve: the gap to the truth is too small to see beside the first losses."""
    entropy = truth.points[0][1]
    near = [(x, y) for x, y in curve if y < entropy + _CLOSE]
    if len(near) < 2:
        return []
    limits = padded(min(entropy, *(y for _, y in near)), max(entropy, *(y for _, y in near)))
    lines = [
        Line(text("{source}, held out", source="tenki"), near, 0),
        Line(truth.name, [(near[0][0], entropy), (near[-1][0], entropy)], 0, "dashed"),
    ]
    title, x_name = text("The same, close to the truth"), text("tokens read in training")
    caption = text(
        "The sentences of tenki are drawn from known probabilities, so it is known how much they surprise a perfect "
        "model. On average no model can be below the dashed line."
    )
    return [figure(line_chart(text, title, lines, x_name, limits, _nats), caption)]


def _nats(value: float) -> str:
    return f"{value:.3f}"


def _held_out(data: RunData) -> Markup:
    text, read = data.language, series(data.pretrain, "loss")
    losses = {name: series(data.pretrain, "eval_loss", name)[-1][1] for name in _measured(data.pretrain)}
    losses |= _numbers(find(data.results, "loss_nats_per_token"))
    bits = {name: points[-1][1] for name in losses if (points := series(data.pretrain, "eval_bits_per_byte", name))}
    bits |= _numbers(find(data.results, "bits_per_byte"))
    tokens, loss = text.compact(read[-1][0]), f"{read[-1][1]:.2f}"
    after = text("After {tokens} tokens the training loss is {loss} nats a token.", tokens=tokens, loss=loss)
    if not losses:
        return shows(text, after)
    rows = [
        (phrase(name), f"{loss:.3f}", f"{math.exp(min(loss, 99)):,.1f}", f"{bits[name]:.3f}" if name in bits else "")
        for name, loss in sorted(losses.items(), key=lambda item: item[0] != "tenki")
    ]
    header = (text("held-out text"), text("nats a token"), text("choices"), text("bits a byte"))
    choices = text(
        "On text that it has not seen, the model is as unsure at each token as if it had this many equally likely "
        "choices."
    )
    size = text("Bits a byte say how small the model could compress the text: 8 is not compressed at all.")
    return tag("div", table(header, rows), shows(text, after, choices, size))


def _measured(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in held_out_sources(rows) if series(rows, "eval_loss", name)]


def _numbers(values: Any) -> dict[str, float]:
    return {key: found for key in values or {} if (found := number(values, key)) is not None}


def _speed_charts(data: RunData) -> list[Markup]:
    text, charts = data.language, []
    titles = {"learning_rate": text("Learning rate"), "tokens_per_second": text("Tokens a second")}
    for key, title in titles.items():
        if points := series(data.pretrain, key):
            limits = (0.0, max(y for _, y in points) * 1.06 or 1.0)
            charts.append(
                figure(line_chart(text, title, [Line(title, points)], text("tokens read in training"), limits))
            )
    if not charts:
        return []
    said = text(
        "The learning rate says how far each step moves the parameters. It starts small and grows quickly. Then it "
        "falls towards the end, so that later steps do not undo what was learned."
    )
    return [tag("h3", text("Learning rate and speed")), tag("div", *charts, class_="two"), paragraph(said)]


def _experts(data: RunData) -> list[Markup]:
    """Of a mixture of experts: how far the loads of the busiest and of the idlest are from an even one."""
    text = data.language
    keys = {text("the busiest expert of all layers"): "highest", text("the least busy one"): "lowest"}
    loads = {name: series(data.pretrain, "expert_load", key) for name, key in keys.items()}
    if not all(loads.values()):
        return []
    even = Line(text("an even load"), [(x, 1.0) for x, _ in next(iter(loads.values()))], 2, "dashed")
    lines = [*(Line(name, points, i) for i, (name, points) in enumerate(loads.items())), even]
    said = text(
        "The router sends each token to a few experts. Training keeps all experts evenly busy. An expert without "
        "tokens learns nothing, and the other devices wait for an expert with too many."
    )
    title, x_name = text("Tokens of an expert (an even share is 1)"), text("tokens read in training")
    chart = line_chart(text, title, lines, x_name, write=_share)
    return [tag("h3", text("How evenly the experts work")), figure(chart), paragraph(said)]


def _share(value: float) -> str:
    return f"{value:.2f}"


def _samples(data: RunData) -> list[Markup]:
    samples = [sample for sample in data.results.get("samples") or [] if sample.get("text")]
    if not samples:
        return []
    text, written = data.language, [_sample(sample.get("prompt") or "", sample["text"]) for sample in samples]
    said = text("The words in colour were given. The pretrained model wrote the rest, one token at a time.")
    return [tag("h3", text("What it writes")), paragraph(said), tag("div", *written, class_="cards")]


def _sample(prompt: str, text: str) -> Markup:
    return tag("blockquote", tag("mark", phrase(prompt)) if prompt else None, phrase(text), class_="card sample")


def finetune(data: RunData) -> Markup | None:
    """Step 5: answers before and after, and how many are right."""
    tuned, curve = number(data.results, "tuned", "accuracy"), series(data.finetune, "loss")
    answers = data.results.get("answers") or []
    if tuned is None and not curve and not answers:
        return None
    text = data.language
    said = text(
        "A pretrained model continues a text. It does not know that a question wants an answer. Fine-tuning shows it "
        "conversations, and only the words of the assistant count in the loss."
    )
    parts = [*_accuracies(data), *_answers(text, answers), *_finetune_chart(data, curve)]
    return section("finetune", text("Fine-tune"), paragraph(said), *parts, number=5)


def _accuracies(data: RunData) -> list[Markup]:
    text = data.language
    base, tuned = (number(data.results, name, "accuracy") for name in ("base", "tuned"))
    if tuned is None:
        return []
    names = ((text("before tuning"), base), (text("after tuning"), tuned))
    rows = [(name, share, percent(share)) for name, share in names if share is not None]
    bars = single_bars(rows, text("after tuning"), whole=1.0)
    asked = number(data.results, "tuned", "questions")
    right = text("After tuning, {share} of the held-out questions are answered right.", share=percent(tuned))
    if asked:
        right = text(
            "After tuning, {share} of {questions} held-out questions are answered right.",
            share=percent(tuned),
            questions=count(asked),
        )
    before = "" if base is None else text("Before tuning it was {share}.", share=percent(base))
    never = text("The model never saw these questions with their answers.")
    return [figure(bars, text("Answers that are right, word for word.")), shows(text, right, before, never)]


def _answers(text: Language, answers: list[dict[str, Any]]) -> list[Markup]:
    if not answers:
        return []
    right = [answer for answer in answers if answer.get("right")]
    wrong = [answer for answer in answers if not answer.get("right")]
    every = -(-len(right) // _ANSWERS) or 1  # from all over: neighbours are questions of one kind
    right_shown, wrong_shown = right[::every], wrong[:_WRONG_ANSWERS]
    told = []
    if right:
        told.append(text("{shown} of {all} right answers are shown.", shown=len(right_shown), all=count(len(right))))
    if wrong:
        told.append(text("{shown} of {all} wrong answers are shown.", shown=len(wrong_shown), all=count(len(wrong))))
    cards = [_answer(text, answer) for answer in (*right_shown, *wrong_shown)]
    note = paragraph(text.join(*told), class_="note")
    return [tag("h3", text("Before and after")), tag("div", *cards, class_="cards"), note]


def _answer(text: Language, answer: dict[str, Any]) -> Markup:
    right = bool(answer.get("right"))
    mark = tag("span", text("right"), class_="mark right") if right else tag("span", text("wrong"), class_="mark wrong")
    rows = [(text("before"), answer.get("base"), None), (text("after"), answer.get("tuned"), mark)]
    if not right:
        rows.append((text("expected"), answer.get("expected"), None))
    cells = [
        (tag("dt", name), tag("dd", phrase(_clipped(text, said)), mark))
        for name, said, mark in rows
        if said is not None
    ]
    question = tag("p", phrase(_clipped(text, answer["question"])) if "question" in answer else None, class_="question")
    return tag("div", question, tag("dl", *(cell for row in cells for cell in row)), class_="card answer")


def _clipped(text: Language, said: Any) -> str:
    """At most so many characters; an empty answer is shown as such."""
    said = str(said).strip()
    return (said[:_LONGEST_ANSWER] + "…" if len(said) > _LONGEST_ANSWER else said) or text("(nothing)")


def _finetune_chart(data: RunData, curve: list[tuple[float, float]]) -> list[Markup]:
    if not curve:
        return []
    text = data.language
    lines = [Line(text("training"), curve, 5, "faint"), *_held_out_lines(text, data.finetune)]
    title, x_name = text("Loss on the answers, nats a token"), text("tokens read in tuning")
    return [figure(line_chart(text, title, lines, x_name, write=_nats))]


def speed(data: RunData) -> Markup | None:
    """What the run took, on which machine."""
    text, facts = data.language, [*_machine(data), *_rates(data)]
    finished = {stage: number(data.manifests, stage, "seconds") for stage in data.manifests}
    seconds = _numbers(data.results.get("seconds")) or {s: value for s, value in finished.items() if value is not None}
    if not (seconds or facts):
        return None
    parts = []
    if seconds:
        names = _stages(text)
        times = [(names.get(stage, stage), value, text.duration(value)) for stage, value in seconds.items()]
        parts.append(figure(single_bars(times), text("{time} in all.", time=text.duration(sum(seconds.values())))))
    if (predicted := _predicted(data)) is not None:
        parts.append(predicted)
    cells = [cell for name, value in facts for cell in (tag("dt", name), tag("dd", value))]
    columns = [tag("div", *parts)] * bool(parts) + [tag("dl", *cells, class_="facts")] * bool(facts)
    said = text("How long each step took, and on what. The same commands run on a GPU and on a TPU pod.")
    return section("speed", text("Speed and machine"), paragraph(said), tag("div", *columns, class_="two"))


def _stages(text: Language) -> dict[str, str]:
    """What was done for a stage."""
    return {
        "base": text("Import"),
        "documents": text("Collect"),
        "tokenizer": text("Train the tokenizer"),
        "tokens": text("Tokenize"),
        "pretrain": text("Pretrain"),
        "finetune": text("Fine-tune"),
        "evaluate": text("Evaluate"),
    }


def _machine(data: RunData) -> list[tuple[str, str]]:
    machine = {key: value for key, value in (data.results.get("machine") or {}).items() if value not in (None, "")}
    if machine.get("device") == machine.get("platform"):
        machine.pop("device", None)  # of a CPU JAX knows no more
    text = data.language
    names = {"python": "Python", "jax": "JAX"}
    names |= {"platform": text("platform"), "device": text("device"), "cores": text("cores")}
    return [(names.get(key, key), str(value)) for key, value in machine.items()]


def _rates(data: RunData) -> list[tuple[str, str]]:
    text, found = data.language, []
    for name, key, write in (
        (text("tokens a second, median"), "tokens_per_second", text.compact),
        (text("share of the peak (MFU), median"), "mfu", percent),
        (text("waiting for data, median"), "data_wait_share", percent),
    ):
        values = sorted(value for _, value in series(data.pretrain, key))
        if values:
            found.append((name, write(values[len(values) // 2])))
    return found


def _predicted(data: RunData) -> Markup | None:
    """A step as it was predicted before training, and how long it took: median, since some wait for saves."""
    taken = sorted(value for _, value in series(data.pretrain, "step_seconds"))
    predicted = number(data.plan, "step_seconds")
    if predicted is None or not taken:
        return None
    text, median = data.language, taken[len(taken) // 2]
    times = ((text("predicted"), predicted), (text("measured"), median))
    bars = single_bars([(name, value, text.moment(value)) for name, value in times], text("measured"))
    median_told = text("The time of one step of pretraining: predicted before the first, and the median of all.")
    title = tag("h3", text("As fast as predicted?"))
    return tag("div", title, figure(bars, text.join(median_told, _off(text, predicted / median - 1))))


def _off(text: Language, error: float) -> str:
    share = f"{abs(error):.0%}"
    if share == "0%":
        return text("The prediction was right.")
    if error > 0:
        return text("The prediction was {share} too long.", share=share)
    return text("The prediction was {share} too short.", share=share)
