"""The data card adds up, and its page says of each source what it is, what was dropped and what was not read."""

from pathlib import Path

import pytest

from tpullm.corpus import datacard
from tpullm.corpus.datacard import Counts
from tpullm.corpus.document_files import APART, BEYOND, EXACT, USED
from tpullm.corpus.files.source_files import File, Found
from tpullm.recipe.schema import CorpusConfig, Recipe, Source

CONFIG = CorpusConfig(held_out_fraction=0.1)
SOURCES = [
    Source("news", "text", "in", licence="CC0-1.0"),
    Source("books", "text", "in", licence="PD|old"),
    Source("mine", "text", "in", licence="CC0-1.0"),
    Source("web", "tokens", "in", licence="ODC-By-1.0"),
]
ROWS = [
    ["news", "ja", "CC0-1.0", USED, 3, 3000],
    ["news", "ja", "CC0-1.0", APART, 1, 1000],
    ["news", "ja", "CC0-1.0", EXACT, 5, 5000],
    ["news", "ja", "CC0-1.0", BEYOND, 9, 9000],
    ["news", "en", "CC0-1.0", USED, 2, 1000],
    ["books", "en", "PD|old", USED, 1, 4000],
    ["mine", "ja", "CC0-1.0", USED, 1, 1000],
]
EXAMPLE = {"hash": "", "language": "ja", "licence": "CC0-1.0", "file": "a.txt", "record": "line 2", "url": ""}


def counted() -> Counts:
    counts = Counts()
    example = EXAMPLE | {"beginning": "a `short`\n\ntext"}
    summary = {"dropped": [["too short", "ja", "CC0-1.0", 1200]], "examples": {"too short": [example] * 10}}
    counts.add_part("news", summary | {"encodings": {}, "replaced": 1200})
    counts.add_part("news", summary | {"dropped": [["empty", "", "CC0-1.0", 2]], "encodings": {}, "replaced": 3})
    counts.add_part("books", {"dropped": [], "examples": {}, "encodings": {"EUC-JP": 1500}, "replaced": 0})
    counts.add_files("mine", {"x (.pdf)": NAMES})
    copy = EXAMPLE | {"source": "news", "mark": EXACT, "url": "https://example.org/a", "beginning": ""}
    counts.add_group({"rows": ROWS, "examples": [copy]}, few=set())
    return counts


NAMES = [f"{number}.pdf" for number in range(25)]


def found(*sizes, there=0, skipped=None):
    files = [File(Path(f"in/{number}.txt"), "text", size) for number, size in enumerate(sizes)]
    return Found(files, skipped or {}, max(there, len(sizes)), sum(sizes) + (500 if there else 0))


@pytest.fixture
def card():
    files = {"news": found(5), "books": found(100, 200, there=40), "mine": found(7, skipped={"x (.pdf)": NAMES})}
    files["web"] = found()
    return datacard.card_numbers(SOURCES, counted(), files, Recipe(seed=7, corpus=CONFIG))


def test_rows_are_by_source_and_language_and_add_up(card):
    rows = {row["source"] + " " + row["language"]: list(row.values())[3:] for row in card["rows"]}
    assert rows == {
        "news en": [2, 1000, 0.1, 2, 0],  # documents, characters, their share, for training, held out
        "news ja": [4, 4000, 0.4, 3, 1],
        "books en": [1, 4000, 0.4, 1, 0],
        "mine ja": [1, 1000, 0.1, 1, 0],
    }
    assert card["training_characters"] == {"news": 4000, "books": 4000, "mine": 1000, "web": 0}
    assert card["by_licence"] == pytest.approx({"CC0-1.0": 0.6, "PD|old": 0.4})
    assert list(card["by_language"]) == ["en", "ja"], "the largest first"
    assert (card["documents"], card["characters"], card["seed"], card["held_out_fraction"]) == (8, 10_000, 7, 0.1)
    # What was dropped is counted by language and licence, with ten examples.
    assert [list(row.values()) for row in card["dropped_rows"]] == [
        ["news", "empty", "", "CC0-1.0", 2],
        ["news", "exact duplicate", "ja", "CC0-1.0", 5],
        ["news", "too short", "ja", "CC0-1.0", 1200],
        ["mine", "x (.pdf)", "", "", 25],
    ]
    examples = card["dropped_examples"]["news"]
    assert {reason: len(found) for reason, found in examples.items()} == {"exact duplicate": 1, "too short": 10}
    assert set(examples["exact duplicate"][0]) == {*EXAMPLE, "beginning"}


def test_the_documents_of_a_few_count_as_the_stretches_that_are_made_of_them():
    counts = Counts()
    counts.add_group({"rows": ROWS, "examples": []}, few={"news"})
    assert counts.total("news", "documents") == 0 and counts.reasons("news") == {"exact duplicate": 5}
    counts.add("news", "ja", "CC0-1.0", APART, 1, 200)
    assert counts.total("news", "training") == 0 and counts.total("news", "held_out") == 1


def test_the_page_says_all_of_it(card):
    page = datacard.markdown(card, CONFIG)
    for line in (
        "8 documents with 10,000 characters. Anything trained on them should name their sources and licences",
        "| source | licence | language | documents | characters | share | training | held out |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| news | CC0-1.0 | ja | 4 | 4,000 | 40.0% | 3 | 1 |",
        "| books | PD\\|old | en | 1 | 4,000 | 40.0% | 1 | 0 |",
        "| PD\\|old | 40.0% |",
        "| news | too short | ja | CC0-1.0 | 1,200 | shorter than `corpus.minimum_characters` |",
        "| mine | x (.pdf) |  |  | 25 | a file that this source does not read |",
        "Of news, too short:\n\n- a.txt line 2: `a 'short' text`\n",
        "- https://example.org/a: no text",
        "- books: 1,500 read as EUC-JP.",
        "## Tokens of others\n\n- web: ODC-By-1.0. They are read as they are; `tokens/manifest.json` counts them.",
        "## Personal data\n\n- news: 1,203 pieces were replaced.\n\n##",
        "- books: 300 of 800 bytes, from 2 of 40 files, chosen by the hash of their names: `0.txt`, `1.txt`.",
        f"- mine, x (.pdf): {', '.join(f'`{name}`' for name in NAMES[:20])} and 5 more.",
        "SHA-256 in the lowest 10.0% of its range",
        "A source of fewer than 20 documents is cut into stretches first",
    ):
        assert line in page
    assert page.startswith("# Data card\n\n8 ") and page.endswith(".\n")
    # A corpus of which nothing was left out has no word of it.
    counts = Counts()
    counts.add_group({"rows": [ROWS[0]], "examples": []}, few=set())
    files = {name: found(5) for name in ("news", "books", "mine", "web")}
    page = datacard.markdown(datacard.card_numbers(SOURCES[:3], counts, files, Recipe()), CONFIG)
    assert "## What was dropped, and why\n\nNothing.\n\n## How it was made" in page
