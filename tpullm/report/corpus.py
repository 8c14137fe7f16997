"""Steps 1 and 2 on the page: what was collected, and how text becomes tokens."""

from collections import Counter

from tpullm.corpus.datacard import REASONS
from tpullm.report.charts import share_bar
from tpullm.report.html import Markup, figure, mixed, paragraph, phrase, section, shows, table, tag
from tpullm.report.inputs import RunData
from tpullm.report.units import compact, count, find, number, percent

_TINTS = 5  # .t0 to .t4 in style.css


def collect(data: RunData) -> Markup | None:
    """Step 1: the data card."""
    rows = data.datacard.get("rows")
    if not rows:
        return None
    return section(
        "collect",
        "Collect",
        paragraph(
            "A language model learns from text, and from nothing else. The first step gathers documents, notes where "
            "each comes from and which licence allows its use, and drops what would teach nothing. A few documents are "
            "held out: the model never trains on them, so they tell later whether it learned or only memorised."
        ),
        figure(share_bar([(row["source"], row["characters"]) for row in rows], compact), "Characters by source."),
        table(
            ("source", "language", "licence", "documents", "held out", "characters", "share"),
            [
                (
                    phrase(row["source"]),
                    row["language"],
                    row["licence"],
                    count(row["documents"]),
                    count(row["held_out"]),
                    count(row["characters"]),
                    percent(row["share"]),
                )
                for row in rows
            ],
            left=3,
        ),
        *_dropped(data),
        number=1,
    )


def _dropped(data: RunData) -> list[Markup]:
    reasons: Counter[str] = Counter()
    for counts in data.datacard.get("dropped", {}).values():
        reasons.update(counts)
    documents, characters = data.datacard["documents"], data.datacard["characters"]
    kept = f"{count(documents)} documents with {compact(characters)} characters were kept"
    if not reasons:
        return [shows(f"{kept}; nothing was dropped.")]
    rows = [
        (reason, mixed(REASONS.get(reason, "a file that this source does not read")), count(documents))
        for reason, documents in reasons.most_common()
    ]
    (reason, most), total = reasons.most_common(1)[0], sum(reasons.values())
    return [
        tag("h3", "What was dropped, and why"),
        table(("reason", "meaning", "documents"), rows, left=2),
        shows(f"{kept} and {count(total)} dropped, most often as “{reason}” ({count(most)})."),
    ]


def tokenize(data: RunData) -> Markup | None:
    """Step 2: example texts in pieces, and how many tokens the corpus became."""
    sources = find(data.manifests, "tokens", "sources") or {}
    if not data.splits and not sources:
        return None
    return section(
        "tokenize",
        "Tokenize",
        paragraph(
            "A computer reads numbers, not letters. A token is a piece of text, such as a word, a part of one or a "
            "single character, and each has a number, its id. The tokenizer chose its pieces by itself, from how often "
            "they occur in the collected text: what is frequent becomes one token, what is rare is spelled out."
        ),
        *_pieces(data),
        *_counts(sources),
        number=2,
    )


def _pieces(data: RunData) -> list[Markup]:
    if not data.splits:
        return []
    examples = [example(pieces) for pieces in data.splits]
    first = " / ".join(piece for piece, _ in data.splits[0])
    size = number(data.manifests, "tokenizer", "vocabulary_size") or data.model.vocabulary_size
    return [
        figure(tag("div", *examples, class_="examples"), "Each colour is one token; below it stands its id."),
        shows(
            f"The first sentence is 「{first}」 to the model: {len(data.splits[0])} tokens out of a vocabulary of "
            f"{count(size)}. Joining the pieces gives back exactly the text, for every text that there is."
        ),
    ]


def example(pieces: list[tuple[str, int]]) -> Markup:
    """A text as its tokens: what each shows, and its id."""
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


def _counts(sources: dict) -> list[Markup]:
    if not sources:
        return []
    header = ("source", "training tokens", "held-out tokens", "bytes per token")
    return [tag("h3", "The corpus in tokens"), table(header, [_tokens(*item) for item in sources.items()])]


def _tokens(source: str, splits: dict) -> tuple[Markup, str, str, str]:
    def total(what: str) -> float:
        return sum(number(counts, what) or 0 for counts in splits.values())

    training, held_out = (number(splits, split, "tokens") or 0 for split in ("train", "held_out"))
    return phrase(source), count(training), count(held_out), f"{total('bytes') / max(total('tokens'), 1):.2f}"
