"""Step 2 on the page: how text becomes tokens."""

from tpullm.report.html import Markup, figure, paragraph, phrase, section, shows, table, tag
from tpullm.report.language import Language
from tpullm.report.run_data import RunData, find, number
from tpullm.report.units import count

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
