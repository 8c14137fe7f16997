"""Clients of servers: what they count and measure, against a stand-in for an engine."""

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openai
import pytest
import random_model
import serving_endurance
import serving_load
import serving_peers
import serving_waits
from safetensors.numpy import load_file
from serving_server import Server, in_use, started

from benchmarks.serving_conformance import CASES
from tests.conftest import wait_until
from tests.serving.conftest import serving
from tpullm.engine.session import find

TEXT = "".join(f"{number} cats sat on {number} mats, 猫。\n" for number in range(300))
# A server that completes every text with its own process id.
SMALL = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"object": "list", "data": [{"id": "small", "object": "model"}]})
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        choice = {"index": 0, "text": str(os.getpid()), "finish_reason": "stop"}
        self.answer({"id": "1", "object": "text_completion", "choices": [choice]})
    def answer(self, value):
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def url():
    """A server in this process."""
    with serving("small") as made:
        yield f"http://127.0.0.1:{made.port}/v1"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model of random weights."""
    folder = tmp_path_factory.mktemp("random") / "model"
    random_model.make(folder, "tiny", TEXT)
    return folder


def test_servers_are_asked_the_same_and_one_that_fails_is_named(url, tmp_path, capsys):
    texts, out = tmp_path / "text", tmp_path / "found.json"
    texts.write_text(TEXT)
    nobody = "http://127.0.0.1:9/v1"
    words = ["--servers", f"a={url}", f"no={nobody}", f"b={url}", "--texts", str(texts), "--clients", "1", "3"]
    serving_load.main([*words, "--each", "2", "--rounds", "2", "--tokens", "6", "--out", str(out)])
    found = json.loads(out.read_text())
    assert set(found["figures"]) == {"1", "3"} and found["settings"]["tokens"] == "6"
    for results in found["figures"].values():
        assert results["a"]["same"] == results["b"]["same"] == 1 and len(results["b"]["rounds"]) == 2
        assert 0 < results["b"]["first_ms"][0] <= results["b"]["first_ms"][1] and 0 < results["b"]["tokens"] <= 6
        assert results["no"]["failed"].startswith("failed: APIConnectionError")
    assert len(capsys.readouterr().out.splitlines()) == 2 + 6


def test_quantiles_are_of_all_rounds():
    answer = lambda first, text: serving_load.Answer(3, [first, first + 1, first + 4], text)  # noqa: E731
    rounds = [serving_load.Round(10, [answer(1, "a")]), serving_load.Round(30, [answer(3, "b")])]
    other = [serving_load.Round(1, [answer(1, "a")]), serving_load.Round(1, [answer(1, "c")])]
    found = serving_load.result_of(rounds, other)
    assert (found.rounds, found.first_ms, found.pause_ms) == ([10, 30], (2000, 3000), (2000, 3000))
    assert (found.tokens, found.same) == (3, 0.5)
    assert serving_load.quantiles_ms(range(101)) == (50_000, 99_000) and serving_load.quantiles_ms([]) == (0, 0)


def test_each_client_asks_its_own_passages(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    found = serving_load.passages([tmp_path / "text"], clients=3, each=2, characters=40, beginning=7, seed=1)
    flat = list(itertools.chain(*found))
    assert [len(own) for own in found] == [2, 2, 2] and len(set(flat)) == 6
    assert all(one.startswith(TEXT[:7]) and one[7:] in TEXT and 27 <= len(one) <= 47 for one in flat)


def test_a_server_is_started_paused_and_stopped(tmp_path):
    (tmp_path / "small.py").write_text(SMALL)
    command = f"{sys.executable} {tmp_path / 'small.py'} {{port}}"
    state = lambda pid: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]  # noqa: E731
    with started({"one": command, "two": command}, tmp_path) as (one, two):
        pids = one.process.pid, two.process.pid
        wait_until(lambda: [state(pid) for pid in pids] == ["T", "T"])
        with in_use(two), openai.OpenAI(base_url=two.url, api_key="none") as client:
            assert client.completions.create(model="small", prompt="a").choices[0].text == str(pids[1])
            assert state(pids[0]) == "T" != state(pids[1])
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_command_that_ends_is_told_with_its_last_words(tmp_path):
    command = f"{sys.executable} -c 'raise SystemExit(\"no model here\")'"
    with pytest.raises(SystemExit, match=r"(?s)mine: does not answer.*no model here"):
        Server("mine", command, tmp_path / "log").start()


def test_commands_of_peers_name_the_model_its_type_and_files_for_llama_cpp(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(serving_peers, "gguf", lambda model, kind: made.append(kind) or tmp_path / f"{kind}.gguf")
    peers = {"hf": "hf {model} {dtype} {port}", "cpp": "cpp {gguf} -p {port}", "half": "cpp {gguf-f16}"}
    ours, *others = serving_peers.servers(tmp_path / "m", "bfloat16", peers).values()
    assert ours.split()[1:] == [serving_peers.__file__, "--serve", "bfloat16", str(tmp_path / "m"), "{port}"]
    assert others[0] == f"hf {tmp_path / 'm'} bfloat16 {{port}}"
    assert others[1:] == [f"cpp {tmp_path / 'bf16.gguf'} -p {{port}}", f"cpp {tmp_path / 'f16.gguf'}"]
    assert {"bf16", "f16"} == set(made)


def test_only_whole_characters_have_embeddings_so_texts_never_end(model):
    found = find(model)
    embedding_VD = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    used = np.flatnonzero(embedding_VD.any(axis=1))
    assert all(found.tokenizer.bytes_of(int(token)).decode() for token in used) and len(used) > 100
    assert not set(used) & set(found.tokenizer.stop_ids) and len(found.tokenizer.stop_ids) == 2
    assert found.tokenizer.decode(found.tokenizer.encode(TEXT[:99])) == TEXT[:99]


def test_the_template_of_a_random_model_shows_tools(model):
    function = {"name": "now", "arguments": {"zone": "JST"}}
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
    messages = [
        {"role": "user", "content": "今は？"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": "12:00"},
    ]
    tokenizer = find(model).tokenizer
    ids, _ = tokenizer.chat_template(messages, add_generation_prompt=True, tools=[tool])
    shown = tokenizer.decode(ids)
    assert "clock" in shown and '<tool_call>\n{"name": "now", "arguments": {"zone": "JST"}}\n</tool_call>' in shown
    assert "12:00" in shown and "clock" not in tokenizer.decode(tokenizer.chat_template(messages[:1])[0])


def test_all_kinds_of_clients_are_counted_and_a_sound_server_passes(url, monkeypatch):
    monkeypatch.setattr(serving_endurance, "STALL_SECONDS", (0,))
    monkeypatch.setattr(serving_endurance, "LARGEST_CHANGE", 10)  # this process does other things too
    clients = serving_endurance.Clients(url, longest=1024)
    samples, idle = asyncio.run(serving_endurance.load(clients, os.getpid(), seconds=3))
    assert {kind for kind, _ in clients.outcomes} == {kind.__name__ for kind in serving_endurance.KINDS}
    assert {outcome for kind, outcome in clients.outcomes if kind == "too_long"} == {"400"}
    assert all(one["memory"] > 10 and one["second"] >= 0 for one in samples) and samples[-1]["new_tokens_total"] > 0
    assert all(serving_endurance.judged(clients, samples, idle).values())


@pytest.mark.parametrize("fault", ["memory", "idle", "answered", "same"])
def test_each_fault_of_a_server_is_seen(fault):
    clients = serving_endurance.Clients("http://127.0.0.1:9/v1", 1024)
    clients.outcomes.update({("whole", "200"): 3, ("garbage", "400"): 1, ("hangs_up", "hung up"): 2})
    clients.control["a"] += 5
    memory = [1000.0] * 20
    idle = {"waiting": 0.0, "running": 0.0, "pages_used": 0.0}
    if fault == "memory":
        memory[-2:] = [1021.0] * 2
    if fault == "idle":
        idle["pages_used"] = 1.0
    if fault == "answered":
        clients.outcomes["whole", "500"] += 1
    if fault == "same":
        clients.control["b"] += 1
    holds = serving_endurance.judged(clients, [{"memory": one} for one in memory], idle)
    assert [name for name, good in holds.items() if not good] == [fault]


def test_waits_that_touch_a_time_count():
    moments = [[0.0, 1.0, 2.0, 7.0, 8.0], [0.5, 2.5, 3.0]]
    assert serving_waits.waits(moments, 2.2, 6.0) == [5.0, 2.0, 0.5]
    assert serving_waits.waits(moments, 9.0, 10.0) == []


class Endless:
    """A client whose texts never end; for a long prompt all of them stand still."""

    def __init__(self):
        self.completions, self.long = self, 0

    async def create(self, max_tokens: int, **_):
        return self.parts(max_tokens)

    async def post(self, path: str, body: dict, **_):
        assert (path, body["max_tokens"]) == ("/completions", 1)
        self.long += len(body["prompt"]) == serving_waits.LONG
        await asyncio.sleep(0)

    async def parts(self, count: int):
        for _ in range(count):
            await asyncio.sleep(0)
            yield SimpleNamespace(choices=[SimpleNamespace(text="a")], usage=None)


def test_streams_are_watched_while_long_prompts_are_read(monkeypatch):
    monkeypatch.setattr(serving_waits, "USUAL", 3)
    monkeypatch.setattr(serving_waits, "BEGUN", 1)
    monkeypatch.setattr(serving_waits, "AFTER", 0)
    client = Endless()
    found = asyncio.run(serving_waits.beside(client, "small", times=2))
    assert client.long == 2 and len(found["ratios"]) == 2
    assert min(found["ratio"], found["usual ms"], found["prompt s"]) > 0
    assert asyncio.run(serving_waits.prefix(client, "small", times=2))["ratio"] > 0


@pytest.mark.parametrize("ratios, code", [((0.1, 2.9), 0), ((0.2, 2.9), 1), ((0.1, 3.1), 1)])
def test_a_wait_that_is_too_long_is_a_failure(ratios, code, monkeypatch, tmp_path, capsys):
    async def measured(*_) -> dict:
        return {"prefix": {"ratio": ratios[0]}, "beside": {"ratio": ratios[1], "ratios": [1.0]}}

    monkeypatch.setattr(serving_waits, "measured", measured)
    assert serving_waits.main(["--out", str(tmp_path / "found.json")]) == code
    assert json.loads((tmp_path / "found.json").read_text())["figures"]["beside"]["ratio"] == ratios[1]
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["prefix", "beside"]


@pytest.mark.slow
def test_with_a_real_engine_all_cases_hold(model, tmp_path):
    command = f"{sys.executable} -m tpullm serve {model} --port {{port}}"
    with started({"ours": command}, tmp_path) as (server,), in_use(server):
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            for case in CASES.values():
                case(client, model.name)
