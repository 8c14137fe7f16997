"""What the model wrote after the same prompts while it was trained: from noise to sentences."""

from collections.abc import Sequence
from typing import Any

from tpullm.report.html import Markup, paragraph, phrase, tag
from tpullm.report.language import Language
from tpullm.report.run_data import number
from tpullm.report.units import count

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
