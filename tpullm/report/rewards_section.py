"""A stage that learned from rewards, on the page: its rewards by step, before and after, and its answers."""

from collections.abc import Sequence
from typing import Any

from tpullm.report.charts import Line, line_chart
from tpullm.report.html import Markup, figure, paragraph, phrase, table, tag
from tpullm.report.language import Language
from tpullm.report.run_data import number
from tpullm.report.units import three_decimals

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
