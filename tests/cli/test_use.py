"""generate, chat, blank and attention: what they print, what they write, what they refuse."""

import json
import re
from unittest.mock import Mock

import pytest

from tests.small_model import session_of, small_tokenizer  # noqa: F401
from tpullm.cli import chat, main
from tpullm.engine import session as session_module
from tpullm.engine.engine import Engine
from tpullm.engine.generation import conversation_ids
from tpullm.engine.request import Request, whole_characters
from tpullm.recipe.sampling import GREEDY


@pytest.fixture(scope="module")
def session(small_tokenizer):  # noqa: F811
    return session_of(small_tokenizer, layers=1)


@pytest.fixture
def use(session, monkeypatch, capsys):
    """Run a verb with the small model in the place of MODEL: (exit code, stdout, stderr)."""

    def run(*argv, lines=()):
        monkeypatch.setattr(session_module, "load_session", lambda model, tuned=True, exact=True, weights="": session)
        monkeypatch.setattr("builtins.input", Mock(side_effect=[*lines, EOFError]))
        code = main.main([argv[0], "RUN", *argv[1:]])
        return code, *capsys.readouterr()

    return run


def test_generate_prints_one_json_value_and_streams_its_text(use):
    arguments = ["generate", "--prompt", "今日は", "--tokens", "6", "--seed", "3"]
    code, out, err = use(*arguments, "--json")
    found = json.loads(out)
    assert (code, err, found["prompt"]) == (0, "", "今日は") and 1 <= found["tokens"] <= 6
    assert use(*arguments)[1] == "今日は" + found["text"] + "\n"


@pytest.mark.ci
def test_generate_writes_what_a_reproducible_engine_writes_among_others(use, session):
    """One of as many rows as the server's: its program sums in the same order."""
    words = ["generate", "--prompt", "今日は", "--tokens", "6", "--temperature", "0", "--reproducible", "--json"]
    code, out, _ = use(*words)
    engine, tokenizer, found = Engine(session, reproducible=True), session.tokenizer, []
    ids = (*tokenizer.begin, *tokenizer.encode("今日は"))
    engine.submit(Request(ids, 6, GREEDY, stop_ids=tuple(tokenizer.stop_ids)), lambda token: found.append(token.id))
    engine.submit(Request(ids[:2], 6, GREEDY), lambda token: None)
    while engine.step():
        pass
    assert code == 0 and json.loads(out)["text"] == "".join(whole_characters(tokenizer, found))


def test_generate_makes_several_texts(use):
    arguments = ["generate", "--prompt", "今日は", "--tokens", "6", "--temperature", "9", "--min-p", "0", "--json"]
    several = json.loads(use(*arguments, "--count", "2", "--seed", "4")[1])
    assert several[1]["text"] == json.loads(use(*arguments, "--seed", "5")[1])["text"] != several[0]["text"]


def test_generate_ends_before_the_stop_text(use):
    arguments = ["generate", "--prompt", "今日は", "--tokens", "6", "--seed", "3", "--json"]
    whole = json.loads(use(*arguments)[1])["text"]
    stop = whole[2]
    assert json.loads(use(*arguments, "--stop", stop)[1])["text"] == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--prompt", "雨" * 99], "--prompt: .* tokens.* holds 32"),
        (["generate", "--tokens", "0"], "--tokens: 0 is less than 1"),
        (["generate", "--top-p", "2"], "--top-p: 2.0 is not a share"),
        (["generate", "--seed", "-1"], "--seed: -1 is not from 0 to"),
        (["chat", "--prompt", "a", "--seed", "3000000000"], "--seed: 3000000000 is not from 0 to"),
        (["generate", "--temperature", "warm"], "temperature"),
        (["chat", "--json"], "--json: .*--prompt"),
        (["chat", "--prompt", "雨" * 99], "prompt: .* tokens.* holds 32"),
        (["blank", "今日は寒い。"], "0 times"),
        (["attention", ""], "text: is empty"),
        (["attention", "雨" * 99], "text: .* tokens.* holds 32"),
    ],
)
def test_mistakes_are_told_in_one_line(use, arguments, message):
    code, out, err = use(*arguments)
    last = err.splitlines()[-1]
    assert code == 2 and out == "" and last.startswith("tpullm: ")
    assert re.search(message, last), last


def test_blank_prints_one_json_value(use, monkeypatch):
    from tpullm.evaluation import blank

    monkeypatch.setattr(blank, "_TOKENS", 3)
    code, out, err = use("blank", "今日は【?】天気です。", "--json", "--count", "4")
    found = json.loads(out)
    assert (code, err) == (0, "") and found["text"] == "今日は【?】天気です。" and len(found["words"]) == 4
    chances = [word["probability"] for word in found["words"]]
    assert chances == sorted(chances, reverse=True)
    every = json.loads(use("blank", "今日は【?】天気です。", "--json", "--count", "0")[1])["words"]
    assert len(every) > 4 and sum(word["probability"] for word in every) == pytest.approx(1)


def test_attention_writes_a_page(use, tmp_path):
    code, out, _ = use("attention", "雨です。", "--out", str(tmp_path / "picture.html"))
    assert (code, out) == (0, "") and "雨です。" in (tmp_path / "picture.html").read_text("utf-8")


def test_chat_answers_once(use, session):
    code, out, _ = use("chat", "--prompt", "雨?", "--tokens", "4", "--json")
    found = json.loads(out)
    assert code == 0 and found == {"prompt": "雨?", "answer": chat.reply(session, [user("雨?")], 4, GREEDY, 0, False)}


def user(text):
    return {"role": "user", "content": text}


def test_chat_remembers_until_reset(use, monkeypatch):
    reply = Mock(return_value="はい")
    monkeypatch.setattr(chat, "reply", reply)
    code, _, err = use("chat", lines=["雨?", "", "雪?", "/reset", "本?", "/quit", "歌?"])
    asked = [[message["content"] for message in call.args[1]] for call in reply.call_args_list]
    assert code == 0 and asked == [["雨?"], ["雨?", "はい", "雪?"], ["本?"]]
    assert "was not tuned" in err and "a new conversation" in err


def test_chat_leaves_quietly_at_the_end_of_the_input_and_at_ctrl_c(use, monkeypatch):
    assert use("chat", lines=[])[0] == 0
    monkeypatch.setattr(chat, "reply", Mock(side_effect=KeyboardInterrupt))
    assert use("chat", lines=["雨?"])[0] == 0


def test_chat_goes_on_after_a_line_that_is_too_long(use):
    code, _, err = use("chat", "--tokens", "4", lines=["雨" * 99, "雨?"])
    assert code == 0 and "holds 32" in err


def test_chat_leaves_out_its_oldest_turns(session):
    answer = {"role": "assistant", "content": "はい"}
    turns = [user("雨?"), answer] * 6
    ids, dropped = conversation_ids(session, [*turns, user("雪?")], 8)
    assert len(ids) <= session.context_length - 8
    kept, _ = session.tokenizer.chat_template([*turns[2 * dropped :], user("雪?")], add_generation_prompt=True)
    one_more, _ = session.tokenizer.chat_template([*turns[2 * dropped - 2 :], user("雪?")], add_generation_prompt=True)
    assert ids == kept and len(one_more) > session.context_length - 8
