"""Step 5 on the page: fine-tuning.

A stage that learned from rewards, on the page: its rewards by step, before and after, and its answers.
"""

from collections.abc import Sequence
from typing import Any

from tpullm.report.charts import Line, line_chart, single_bars
from tpullm.report.html import Markup, figure, paragraph, phrase, section, shows, table, tag
from tpullm.report.language import Language, count, percent, three_decimals
from tpullm.report.pretrain_section import growing_texts, held_out_lines
from tpullm.report.run_data import RunData, find, number, numbers, series

_SUM = "sum"  # the weighted sum, among the rewards
_SHOWN = 4  # answers


def learned_from_rewards(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the log is one of a stage that learned from rewards."""
    return any("rewards" in row for row in rows)


def rewards(text: Language, stage: str, rows: Sequence[dict[str, Any]]) -> list[Markup]:
    """What a stage learned from rewards.

    Args:
        rows: its log.
    """
    judged = [row for row in rows if "eval_reward" in row]
    said = text(
        "{stage}: the model answered prompts itself, several times each, and learned from the answers that scored "
        "better than the others.",
        stage=stage,
    )
    lines = [
        Line(text("training"), _by_step(rows, "rewards"), 5, "faint"),
        Line(text("held-out prompts"), _by_step(judged, "eval_reward"), 0),
    ]
    chart = line_chart(text, text("{stage}: reward", stage=stage), lines, text("step"), write=three_decimals)
    parts = [paragraph(said), figure(chart)]
    if len(judged) < 2:
        return parts
    before, after = judged[0], judged[-1]
    header = (text("reward of answers to held-out prompts"), text("before"), text("after"))
    names = [name for name in after["eval_reward"] if name != _SUM]
    shares = [(name, *(number(row, "eval_reward", name) for row in (before, after))) for name in names]
    cells = [(name, *("" if share is None else three_decimals(share) for share in found)) for name, *found in shares]
    pairs = zip(before.get("eval_answers") or [], after.get("eval_answers") or [], strict=False)
    cards = [_card(text, *pair) for pair in list(pairs)[:_SHOWN]]
    return [*parts, table(header, cells), tag("div", *cards, class_="cards")]


def _by_step(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    points = [(number(row, "step"), number(row, key, _SUM)) for row in rows]
    return [(step, reward) for step, reward in points if step is not None and reward is not None]


def _card(text: Language, before: dict[str, Any], after: dict[str, Any]) -> Markup:
    cells = [
        (tag("dt", name), tag("dd", phrase(str(said["answer"]).strip() or text("(nothing)"))))
        for name, said in ((text("before"), before), (text("after"), after))
    ]
    question = tag("p", phrase(str(after["prompt"])), class_="question")
    return tag("div", question, tag("dl", *(cell for row in cells for cell in row)), class_="card answer")


_RIGHT_ANSWERS = 8  # that are shown
_WRONG_ANSWERS = 4
_LONGEST_ANSWER = 100  # characters: a model that was not tuned does not know when to stop


def finetune(data: RunData) -> Markup | None:
    """Step 5: answers before and after, and how many are right."""
    tuned, answers = number(data.results, "tuned", "accuracy"), data.results.get("answers") or []
    if tuned is None and not data.tuned and not answers:
        return None
    text = data.language
    said = text(
        "A pretrained model continues a text. It does not know that a question wants an answer. Fine-tuning shows it "
        "conversations, and only the words of the assistant count in the loss."
    )
    grown = [part for rows in data.tuned.values() for part in growing_texts(text, rows)]
    parts = [*_stages(data), *_accuracies(data), *_answers(text, answers), *grown, *_charts(data), *_kept(data)]
    return section("finetune", text("Fine-tune"), paragraph(said), *parts, number=5)


def _stages(data: RunData) -> list[Markup]:
    """What each stage reads, and in which shares, if one of them reads documents."""
    text, rows = data.language, []
    for name in data.tuned:
        config = find(data.manifests, name, "inputs", "config") or {}
        documents = numbers(config.get("documents"))
        examples = {
            "conversations": text("conversations"),
            "preferences": text("preferences"),
            "prompts": text("prompts"),
        }
        rest = 1 - sum(documents.values())
        shares = {what: rest for key, what in examples.items() if config.get(key)} | documents
        rows.append((name, ", ".join(f"{what} {percent(share)}" for what, share in shares.items()), bool(documents)))
    if not any(row[2] for row in rows):
        return []
    return [table((text("stage"), text("what it reads")), [row[:2] for row in rows], left=2)]


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
    return [figure(bars, text("Answers that are right.")), shows(text, right, before, never), *_kinds(data)]


def _kinds(data: RunData) -> list[Markup]:
    """The shares of right answers by the kind of question, if there are several, and that of a guess beside them."""
    text, kinds = data.language, data.results.get("kinds") or {}
    if len(kinds) < 2:
        return []
    shares = {
        "base": text("before tuning"),
        "tuned": text("after tuning"),
        "guess": text("always the commonest answer"),
    }
    shown = {
        key: name for key, name in shares.items() if any(number(found, key) is not None for found in kinds.values())
    }
    rows = [
        (kind, *(_percent(number(found, key)) for key in shown), count(number(found, "questions") or 0))
        for kind, found in kinds.items()
    ]
    said = text(
        "Right answers by the kind of question. A share near that of the commonest answer, or of a choice at random, "
        "is no knowledge."
    )
    return [paragraph(said), table((text("kind of question"), *shown.values(), text("questions")), rows)]


def _percent(share: float | None) -> str:
    return "" if share is None else percent(share)


def _answers(text: Language, answers: list[dict[str, Any]]) -> list[Markup]:
    if not answers:
        return []
    right = [answer for answer in answers if answer.get("right")]
    wrong = [answer for answer in answers if not answer.get("right")]
    every = -(-len(right) // _RIGHT_ANSWERS) or 1  # spread over all: neighbouring questions are of one kind
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
    """The first 100 characters of an answer; an empty answer becomes "(nothing)"."""
    said = str(said).strip()
    return (said[:_LONGEST_ANSWER] + "…" if len(said) > _LONGEST_ANSWER else said) or text("(nothing)")


def _charts(data: RunData) -> list[Markup]:
    """The loss of each stage, or what it has instead."""
    text, charts = data.language, []
    for name, rows in data.tuned.items():
        if learned_from_rewards(rows):
            charts += rewards(text, name, rows)
        elif curve := series(rows, "loss"):
            title, held_out = text("{stage}: loss, nats a token", stage=name), held_out_lines(text, rows)
            # Else held-out text has another unit.
            if any("margin" in row for row in rows):
                title = text("{stage}: loss of a pair of answers", stage=name)
                held_out = [Line(text("held-out pairs"), series(rows, "eval_loss", "preferences"), 0)]
            elif any("eval_accuracy" in row for row in rows):
                title = text("{stage}: loss of a judged answer", stage=name)
                held_out = [Line(text("held-out answers"), series(rows, "eval_loss", "judged"), 0)]
            elif any("eval_divergence" in row for row in rows):
                title = text("{stage}: divergence from the teacher, nats a token", stage=name)
                held_out = held_out_lines(text, rows, "eval_divergence")
            lines = [Line(text("training"), curve, 5, "faint"), *held_out]
            x_name = text("tokens read in tuning")
            charts.append(figure(line_chart(text, title, lines, x_name, write=three_decimals)))
    return charts


def _kept(data: RunData) -> list[Markup]:
    """What the stages kept of the text that was learned before: bits a byte on held-out text after each."""
    text, before = data.language, numbers(data.results.get("bits_per_byte"))
    stages = {name: numbers(find(data.results, "stages", name, "bits_per_byte")) for name in data.tuned}
    stages = {name: found for name, found in stages.items() if found}
    if not before or not stages:
        return []
    columns = (before, *stages.values())
    rows = [
        (source, *(three_decimals(column[source]) if source in column else "" for column in columns))
        for source in before
    ]
    said = text(
        "Bits a byte on held-out text, after each stage: less on what the stage reads, often more on what it does not. "
        "The model forgets."
    )
    return [paragraph(said), table(("", text("before tuning"), *stages), rows)]
