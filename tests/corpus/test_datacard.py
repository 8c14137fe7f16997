"""The data card adds up, and its page says of each source what it is, what was dropped and what was not read."""

from collections import Counter
from pathlib import Path

import pytest

from tpullm.corpus import datacard, datacard_markdown
from tpullm.corpus.source_files import File, Found
from tpullm.recipe.schema import CorpusConfig, Source

CONFIG = CorpusConfig(held_out_fraction=0.1)
SOURCES = [
    Source("news", "text", "in", licence="CC0-1.0"),
    Source("books", "text", "in", licence="PD|old"),
    Source("mine", "text", "in", licence="CC0-1.0"),
]
COUNTS = Counter(
    {
        ("news", "ja", "train", "documents"): 3,
        ("news", "ja", "train", "characters"): 3000,
        ("news", "ja", "held_out", "documents"): 1,
        ("news", "ja", "held_out", "characters"): 1000,
        ("news", "en", "train", "documents"): 2,
        ("news", "en", "train", "characters"): 1000,
        ("books", "en", "train", "documents"): 1,
        ("books", "en", "train", "characters"): 4000,
        ("mine", "ja", "train", "documents"): 1,
        ("mine", "ja", "train", "characters"): 1000,
    }
)
NAMES = [f"{number}.pdf" for number in range(25)]


def found(*sizes, there=0, skipped=None):
    files = [File(Path(f"in/{number}.txt"), "text", size) for number, size in enumerate(sizes)]
    return Found(files, skipped or {}, max(there, len(sizes)), sum(sizes) + (500 if there else 0))


@pytest.fixture
def card():
    dropped = {"news": Counter({"too short": 1200, "empty": 2}), "books": Counter(), "mine": Counter({"x (.pdf)": 25})}
    files = {"news": found(5), "books": found(100, 200, there=40), "mine": found(7, skipped={"x (.pdf)": NAMES})}
    encodings = {"news": Counter(), "books": Counter({"EUC-JP": 1500}), "mine": Counter()}
    return datacard.numbers(SOURCES, COUNTS, dropped, files, encodings, CONFIG, 7)


def test_rows_are_by_source_and_language_and_add_up(card):
    rows = [
        (row["source"], row["language"], row["documents"], row["training"], row["held_out"]) for row in card["rows"]
    ]
    assert rows == [("news", "en", 2, 2, 0), ("news", "ja", 4, 3, 1), ("books", "en", 1, 1, 0), ("mine", "ja", 1, 1, 0)]
    assert [row["characters"] for row in card["rows"]] == [1000, 4000, 4000, 1000]
    assert [row["share"] for row in card["rows"]] == [0.1, 0.4, 0.4, 0.1]
    assert (card["documents"], card["characters"], card["seed"], card["held_out_fraction"]) == (8, 10_000, 7, 0.1)


def test_shares_are_by_licence_and_language_the_largest_first(card):
    assert card["by_licence"] == pytest.approx({"CC0-1.0": 0.6, "PD|old": 0.4})
    assert list(card["by_licence"]) == ["CC0-1.0", "PD|old"]
    assert card["by_language"] == pytest.approx({"ja": 0.5, "en": 0.5})


def test_what_was_not_read_is_told_with_twenty_names_at_most(card):
    part = {"bytes": 300, "of_bytes": 800, "files": 2, "of_files": 40, "names": ["0.txt", "1.txt"]}
    assert card["read_in_part"] == {"books": part}
    assert card["skipped_files"] == {"mine": {"x (.pdf)": NAMES[:20]}}
    assert card["encodings"] == {"books": {"EUC-JP": 1500}}
    assert card["dropped"] == {"news": {"empty": 2, "too short": 1200}, "books": {}, "mine": {"x (.pdf)": 25}}


def test_the_page_says_all_of_it(card):
    page = datacard_markdown.markdown(card, CONFIG)
    for line in (
        "8 documents with 10,000 characters. Anything trained on them should name their sources and licences",
        "| source | licence | language | documents | characters | share | training | held out |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| news | CC0-1.0 | ja | 4 | 4,000 | 40.0% | 3 | 1 |",
        "| books | PD\\|old | en | 1 | 4,000 | 40.0% | 1 | 0 |",
        "| CC0-1.0 | 60.0% |",
        "| news | too short | 1,200 | shorter than `corpus.minimum_characters` |",
        "| mine | x (.pdf) | 25 | a file that this source does not read |",
        "- books: 1,500 read as EUC-JP.",
        "- books: 300 of 800 bytes, from 2 of 40 files, chosen by the hash of their names: `0.txt`, `1.txt`.",
        f"- mine, x (.pdf): {', '.join(f'`{name}`' for name in NAMES[:20])} and 5 more.",
        "SHA-256 in the lowest 10.0% of its range",
        "A source of fewer than 20 documents is cut into stretches first",
    ):
        assert line in page
    assert page.startswith("# Data card\n\n8 ") and page.endswith(".\n")


def test_a_corpus_of_which_nothing_was_left_out_has_no_word_of_it():
    nothing = dict.fromkeys(("news", "books", "mine"), Counter())
    files = {name: found(5) for name in nothing}
    page = datacard_markdown.markdown(datacard.numbers(SOURCES, COUNTS, nothing, files, nothing, CONFIG, 0), CONFIG)
    assert "## What was dropped, and why\n\nNothing.\n\n## How it was made" in page
