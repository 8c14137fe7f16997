"""What the model learned of the user's own text, on the page; there only if the run was given some."""

from typing import Any

from tpullm.report.charts import single_bars
from tpullm.report.html import Markup, figure, mixed, paragraph, phrase, section, shows, tag
from tpullm.report.inputs import RunData
from tpullm.report.language import Language
from tpullm.report.units import count, find, number, percent, probability

BLANK = "【?】"
_BY_HEART = 10  # times that a text is read, above which the page says so
_LONGEST = 240  # characters of what the model wrote


def yours(data: RunData) -> Markup | None:
    """How the model goes on with the text, which words it expects in it, and how well it predicts it."""
    if not data.results.get("yours"):
        return None
    text = data.language
    said = text(
        "This is what the model learned of the text that you gave it. Everything here was measured on the part of your "
        "text that was held out: the model has never read it."
    )
    parts = [*_compressed(data), *_continuations(data), *_blanks(data)]
    return section("yours", text("Your own text"), paragraph(said), *parts)


def _compressed(data: RunData) -> list[Markup]:
    """Bits a byte of the model beside those of a compressor."""
    text, compressor = data.language, find(data.results, "yours", "compressor")
    model, packed = number(data.results, "bits_per_byte", "yours"), number(compressor, "bits_per_byte")
    if not model or not packed:
        return []
    rows = [(text("the model"), model, f"{model:.3f}"), (str(find(compressor, "name") or "?"), packed, f"{packed:.3f}")]
    caption = text("Bits for each byte of your held-out text. Less is better; 8 is the text as it is.")
    share = percent(abs(1 - model / packed))
    read = text("Both had read the rest of your text before.")
    if model < packed:
        told = text("The model needs {share} less than the compressor: it predicts your text better.", share=share)
    else:
        told = text(
            "The model needs {share} more than the compressor, which looks up whole passages that repeat. More text, "
            "more steps or a larger model narrow the gap.",
            share=share,
        )
    bars = single_bars(rows, text("the model"))
    title = tag("h3", text("How well it predicts your text"))
    return [title, tag("div", figure(bars, caption), class_="narrow"), shows(text, told, read, _by_heart(data))]


def _by_heart(data: RunData) -> str:
    """That a small text was read very often, if it was."""
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
        "The words in colour are the beginning of a held-out document. The model wrote what follows. Below stands how "
        "the document really goes on: the model can't know that, but it should sound alike."
    )
    cards = [_continuation(text, item) for item in found]
    return [tag("h3", text("How it goes on with your text")), paragraph(said), tag("div", *cards, class_="cards")]


def _continuation(text: Language, item: dict[str, Any]) -> Markup:
    written = tag("p", tag("mark", phrase(item["prompt"])), phrase(str(item.get("text", ""))[:_LONGEST]))
    original = tag("p", text("In your text:"), " ", phrase(str(item.get("original", ""))), class_="note")
    return tag("blockquote", written, original, class_="card sample")


def _blanks(data: RunData) -> list[Markup]:
    blanks = [row for row in find(data.results, "yours", "blanks") or [] if row.get("words")]
    if not blanks:
        return []
    text, places = data.language, [number(row, "place") or 0 for row in blanks]
    said = text(
        "One word was taken out of each of these sentences of yours. The bars show the words that the model expects at "
        "{blank}, by their probability.",
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
    before, _, after = str(row.get("text", "")).partition(BLANK)
    question = tag("p", phrase(before), tag("mark", BLANK), phrase(after), class_="question")
    rows = [(str(word.get("word", "?")), number(word, "model") or 0.0) for word in row["words"]]
    word = str(row.get("word", ""))
    bars = single_bars([(name, share, probability(share)) for name, share in rows], word)
    right = tag("span", text("right"), class_="mark right") if row.get("place") == 1 else None
    note = tag("p", mixed(text("In your text: 「{word}」", word=word)), right, class_="note")
    return tag("div", question, bars, note, class_="card")
