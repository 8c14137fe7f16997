"""The page of a comparison: whole in both languages, whatever is in the questions, and with no network."""

import pytest

from tests.report.test_page import Outline
from tpullm.report.comparison_page import comparison_page
from tpullm.report.language import named

HOSTILE = "<script>alert(1)</script>\"'&"
DELTA = {"value": 0.25, "interval": [0.125, 0.375], "differ": 9, "word": "better"}
WORSE = DELTA | {"value": -0.5, "interval": [-0.75, -0.25], "word": "worse"}
ALIKE = DELTA | {"word": "can't be told apart"}
KINDS = {"both": 5, "only_first": 2, "only_other": 7, "neither": 6}


def figure(*deltas, better="higher"):
    scores = [{"value": value, "interval": [0.0, 1.0]} for value in (0.5, 0.75, 0.25)]
    return {"count": 1234, "better": better, "scores": scores, "deltas": list(deltas)}


def example(kind, measure):
    shown = [{"question": f"{HOSTILE}{'長' * 500}", "answers": ["a", HOSTILE], "said": [HOSTILE, ""]}]
    return {"model": f"two{HOSTILE}", "measure": measure, "kind": kind, "count": 2345, "shown": shown}


BINS = [{"count": 3, "probability": 0.55, "share": 0.4}, {"count": 5, "probability": 0.9, "share": 0.8}]
CALIBRATION = [{"count": 8, "error": error, "bins": BINS} for error in (0.111, 0.222, 0.333)]
OWN = {
    "version": "v",
    "settings": {"shots": 1},
    "prompt": HOSTILE,
    "chance": 0.25,
    "read_before": [{"looked_for": True, "asked": 20, "found": 3}, *[{"looked_for": False}] * 2],
    "figures": {
        "per byte": figure(DELTA, WORSE) | {"agreement": [KINDS, KINDS], "share": True},
        "f1": figure(ALIKE, ALIKE) | {"share": True},
    },
    "examples": [example("only_first", "written"), example("only_other", "likelihood")],
    "calibration": CALIBRATION,
}
F1 = figure({"value": -2.0, "interval": None, "word": ""}, ALIKE)
OF_HARNESS = {"version": "1", "settings": {}, "figures": {"f1": F1}}
LOSS = figure(DELTA, WORSE, better="lower")
TEXT = {"version": "v", "documents": 9, "bytes": 900, "figure": LOSS}
PLACES = [{"from": start, "to": end, "bytes": 1, "figure": LOSS} for start, end in ((0, 256), (16384, None))]
TEXTS = {"all": LOSS, "by_text": [{"name": "a"} | TEXT, {"name": HOSTILE} | TEXT], "by_place": PLACES}
RESULTS = {
    "command": f"tpullm compare {HOSTILE}",
    "models": [
        {"label": label, "hash": "ab" * 32, "parameters": 1_234_567, "vocabulary": 640, "context": 128}
        for label in ("one", f"two{HOSTILE}", "three")
    ],
    "settings": {"seed": 0},
    "program": {"tpullm": "1"},
    "tasks": {HOSTILE: OWN, "harness": OF_HARNESS},
    "texts": TEXTS,
}


@pytest.mark.parametrize("language", ["en", "ja"])
def test_all_of_it_is_there_and_nothing_is_run_or_loaded(language):
    html = comparison_page(RESULTS, named(language))
    page = Outline(html)
    assert "<script" not in html and page.loaded == []
    assert page.ids == ["models", "tasks", "texts", "again"] == [link[1:] for link in page.links]
    assert page.text.count(HOSTILE) > 10 and "長" * 270 in page.text and "長" * 301 not in page.text
    for words in ("1,234", "2,345", "0.111", "0.333", "+0.250", "-50.0", "-2.000", "16,384", "ab" * 32):
        assert words in page.text, words


def test_what_it_says():
    text = Outline(comparison_page(RESULTS, named("en"))).text
    for words in (
        "+25.0 points (+12.5 to +37.5)",
        "+0.250 (+0.125 to +0.375)",
        "3 of 20 questions are in the training text of one.",
        "By guessing: 25.0%.",
        "written answer: one is right",
        "1 of 2,345 shown",
        "(nothing)",
        "characters of the written answer (F1)",
        "from byte 0 to 256",
    ):
        assert words in text, words


def test_a_better_and_a_worse_model_have_their_colours():
    html = comparison_page(RESULTS | {"tasks": {}}, named("en"))
    assert Outline(html).ids == ["models", "texts", "again"]
    assert Outline(comparison_page(RESULTS | {"texts": {}}, named("en"))).ids == ["models", "tasks", "again"]
    assert 'class="word better">better<' in html and 'class="word worse">worse<' in html
    # Of the widest interval, 0.75, each other one is a part; 0 is in the middle.
    assert 'class="interval better" style="left:58.33%;width:16.67%"' in html
    assert 'class="interval worse" style="left:0.00%;width:33.33%"' in html
