"""Step 1 on the page: what was collected, and what was dropped.

Step 2 on the page: how text becomes tokens.
"""

from collections import Counter
from typing import Any

from tpullm.corpus.datacard_counts import REASONS
from tpullm.report.charts import share_bar
from tpullm.report.html import Markup, figure, mixed, paragraph, phrase, section, shows, table, tag
from tpullm.report.language import Language, count, percent
from tpullm.report.run_data import RunData, find, number

_TINTS = 5  # .t0 to .t4 in style.css


def tokenize(data: RunData) -> Markup | None:
    """Step 2: example texts as tokens, and the tokens of the corpus."""
    text, sources = data.language, find(data.manifests, "tokens", "sources") or {}
    if not data.splits and not sources:
        return None
    said = text(
        "A computer reads numbers, not letters. A token is a piece of text: a word, a part of a word or a single "
        "character. Each token has a number, its id. The tokenizer chose the pieces itself, by how often they occur in "
        "the collected text: a frequent word is one token, a rare one is spelled out in several."
    )
    return section("tokenize", text("Tokenize"), paragraph(said), *_pieces(data), *_counts(text, sources), number=2)


def _pieces(data: RunData) -> list[Markup]:
    if not data.splits:
        return []
    text, examples = data.language, [example(pieces) for pieces in data.splits]
    size = number(data.manifests, "tokenizer", "vocabulary_size") or data.model.vocabulary_size
    split = text(
        "The model reads the first sentence as 「{pieces}」: {count} tokens of a vocabulary of {vocabulary}.",
        pieces=" / ".join(piece for piece, _ in data.splits[0]),
        count=len(data.splits[0]),
        vocabulary=count(size),
    )
    exact = text("Joined together, the pieces are exactly the text. This holds for any text.")
    in_bytes = any(piece.startswith("<0x") for pieces in data.splits for piece, _ in pieces)
    why = text("A character too rare for a token of its own is written as its bytes, such as <0xE9>.")
    caption = text("Each colour is one token. Its id stands below it.")
    told = shows(text, split, why if in_bytes else "", exact)
    return [figure(tag("div", *examples, class_="examples"), caption), told]


def example(pieces: list[tuple[str, int]]) -> Markup:
    """A text as its tokens, each with its id; `pieces` are (text of the token, id)."""
    shown = [
        tag(
            "span",
            tag("span", phrase(piece.replace(" ", "\u2423").replace("\n", "\u21b5")), class_="text"),
            tag("span", token, class_="id"),
            class_=f"piece t{i % _TINTS}",
        )
        for i, (piece, token) in enumerate(pieces)
    ]
    return tag("div", *shown, class_="example")


def _counts(text: Language, sources: dict[str, dict]) -> list[Markup]:
    if not sources:
        return []
    header = (text("source"), text("training tokens"), text("held-out tokens"), text("bytes per token"))
    return [tag("h3", text("The corpus in tokens")), table(header, [_tokens(*item) for item in sources.items()])]


def _tokens(source: str, splits: dict) -> tuple[Markup, str, str, str]:
    def total(what: str) -> float:
        return sum(number(counts, what) or 0 for counts in splits.values())

    training, held_out = (number(splits, split, "tokens") or 0 for split in ("train", "held_out"))
    return phrase(source), count(training), count(held_out), f"{total('bytes') / max(total('tokens'), 1):.2f}"


MOST_ROWS = 20  # of sources, languages and licences; the data card has them all
_UNREAD = "unknown extension"  # the reason in corpus/sources.py for a file that it can't read; the extension follows


def collect(data: RunData) -> Markup | None:
    """Step 1: the data card."""
    text, rows = data.language, data.datacard.get("rows")
    if not rows:
        return None
    said = text(
        "A language model learns from text alone. The first step collects documents. It notes the source and the "
        "licence of each document, and drops documents that teach nothing. A few documents are held out: the model "
        "never trains on them. They show later whether the model learned the language or only memorised its texts."
    )
    sources: Counter[str] = Counter()
    for row in rows:
        sources[row["source"]] += row["characters"]
    bar = share_bar(list(sources.items()), text.compact)
    return section(
        "collect",
        text("Collect"),
        paragraph(said),
        figure(bar, text("Characters by source.")),
        table(_columns(text), _sources(text, rows), left=3),
        *_dropped(data),
        number=1,
    )


def _columns(text: Language) -> list[str]:
    where = [text("source"), text("language"), text("licence")]
    return [*where, text("documents"), text("held out"), text("characters"), text("share")]


def _source(row: dict[str, Any]) -> list[Any]:
    sizes = [count(row[key]) for key in ("documents", "held_out", "characters")]
    return [phrase(row["source"]), row["language"], row["licence"], *sizes, percent(row["share"])]


def _sources(text: Language, rows: list[dict[str, Any]]) -> list[list[Any]]:
    """The largest rows in the order of the data card, and one row for all others."""
    largest = sorted(range(len(rows)), key=lambda place: -rows[place]["characters"])
    shown, others = sorted(largest[:MOST_ROWS]), largest[MOST_ROWS:]
    lines = [_source(rows[place]) for place in shown]
    if others:
        keys = ("documents", "held_out", "characters", "share")
        summed = {key: sum(rows[place][key] for place in others) for key in keys}
        name = text("{number} more", number=count(len(others)))
        lines.append(_source({"source": name, "language": "", "licence": ""} | summed))
    return lines


def _dropped(data: RunData) -> list[Markup]:
    text = data.language
    reasons: Counter[str] = Counter()
    for counts in data.datacard.get("dropped", {}).values():
        reasons.update(counts)
    documents, characters = count(data.datacard["documents"]), text.compact(data.datacard["characters"])
    kept = text(
        "{documents} documents with {characters} characters were kept.", documents=documents, characters=characters
    )
    if not reasons:
        return [shows(text, kept, text("Nothing was dropped."))]
    (reason, most), total = reasons.most_common(1)[0], sum(reasons.values())
    dropped = text(
        "{documents} were dropped. The most frequent reason is “{reason}” ({most}).",
        documents=count(total),
        reason=_reason(text, reason),
        most=count(most),
    )
    header = (text("reason"), text("meaning"), text("documents"))
    rows = [(_reason(text, reason), _meaning(text, reason), count(times)) for reason, times in reasons.most_common()]
    title = tag("h3", text("What was dropped, and why"))
    return [title, table(header, rows, left=2), shows(text, kept, dropped)]


def _reason(text: Language, reason: str) -> str:
    """A reason in the page's language. The reason for a file of an unknown kind names its extension."""
    if reason.startswith(_UNREAD):
        return text("unknown extension {extension}", extension=reason.removeprefix(_UNREAD).strip())
    return text.known(reason)


def _meaning(text: Language, reason: str) -> Markup:
    unread = text("a file that this source does not read")
    return mixed(text.known(REASONS[reason]) if reason in REASONS else unread)
