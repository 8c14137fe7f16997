"""What the model learned from the user's own text. The section exists only if the run was given some."""

from typing import Any

from tpullm.report.charts import single_bars
from tpullm.report.html import BLANK, Markup, blank_question, figure, mixed, paragraph, phrase, section, shows, tag
from tpullm.report.language import Language
from tpullm.report.run_data import RunData, find, number
from tpullm.report.units import count, percent, probability, three_decimals

_BY_HEART = 10  # the page warns if the text was read this many times or more
_LONGEST = 240  # characters of a continuation


def yours(data: RunData) -> Markup | None:
    """How the model continues the text, which words it expects in it, and how well it predicts it."""
    if not data.results.get("yours"):
        return None
    text = data.language
    said = text(
        "This is what the model learned from your text. Everything here was measured on the held-out part of your "
        "text, which the model has never read."
    )
    parts = [*_compressed(data), *_continuations(data), *_blanks(data)]
    return section("yours", text("Your own text"), paragraph(said), *parts)


def _compressed(data: RunData) -> list[Markup]:
    """The model's bits a byte beside those of a compressor."""
    text, compressor = data.language, find(data.results, "yours", "compressor")
    model, packed = number(data.results, "bits_per_byte", "yours"), number(compressor, "bits_per_byte")
    name = find(compressor, "name")
    if not (model and packed and name):
        return []
    sizes = ((text("the model"), model), (name, packed))
    rows = [(name, bits, three_decimals(bits)) for name, bits in sizes]
    caption = text("Bits for each byte of your held-out text. Less is better; 8 is the text as it is.")
    share = percent(abs(1 - model / packed))
    read = text("Both had read the rest of your text first.")
    if model < packed:
        told = text("The model needs {share} less than the compressor: it predicts your text better.", share=share)
    else:
        told = text(
            "The model needs {share} more than the compressor, which copies whole passages that repeat. More text, "
            "more steps or a larger model narrow the gap.",
            share=share,
        )
    bars = single_bars(rows, text("the model"))
    title = tag("h3", text("How well it predicts your text"))
    return [title, tag("div", figure(bars, caption), class_="narrow"), shows(text, told, read, _by_heart(data))]


def _by_heart(data: RunData) -> str:
    """A sentence that says how often a short text was read; empty if that was not often."""
    text, times = data.language, number(data.results, "yours", "times_read") or 0.0
    if times < _BY_HEART:
        return ""
    return text(
        "Your text is short and was read {times} times, so the model knows much of it by heart.", times=count(times)
    )


def _continuations(data: RunData) -> list[Markup]:
    found = [item for item in find(data.results, "yours", "continuations") or [] if item.get("prompt")]
    if not found:
        return []
    text = data.language
    said = text(
        "The words in colour are the beginning of a held-out document. The model wrote the rest. Below it is how the "
        "document really continues. The model can't know that, but the style should be similar."
    )
    cards = [_continuation(text, item) for item in found]
    return [tag("h3", text("How it continues your text")), paragraph(said), tag("div", *cards, class_="cards")]


def _continuation(text: Language, item: dict[str, Any]) -> Markup:
    written = tag("p", tag("mark", phrase(item["prompt"])), phrase(str(item.get("text", ""))[:_LONGEST]))
    original = tag("p", text("In your text:"), " ", phrase(str(item.get("original", ""))), class_="note")
    return tag("blockquote", written, original, class_="card sample")


def _blanks(data: RunData) -> list[Markup]:
    blanks = [row for row in find(data.results, "yours", "blanks") or [] if row.get("words") and row.get("word")]
    if not blanks:
        return []
    text, places = data.language, [number(row, "place") or 0 for row in blanks]
    said = text(
        "Each of these sentences is yours, with one word taken out. The bars show which words the model expects at "
        "{blank}, and their probabilities.",
        blank=BLANK,
    )
    told = text(
        "Of {blanks} words taken out, {first} are the model's first guess and {five} are among its first five. No "
        "model can know them all: often several words fit.",
        blanks=len(blanks),
        first=sum(place == 1 for place in places),
        five=sum(1 <= place <= 5 for place in places),
    )
    cards = tag("div", *(_blank(text, row) for row in blanks), class_="cards")
    return [tag("h3", text("Which word is missing in your text?")), paragraph(said), cards, shows(text, told)]


def _blank(text: Language, row: dict[str, Any]) -> Markup:
    rows = [(word.get("word"), number(word, "model")) for word in row["words"]]
    word = row["word"]
    bars = single_bars([(name, share, probability(share)) for name, share in rows if name and share is not None], word)
    right = tag("span", text("right"), class_="mark right") if row.get("place") == 1 else None
    note = tag("p", mixed(text("In your text: 「{word}」", word=word)), right, class_="note")
    return tag("div", blank_question(str(row.get("text", ""))), bars, note, class_="card")
