"""How true the model is: the probabilities of tenki are known exactly, so the model's can be compared with them.

What the model learned from the user's own text. The section exists only if the run was given some.
"""

from typing import Any

from tpullm.report.charts import model_and_truth, single_bars, word_bars
from tpullm.report.html import (
    BLANK,
    Markup,
    blank_question,
    figure,
    join,
    mixed,
    paragraph,
    phrase,
    section,
    shows,
    table,
    tag,
)
from tpullm.report.language import Language, count, percent, probability, three_decimals
from tpullm.report.run_data import RunData, find, number

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
    parts = [*_compressed(data), *_continuations(data), *_own_blanks(data)]
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


def _own_blanks(data: RunData) -> list[Markup]:
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
    cards = tag("div", *(_own_blank(text, row) for row in blanks), class_="cards")
    return [tag("h3", text("Which word is missing in your text?")), paragraph(said), cards, shows(text, told)]


def _own_blank(text: Language, row: dict[str, Any]) -> Markup:
    rows = [(word.get("word"), number(word, "model")) for word in row["words"]]
    word = row["word"]
    bars = single_bars([(name, share, probability(share)) for name, share in rows if name and share is not None], word)
    right = tag("span", text("right"), class_="mark right") if row.get("place") == 1 else None
    note = tag("p", mixed(text("In your text: 「{word}」", word=word)), right, class_="note")
    return tag("div", blank_question(str(row.get("text", ""))), bars, note, class_="card")


_WRONG_SWAPS = 6  # that are shown
_SHOWN_FIRST = ("リンゴ", "本")


def truth(data: RunData) -> Markup | None:
    """The gap to the entropy, the blanks, the swapped objects."""
    text, parts = data.language, [*_gap(data), *_blanks(data), *_swaps(data)]
    if not parts:
        return None
    said = text(
        "Nobody knows the true probabilities of a real text. The source tenki is different: a small grammar of "
        "everyday Japanese writes it, and every probability of this grammar is known. So this page can say how good "
        "the model is, and also how far it is from perfect."
    )
    return section("truth", text("How true it is"), paragraph(said), *parts)


def gap_to_truth(data: RunData) -> float | None:
    """The held-out loss on tenki minus its entropy, in nats a token; None if either is missing."""
    loss, entropy = (number(data.results, "tenki", f"{name}_nats_per_token") for name in ("loss", "entropy"))
    given = number(data.results, "tenki", "gap_nats_per_token")
    return given if given is not None or loss is None or entropy is None else loss - entropy


def _gap(data: RunData) -> list[Markup]:
    text, gap = data.language, gap_to_truth(data)
    loss, entropy = (number(data.results, "tenki", f"{name}_nats_per_token") for name in ("loss", "entropy"))
    if gap is None or loss is None or entropy is None:
        return []
    terms = ((text("the model"), loss, None), (text("the truth"), entropy, "−"), (text("the gap"), gap, "="))
    tokens = number(data.results, "tenki", "tokens")
    measured = text("Measured on {tokens} held-out tokens.", tokens=count(tokens)) if tokens else ""
    never = text(
        "The truth is not 0. What somebody eats tomorrow can't be known, so even a perfect model is surprised. Only "
        "the gap is left for this model to learn."
    )
    return [
        tag("div", *(_term(*term) for term in terms), class_="sum"),
        paragraph(text.join(text("Surprise in nats a token."), measured), class_="note"),
        shows(text, never),
    ]


def _term(name: str, value: float, sign: str | None) -> Markup:
    before = tag("span", sign, class_="sign") if sign else None
    return tag("div", before, tag("b", three_decimals(value)), tag("span", name, class_="name"))


def _blanks(data: RunData) -> list[Markup]:
    blanks = [row for row in find(data.results, "blank", "table") or [] if row.get("words")]
    if not blanks:
        return []
    text, mean = data.language, number(data.results, "blank", "mean_total_variation")
    asked = text(
        "The model reads the text on both sides of {blank} and gives a probability to every word that fits there. "
        "The grammar says what this probability truly is.",
        blank=BLANK,
    )
    told = text(
        "Two bars of the same length mean that the model has learned the probability of the word. Total variation is "
        "the share of probability that is on the wrong words: 0 is perfect, 1 is entirely wrong."
    )
    average = "" if mean is None else text("Over these texts it is {mean} on average.", mean=three_decimals(mean))
    return [
        tag("h3", text("Which word is missing?")),
        paragraph(asked),
        model_and_truth(text("the model"), text("the truth")),
        tag("div", *(_blank(text, row) for row in blanks), class_="cards"),
        shows(text, told, average),
    ]


def _blank(text: Language, row: dict[str, Any]) -> Markup:
    words = [(word.get("word"), number(word, "model"), number(word, "truth")) for word in row["words"]]
    words = [word for word in words if None not in word]
    note, distance = None, number(row, "total_variation")
    if distance is not None:
        note = tag("p", text("total variation"), " ", tag("b", three_decimals(distance)), class_="note")
    question = blank_question(str(row.get("text", "")))
    return tag("div", question, word_bars(words, text("other words")), note, class_="card")


def _swaps(data: RunData) -> list[Markup]:
    text, swaps = data.language, data.results.get("swaps")
    rows, accuracy = _chosen_swaps(find(swaps, "table") or []), number(swaps, "accuracy")
    if accuracy is None and not rows:
        return []
    asked = text(
        "If 「本」 (a book) takes the place of 「リンゴ」 (an apple), then 「食べる」 (to eat) must become 「読む」 "
        "(to read). Nobody told the model this rule."
    )
    header = (text("text so far"), text("likeliest next"), text("probability"))
    shown = tag("div", table(header, [_swap(text, row) for row in rows], left=2), class_="narrow") if rows else None
    told = None if accuracy is None else shows(text, text("One word decides another."), _fitting(data, accuracy))
    return [part for part in (tag("h3", text("If one word changes")), paragraph(asked), shown, told) if part]


def _fitting(data: RunData, accuracy: float) -> str:
    text, pairs = data.language, number(data.results, "swaps", "pairs")
    if not pairs:
        return text(
            "The verb fits in {share} of all pairs of objects that take different verbs.", share=percent(accuracy)
        )
    return text(
        "The verb fits in {share} of all {pairs} pairs of objects that take different verbs.",
        share=percent(accuracy),
        pairs=count(pairs),
    )


def _chosen_swaps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object for every verb, リンゴ and 本 first, and some that the model got wrong."""
    rows = [row for row in rows if row.get("prefix") and row.get("verb")]
    ordered = sorted(rows, key=lambda row: row.get("object") not in _SHOWN_FIRST)
    chosen: dict[Any, dict[str, Any]] = {}
    for row in ordered:
        chosen.setdefault(row.get("verb"), row)
    wrong = [row for row in rows if not row.get("right")]
    return list({row.get("prefix"): row for row in [*chosen.values(), *wrong[:_WRONG_SWAPS]]}.values())


def _swap(text: Language, row: dict[str, Any]) -> tuple[Markup, Markup, str]:
    prefix, thing, verb = (str(row.get(key, "")) for key in ("prefix", "object", "verb"))
    before, found, after = prefix.partition(thing) if thing else (prefix, "", "")
    so_far = join([phrase(before), tag("mark", phrase(found)) if found else None, phrase(after)])
    likelihood = number(row, "probability")
    if row.get("right"):
        mark = tag("span", text("right"), class_="mark right")
    else:
        mark = tag("span", mixed(text("「{verb}」 would be right", verb=verb)), class_="mark wrong")
    said = join([phrase(str(row.get("model_verb", ""))), mark])
    return so_far, said, "" if likelihood is None else percent(likelihood)
