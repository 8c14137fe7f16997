"""How true the model is: tenki's probabilities are known exactly, so the model's can be held against them."""

from typing import Any

from tpullm.report.charts import paired_bars
from tpullm.report.html import Markup, join, paragraph, phrase, section, shows, table, tag
from tpullm.report.inputs import RunData
from tpullm.report.units import count, find, number, percent

BLANK = "【?】"
_WORDS = 6  # of one blank; the others are added up
_LEAST = 0.005  # probability of the others together, below which they are not worth a line
_WRONG = 6  # of the swaps, shown at most
_TOLD_FIRST = ("リンゴ", "本")


def truth(data: RunData) -> Markup | None:
    """The gap to the entropy, the blanks, the swapped objects."""
    parts = [*_gap(data), *_blanks(data), *_swaps(data)]
    if not parts:
        return None
    return section(
        "truth",
        "How true it is",
        paragraph(
            "Of a real corpus nobody knows the true probabilities. tenki is different: it is written by a small "
            "grammar of everyday Japanese whose every probability is known. So this page can say not only how good the "
            "model is, but how far it is from perfect."
        ),
        *parts,
    )


def gap_to_truth(data: RunData) -> float | None:
    """Held-out loss on tenki minus its entropy, nats a token."""
    loss, entropy = (number(data.results, "tenki", f"{name}_nats_per_token") for name in ("loss", "entropy"))
    given = number(data.results, "tenki", "gap_nats_per_token")
    return given if given is not None or loss is None or entropy is None else loss - entropy


def _gap(data: RunData) -> list[Markup]:
    gap = gap_to_truth(data)
    loss, entropy = (number(data.results, "tenki", f"{name}_nats_per_token") for name in ("loss", "entropy"))
    if gap is None or loss is None or entropy is None:
        return []
    tokens = number(data.results, "tenki", "tokens")
    measured = f" Measured on {count(tokens)} held-out tokens." if tokens else ""
    terms = (("the model", f"{loss:.3f}", ""), ("the truth", f"{entropy:.3f}", "−"), ("the gap", f"{gap:.3f}", "="))
    sum_ = [
        tag(
            "div", tag("span", sign, class_="sign") if sign else None, tag("b", value), tag("span", name, class_="name")
        )
        for name, value, sign in terms
    ]
    return [
        tag("div", *sum_, class_="sum"),
        paragraph(f"Surprise in nats a token.{measured}", class_="note"),
        shows(
            "The truth is not 0: what somebody eats tomorrow can't be known, and even a perfect model is surprised. "
            "Only the gap is what this model has still to learn."
        ),
    ]


def _blanks(data: RunData) -> list[Markup]:
    blanks = [row for row in find(data.results, "blank", "table") or [] if row.get("words")]
    if not blanks:
        return []
    mean = number(data.results, "blank", "mean_total_variation")
    said = f" Over these texts it is {mean:.3f} on average." if mean is not None else ""
    kinds = (("c0", "the model"), ("truth", "the truth"))
    swatches = [tag("span", tag("i", class_=f"swatch {kind}"), name) for kind, name in kinds]
    return [
        tag("h3", "Which word is missing?"),
        paragraph(
            f"The model gives every word that may stand at {BLANK} a probability, from the text on both sides; the "
            "grammar says what it truly is."
        ),
        tag("div", *swatches, class_="legend"),
        tag("div", *(_blank(row) for row in blanks), class_="cards"),
        shows(
            "Two bars of one length mean that the model knows this world. Total variation is the share of probability "
            f"that stands at the wrong word: 0 is perfect, 1 is all of it.{said}"
        ),
    ]


def _blank(row: dict[str, Any]) -> Markup:
    words = [
        (str(word.get("word", "?")), number(word, "model") or 0.0, number(word, "truth") or 0.0)
        for word in row["words"]
    ]
    words.sort(key=lambda word: -max(word[1:]))
    words = words[:_WORDS]
    model, true = (max(0.0, 1.0 - sum(word[column] for word in words)) for column in (1, 2))
    rest = ("other words", model, true) if max(model, true) >= _LEAST else None
    before, _, after = str(row.get("text", "")).partition(BLANK)
    text = tag("p", phrase(before), tag("mark", BLANK), phrase(after), class_="question", lang="ja")
    distance = number(row, "total_variation")
    note = tag("p", "total variation ", tag("b", f"{distance:.3f}"), class_="note") if distance is not None else None
    return tag("div", text, paired_bars(words, rest), note, class_="card")


def _swaps(data: RunData) -> list[Markup]:
    accuracy, pairs = number(data.results, "swaps", "accuracy"), number(data.results, "swaps", "pairs")
    rows = _telling(find(data.results, "swaps", "table") or [])
    if accuracy is None and not rows:
        return []
    said = []
    if accuracy is not None:
        over = f" Over all {count(pairs)} pairs of objects" if pairs else " Over all pairs of objects"
        said = [
            shows(f"One word decides another.{over} that take different verbs, this holds for {percent(accuracy)}.")
        ]
    header = ("text so far", "likeliest next", "probability")
    return [
        tag("h3", "If the word were another"),
        paragraph(
            "Put 「本」 (a book) where 「リンゴ」 (an apple) was, and 「食べる」 (to eat) must become 「読む」 (to "
            "read): the model was never told this rule."
        ),
        tag("div", table(header, [_swap(row) for row in rows], left=2), class_="narrow") if rows else None,
        *said,
    ]


def _telling(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object for every verb, リンゴ and 本 first, and what the model got wrong."""
    ordered = sorted(rows, key=lambda row: row.get("object") not in _TOLD_FIRST)
    chosen: dict[Any, dict[str, Any]] = {}
    for row in ordered:
        chosen.setdefault(row.get("verb"), row)
    wrong = [row for row in rows if not row.get("right")]
    return list({row.get("prefix"): row for row in [*chosen.values(), *wrong[:_WRONG]]}.values())


def _swap(row: dict[str, Any]) -> tuple[Markup, Markup, str]:
    prefix, thing, verb = (str(row.get(key, "")) for key in ("prefix", "object", "verb"))
    before, found, after = prefix.partition(thing) if thing else (prefix, "", "")
    text = join([phrase(before), tag("mark", phrase(found)) if found else None, phrase(after)])
    likelihood = number(row, "probability")
    if row.get("right"):
        mark = tag("span", "right", class_="mark right")
    else:
        mark = tag("span", "should be ", phrase(verb), class_="mark wrong")
    said = join([phrase(str(row.get("model_verb", ""))), mark])
    return text, said, "" if likelihood is None else percent(likelihood)
