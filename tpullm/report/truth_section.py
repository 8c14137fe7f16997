"""How true the model is: the probabilities of tenki are known exactly, so the model's can be compared with them."""

from typing import Any

from tpullm.report.charts import model_and_truth, word_bars
from tpullm.report.html import BLANK, Markup, blank_question, join, mixed, paragraph, phrase, section, shows, table, tag
from tpullm.report.language import Language
from tpullm.report.run_data import RunData, find, number
from tpullm.report.units import count, percent, three_decimals

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
