"""A file of JSON is what its rows are: conversations of ChatGPT and Claude, chats of Slack and Telegram, texts."""

import json

import pytest

from tests.corpus.desktop_files import read
from tpullm.corpus.document import NOT_READ

HI = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello!"}]


def node(role, text, parent, **more):
    message = {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}, **more}
    return {"message": message, "parent": parent}


MAPPING = {
    "a": {"message": None, "parent": None},
    "b": node("system", "", "a"),
    "c": node("user", "Hi?", "b"),
    "d": node("assistant", "search()", "c", recipient="browser"),
    "e": node("tool", "found", "d"),
    "f": node("assistant", "An answer that was made again", "c"),
    "g": node("assistant", "Hello!", "e"),
}
CHATGPT = {"title": "T", "create_time": 1714521600.5, "mapping": MAPPING, "current_node": "g"}
CLAUDE = {"name": "T", "created_at": "2024-05-01T00:00:00Z", "chat_messages": []}
CLAUDE["chat_messages"] = [{"sender": "human", "text": "Hi?"}, {"sender": "assistant", "content": [{"text": "Hello!"}]}]


@pytest.mark.parametrize("row", [CHATGPT, CLAUDE], ids=["ChatGPT", "Claude"])
def test_a_conversation_is_a_document_and_goes_to_tuning(tmp_path, row):
    (tmp_path / "conversations.json").write_text(json.dumps([row, row | {"title": "", "name": ""}]))
    raws = read(tmp_path / "conversations.json")
    assert [raw.text for raw in raws] == ["T\n\nHi?\n\nHello!\n", "Hi?\n\nHello!\n"]
    assert raws[0].talks == (HI,) and raws[0].date == "2024-05-01"


def test_parents_in_a_circle_end(tmp_path):
    mapping = {"a": node("assistant", "A", "b"), "b": node("user", "Q", "a")}
    (tmp_path / "a.json").write_text(json.dumps([{"mapping": mapping, "current_node": "a"}]))
    assert read(tmp_path / "a.json")[0].talks[0][-1] == {"role": "assistant", "content": "A"}


def test_slack_and_telegram_are_chats(tmp_path):
    said = [("Hanako", "See <https://a.example|this>, <@U1>?"), ("Taro", "Yes &amp; no")]
    slack = [
        {"type": "message", "user": "U", "user_profile": {"real_name": who}, "text": text, "ts": "1714521600.1"}
        for who, text in said
    ]
    slack.insert(1, {"type": "message", "subtype": "channel_join", "user": "U3", "text": "joined"})
    (tmp_path / "2024-05-01.json").write_text(json.dumps(slack))
    (raw,) = read(tmp_path / "2024-05-01.json", assistant="Taro")
    assert raw.text == "Hanako: See this, ?\nTaro: Yes & no\n" and len(raw.talks) == 1
    messages = [
        {"type": "message", "from": "A", "text": ["see ", {"type": "link", "text": "x"}], "date": "2024-05-01T1"}
    ]
    (tmp_path / "result.json").write_text(json.dumps({"name": "A", "type": "personal_chat", "messages": messages}))
    assert read(tmp_path / "result.json")[0].text == "A: see x\n"


def test_lists_of_texts_and_of_conversations_are_read_and_settings_are_not(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one", "url": "u"}, {"text": "two"}]))
    assert [(raw.text, raw.url) for raw in read(tmp_path / "a.json")] == [("one", "u"), ("two", "")]
    (tmp_path / "b.json").write_text(
        json.dumps({"messages": HI}) + '\n{"instruction": "Q", "input": "I", "output": "A"}\n'
    )
    talks = [raw.talks[0] for raw in read(tmp_path / "b.json")]
    assert talks == [HI, [{"role": "user", "content": "Q\n\nI"}, {"role": "assistant", "content": "A"}]]
    for text in ('{"a": 1, "b": [1]}', "{}", "[]", "3", "{broken", "[" * 100_000):
        (tmp_path / "c.json").write_text(text)
        (raw,) = read(tmp_path / "c.json")
        assert raw.dropped == NOT_READ and "save its text as .txt" in raw.problem


def test_what_comes_before_a_break_is_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}])[:-6])
    one, broken = read(tmp_path / "a.json")
    assert one.text == "one" and broken.dropped == NOT_READ and broken.problem.endswith("what comes before it is read")


def test_conversations_in_json_lines_are_documents_too(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello!"}]}) + "\n"
    )
    (raw,) = read(tmp_path / "a.jsonl")
    assert raw.text == "Hi?\n\nHello!\n" and raw.talks == (HI,)
