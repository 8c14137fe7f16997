"""The page in both languages: every sentence has its translation, with the same values in it."""

import ast
import string
from pathlib import Path

import pytest
import yaml
from jinja2 import nodes

import tpullm
from tpullm.corpus.document import REASONS
from tpullm.report.language import ENGLISH, named
from tpullm.report.rendering import environment, source

PACKAGE = Path(tpullm.__file__).parent
JAPANESE = named("ja")
TEMPLATES = environment()


def python_calls(source):
    """The template and the names of the values of each `text(template, **values)`; None for the names of a `**`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "text":
            given = {keyword.arg for keyword in node.keywords}
            yield node.args[0].value if isinstance(node.args[0], ast.Constant) else None, given, None in given


def template_calls(source):
    for node in TEMPLATES.parse(source).find_all(nodes.Call):
        if isinstance(node.node, nodes.Name) and node.node.name == "text":
            given = {keyword.key for keyword in node.kwargs}
            yield node.args[0].value if isinstance(node.args[0], nodes.Const) else None, given, bool(node.dyn_kwargs)


CALLS = {file.name: list(python_calls(file.read_text("utf-8"))) for file in (PACKAGE / "report").glob("*.py")}
CALLS |= {name: list(template_calls(source(name))) for name in TEMPLATES.list_templates("html")}


def names(template):
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


@pytest.mark.parametrize("file", CALLS)
def test_a_sentence_is_written_out_and_given_its_values(file):
    for sentence, given, is_open in CALLS[file]:
        assert sentence is not None, f"{file}: a sentence is not a literal ({given})"
        assert is_open or given == names(sentence), f"{file}: other values: {sentence}"


def test_every_sentence_is_there_in_japanese_and_nothing_else():
    written = {sentence for calls in CALLS.values() for sentence, _, _ in calls}
    used = written | set(REASONS) | set(REASONS.values()) | {"other people's code"}  # source_files.py
    assert len(used) > 150  # the search for them works
    assert used - set(JAPANESE.catalogue) == set()
    assert set(JAPANESE.catalogue) - used == set()
    text = (PACKAGE / "report" / "ja.yaml").read_text(encoding="utf-8")
    keys = [key.value for key, _ in yaml.compose(text, Loader=yaml.SafeLoader).value]
    assert len(keys) == len(set(keys)), "no sentence is translated twice"


def test_a_translation_has_the_same_values_and_no_english_left():
    for sentence, said in JAPANESE.catalogue.items():
        assert names(said) == names(sentence) and "\n" not in said
        assert said != sentence or sentence == "Transformer"
        assert not set(said) & set("“”;"), f"English punctuation: {said}"


@pytest.mark.parametrize(
    ("written", "english", "japanese"),
    [
        (lambda text: text.compact(9_580_921), "9.58 million", "958万"),
        (lambda text: text.short(2_500_000), "2.5M", "250万"),
        (lambda text: text.duration(3.21), "3.2 s", "3.2秒"),
        (lambda text: text.duration(372), "6 min 12 s", "6分12秒"),
        (lambda text: text.duration(3 * 3600 + 60), "3 h 1 min", "3時間1分"),
        (lambda text: text.duration(59.7), "1 min 0 s", "1分0秒"),
        (lambda text: text.moment(0.0575), "57.5 ms", "57.5ミリ秒"),
        (lambda text: text.date("2026-01-02T03:04:05+00:00"), "2026-01-02 03:04 UTC", "2026年1月2日 03:04（UTC）"),
        (lambda text: text.join("", text("documents"), "b"), "documents b", "文書数b"),
        (lambda text: text.known("too short"), "too short", "短すぎる"),
        (lambda text: text.known("eml"), "eml", "eml"),
    ],
)
def test_numbers_times_and_lists_in_both_languages(written, english, japanese):
    assert (written(ENGLISH), written(JAPANESE)) == (english, japanese)
