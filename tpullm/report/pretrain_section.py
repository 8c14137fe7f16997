"""Step 4 on the page: pretraining.

What the model wrote after the same prompts while it was trained: from noise to sentences.
"""

import math
from collections.abc import Sequence
from typing import Any

from tpullm.report.charts import Line, heat_map, line_chart, padded
from tpullm.report.html import Markup, figure, paragraph, phrase, section, shows, table, tag
from tpullm.report.language import Language, count, three_decimals
from tpullm.report.run_data import RunData, find, number, numbers, series

_STEPS = 6  # that are shown, the first and the last among them
_LONGEST = 160  # characters of a text


def growing_texts(text: Language, rows: Sequence[dict[str, Any]], is_new: bool = False) -> list[Markup]:
    """A card for each prompt, with the text after each step that was measured.

    Args:
        rows: the lines of `metrics.jsonl`.
        is_new: at step 0 the parameters are random.
    """
    found = [row for row in rows if isinstance(row.get("samples"), list) and number(row, "step") is not None]
    if len(found) < 2:
        return []
    found = [found[round(n * (len(found) - 1) / (_STEPS - 1))] for n in range(_STEPS)] if len(found) > _STEPS else found
    prompts: dict[str, list[tuple[float, str]]] = {}
    for row in found:
        for sample in row["samples"]:
            written = prompts.setdefault(str(sample.get("prompt", "")), [])
            written.append((row["step"], str(sample.get("text", ""))))
    said = text("At each of these steps of training the model was given the words in colour, and wrote what follows.")
    if is_new and found[0]["step"] == 0:
        noise = text("Before the first step its parameters are random, so its tokens are nearly random too.")
        said = text.join(said, noise)
    cards = [_card(text, prompt, written) for prompt, written in prompts.items()]
    return [tag("h3", text("How its writing grew")), paragraph(said), tag("div", *cards, class_="cards")]


def _card(text: Language, prompt: str, written: Sequence[tuple[float, str]]) -> Markup:
    cells = [
        (tag("dt", text("step {step}", step=count(step))), tag("dd", phrase(_clipped(text, said))))
        for step, said in written
    ]
    question = tag("p", tag("mark", phrase(prompt)), class_="question")
    return tag("div", question, tag("dl", *(cell for row in cells for cell in row)), class_="card answer grown")


def _clipped(text: Language, said: str) -> str:
    said = said.rstrip()
    return (said[:_LONGEST] + "…" if len(said) > _LONGEST else said) or text("(nothing)")


_CLOSE = 0.35  # nats a token above the truth: the part of the curve that the second chart shows


def held_out_sources(rows: Sequence[dict[str, Any]], what: str = "eval_loss") -> list[str]:
    """Sources with a held-out loss, or with what else is measured there.

    tenki is first: it gets the accent colour, since its true entropy is known.
    """
    names = {name: None for row in rows for name in row.get(what) or {}}
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
        *_gradients(data),
        *_experts(data),
        *growing_texts(text, data.pretrain, is_new=_begins_new(data)),
        *_samples(data),
        number=4,
    )


def _begins_new(data: RunData) -> bool:
    """Whether pretraining began with random parameters: from no published model and no checkpoint."""
    return not data.manifests.get("base") and not find(data.manifests, "pretrain", "inputs", "upstream", "branch")


def loss_charts(data: RunData) -> list[Markup]:
    """The loss of pretraining against the tokens read, on the training text and on held-out text."""
    text, rows, truth = data.language, data.pretrain, number(data.results, "tenki", "entropy_nats_per_token")
    training = Line(text("training"), series(rows, "loss"), 5, "faint")
    lines = [training, *held_out_lines(text, rows)]
    ends = (training.points[0][0], training.points[-1][0])
    charts = []
    if truth is not None:
        line = Line(text("the truth: entropy of tenki"), [(x, truth) for x in ends], 0, "dashed")
        lines.append(line)
        charts = _close_chart(text, series(rows, "eval_loss", "tenki"), line)
    title, x_name = text("Loss, nats a token"), text("tokens read in training")
    return [figure(line_chart(text, title, lines, x_name, write=three_decimals, large=True)), *charts]


def held_out_lines(text: Language, rows: Sequence[dict[str, Any]], what: str = "eval_loss") -> list[Line]:
    """A line for each held-out source of `rows`."""
    return [
        Line(text("{source}, held out", source=name), series(rows, what, name), i)
        for i, name in enumerate(held_out_sources(rows, what))
    ]


def _close_chart(text: Language, curve: list[tuple[float, float]], truth: Line) -> list[Markup]:
    """The last part of tenki's curve. Beside the first losses, the gap to the truth is too small to see."""
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
    return [figure(line_chart(text, title, lines, x_name, limits, three_decimals), caption)]


def _held_out(data: RunData) -> Markup:
    text, read = data.language, series(data.pretrain, "loss")
    losses = {name: series(data.pretrain, "eval_loss", name)[-1][1] for name in _measured(data.pretrain)}
    losses |= numbers(find(data.results, "loss_nats_per_token"))
    bits = {name: points[-1][1] for name in losses if (points := series(data.pretrain, "eval_bits_per_byte", name))}
    bits |= numbers(find(data.results, "bits_per_byte"))
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
    size = text("Bits a byte say how far the model could compress the text: 8 means no compression.")
    return tag("div", table(header, rows), shows(text, after, choices, size))


def _measured(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in held_out_sources(rows) if series(rows, "eval_loss", name)]


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


def _gradients(data: RunData) -> list[Markup]:
    """The norm of the gradient by layer, if the log has it. The parts of a layer make one row."""
    text, found = data.language, [row for row in data.pretrain if row.get("gradient_norms")]
    squares: list[dict[str, float]] = []
    for row in found:
        squares.append({})
        for part, norm in numbers(row["gradient_norms"]).items():
            name = part.split(".")[0]
            squares[-1][name] = squares[-1].get(name, 0.0) + norm**2
    names = dict.fromkeys(name for column in squares for name in column)
    if not names:
        return []
    rows = [(name, [math.sqrt(column[name]) if name in column else None for column in squares]) for name in names]
    columns = [number(row, "tokens") or number(row, "step") for row in found]
    said = text(
        "Each row is a layer, and time goes from left to right: the stronger the colour, the larger the norm of its "
        "gradient. A layer that stays pale learns little, and a column that is dark in all rows is a step that moved "
        "everything."
    )
    chart = heat_map(text, text("Norm of the gradient"), columns, rows, text("tokens read in training"))
    return [tag("h3", text("Gradients by layer")), figure(chart), paragraph(said)]


def _experts(data: RunData) -> list[Markup]:
    """For a mixture of experts: the loads of the busiest and of the least busy expert, beside an even load."""
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
