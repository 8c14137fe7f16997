"""The guide for beginners: the same steps in each language, conversations that load, a plan that is the program's."""

import pytest

from tests.conftest import ROOT, tpullm
from tests.pages import blocks
from tpullm.data import examples

GUIDES = {path.parent.name: path for path in (ROOT / "docs").glob("*/five-steps.md")}


def test_both_languages_type_and_see_the_same():
    for kind in ("sh", "text"):
        assert blocks(GUIDES["en"], kind) == blocks(GUIDES["ja"], kind)


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
def test_its_conversation_loads(tmp_path, guide):
    (line,) = blocks(guide, "jsonl")
    (tmp_path / "talks.jsonl").write_text(line, encoding="utf-8")
    ((talk,), _) = examples.read([str(tmp_path / "talks.jsonl")], examples.Conversation, {}, 0.0, seed=0)
    system, user, assistant = talk.messages
    assert [system["role"], user["role"], assistant["role"]] == ["system", "user", "assistant"]


def test_its_plan_of_a_trillion_parameters_is_what_the_program_says():
    plan = tpullm("plan", "1t").stdout.splitlines()
    for guide in GUIDES.values():
        (shown,) = [block.splitlines() for block in blocks(guide, "text") if block.startswith("1t on")]
        assert set(shown) <= set(plan)
