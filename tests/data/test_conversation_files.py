"""Conversations are read from files or named with their line, and split by hash."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.test_conversations import CHATS, say, write
from tpullm.corpus import domains, tenki
from tpullm.data import conversation_files
from tpullm.errors import UserError
from tpullm.recipe.schema import TuningConfig


def test_conversations_are_read_in_order(tmp_path):
    path = write(tmp_path / "chats.jsonl", *({"id": n, "messages": chat} for n, chat in enumerate(CHATS)), "")
    assert conversation_files.read(path) == CHATS


GOOD = {"messages": say("今日は?", "いい天気です。")}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"messages": [', "is not JSON"),
        ("[]", "has no messages"),
        ({"text": "いい天気"}, "has no messages"),
        ({"messages": []}, "has no messages"),
        ({"messages": ["いい天気"]}, "message 1: is not an object"),
        ({"messages": say("今日は?")}, "no turn of the assistant"),
        (
            {"messages": [*say("今日は?"), {"role": "robot", "content": "はい"}]},
            "message 2: the role 'robot' is unknown",
        ),
        ({"messages": say("今日は?", " ")}, "message 2: has no content"),
        ({"messages": [{"role": "assistant"}]}, "message 1: has no content"),
        ({"messages": say("今日は?", "\ud800")}, "message 2: .* surrogate"),
    ],
)
def test_a_broken_line_is_refused_with_file_and_line(tmp_path, line, told):
    path = write(tmp_path / "chats.jsonl", GOOD, "", line, GOOD)
    with pytest.raises(UserError, match=rf"chats\.jsonl: line 3.*{told}"):
        conversation_files.read(path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "chats.jsonl").write_bytes('{"messages": "天気"}\n'.encode("cp932"))
    with pytest.raises(UserError, match=r"line 1: is not UTF-8"):
        conversation_files.read(tmp_path / "chats.jsonl")


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        conversation_files.read(tmp_path / "chats.jsonl")
    with pytest.raises(UserError, match="no conversation in it"):
        conversation_files.read(write(tmp_path / "chats.jsonl", ""))


def test_what_is_held_out_does_not_depend_on_place_or_number():
    train, held_out = conversation_files.split(CHATS, 0.25)
    assert len(train) + len(held_out) == len(CHATS) and 5 < len(held_out) < 25
    again, again_held_out = conversation_files.split([*CHATS[::-1], *CHATS], 0.25)
    assert {repr(chat) for chat in again_held_out} == {repr(chat) for chat in held_out}
    assert not {repr(chat) for chat in again} & {repr(chat) for chat in held_out}


@given(fraction=st.floats(0, 1))
def test_a_conversation_is_held_out_by_its_hash_alone(fraction):
    _, held_out = conversation_files.split(CHATS, fraction)
    for chat in CHATS:
        said = json.dumps([[message["role"], message["content"]] for message in chat], ensure_ascii=False)
        place = int(hashlib.sha256(said.encode()).hexdigest()[:16], 16) / 2**64
        assert (chat in held_out) == (place < fraction)
        assert conversation_files.split([chat], place) == ([chat], [])


def test_the_conversations_of_a_recipe_are_its_files_and_the_questions_of_tenki(tmp_path):
    path = write(tmp_path / "chats.jsonl", *({"messages": chat} for chat in CHATS))
    config = TuningConfig(conversations=["tenki", str(path)], held_out_fraction=0.25)
    learned, held_out = conversation_files.read_all(config, seed=3)
    of_file = conversation_files.split(CHATS, 0.25)
    of_tenki = [
        [line["messages"] for line in tenki.conversations(part)] for part in tenki.split_questions(0.25, seed=3)
    ]
    assert (learned, held_out) == (of_tenki[0] + of_file[0], of_tenki[1] + of_file[1])


def test_the_questions_of_a_domain_are_named_by_it(tmp_path):
    """What is held out follows from what is asked about: not from the seed, and not from the conversation."""
    config = TuningConfig(conversations=["programming"], held_out_fraction=0.25)
    parts = conversation_files.read_all(config, seed=3)
    asked = domains.split_questions("programming", 0.25)
    assert parts == tuple([list(line["messages"]) for line in domains.conversations(part)] for part in asked)
    assert conversation_files.questions("programming", config, seed=4) == asked and all(parts)
