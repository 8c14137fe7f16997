"""The guide for beginners: the same steps in each language, conversations that load, a plan that is the program's."""

import re

import pytest

from tests.conftest import ROOT, tpullm
from tpullm.data import examples

GUIDES = {path.parent.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*/five-steps.md")}


def blocks(text: str, kind: str) -> list[str]:
    """What stands in its blocks of code of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def plan():
    """The lines that `tpullm plan 1t` prints."""
    return tpullm("plan", "1t").stdout.splitlines()


def test_both_languages_type_and_see_the_same():
    english, japanese = GUIDES["en"], GUIDES["ja"]
    assert blocks(english, "sh") == blocks(japanese, "sh")
    assert blocks(english, "text") == blocks(japanese, "text")


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
def test_its_conversation_loads(tmp_path, guide):
    (line,) = blocks(guide, "jsonl")
    (tmp_path / "talks.jsonl").write_text(line, encoding="utf-8")
    ((talk,), _) = examples.read([str(tmp_path / "talks.jsonl")], examples.Conversation, {}, 0.0, seed=0)
    system, user, assistant = talk.messages
    assert [system["role"], user["role"], assistant["role"]] == ["system", "user", "assistant"]


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
def test_its_plan_of_a_trillion_parameters_is_what_the_program_says(plan, guide):
    (shown,) = [block.splitlines() for block in blocks(guide, "text") if block.startswith("1t on")]
    assert set(shown) <= set(plan)
