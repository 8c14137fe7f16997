"""Clients of servers: what they count and measure, against a stand-in for an engine."""

import asyncio
import json
import os
import sys
from pathlib import Path

import numpy as np
import openai
import pytest
import random_model
import serving_attack
import serving_endurance
import serving_load
import serving_peers
from safetensors.numpy import load_file
from serving_conformance import CASES
from serving_server import Server, in_use, started

from tests.conftest import wait_until
from tests.serving.conftest import serving
from tpullm.engine.session import find_model

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


def test_only_whole_characters_have_embeddings_so_texts_never_end(model):
    found = find_model(model)
    embedding_VD = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    used = np.flatnonzero(embedding_VD.any(axis=1))
    assert all(found.tokenizer.bytes_of(int(token)).decode() for token in used) and len(used) > 100
    assert not set(used) & set(found.tokenizer.stop_ids) and len(found.tokenizer.stop_ids) == 2
    assert found.tokenizer.decode(found.tokenizer.encode(TEXT[:99])) == TEXT[:99]


def test_all_kinds_of_clients_are_counted_and_a_sound_server_passes(url, monkeypatch):
    monkeypatch.setattr(serving_endurance, "STALL_SECONDS", (0,))
    monkeypatch.setattr(serving_endurance, "PAGE", 4)  # fewer rows to fill
    cheap = ("no UTF-8", "two lengths", "another host")
    monkeypatch.setattr(serving_attack, "KINDS", {kind: serving_attack.KINDS[kind] for kind in cheap})
    monkeypatch.setattr(serving_endurance, "LARGEST_CHANGE", 10)  # this process does other things too
    clients = serving_endurance.Clients(url, longest=1024)
    samples, idle = asyncio.run(serving_endurance.load(clients, os.getpid(), seconds=3))
    assert {kind for kind, _ in clients.outcomes} == {kind.__name__ for kind in serving_endurance.KINDS}
    assert {outcome for kind, outcome in clients.outcomes if kind == "too_long"} == {"400"}
    assert all(one["memory"] > 10 and one["second"] >= 0 for one in samples) and samples[-1]["new_tokens_total"] > 0
    assert all(serving_endurance.judged(clients, samples, idle).values())


@pytest.mark.ci
def test_hostile_requests_of_every_kind_are_answered_or_refused(url, monkeypatch):
    monkeypatch.setattr(serving_attack, "STALL_SECONDS", 0.1)
    port, count = int(url.rsplit(":", 1)[1].removesuffix("/v1")), len(serving_attack.KINDS)
    found = asyncio.run(serving_attack.attacks(port, ["small"], count, 4))
    assert {kind for kind, *_ in found} == {*serving_attack.KINDS}
    said = {kind: status for kind, status, *_ in found}
    assert {*said.values()} <= {"200", "400", "403", "413", "431", "stalled"}, said
    assert said["a long pattern"] == "200" and said["patterns that cross"] == "400"


@pytest.mark.parametrize("fault", ["", "median", "worst", "answered", "same"])
def test_what_honest_clients_notice_is_judged(fault):
    found = {"ratio": 1.5, "worst s": (1.0, 3.0), "failed": [], "hostile": {"a": {"200": 3}}, "distinct": {"b": 1}}
    changes = {
        "median": {"ratio": 1.51},
        "worst": {"worst s": (1.0, 3.1)},
        "answered": {"hostile": {"a": {"500": 1}}},
        "same": {"distinct": {"b": 2}},
    }
    holds = serving_attack.judged(found | changes.get(fault, {}), reproducible=True)
    assert [name for name, good in holds.items() if not good] == [fault] * bool(fault)
    assert "same" not in serving_attack.judged(found, reproducible=False)


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


@pytest.mark.slow
def test_with_a_real_engine_all_cases_hold(model, tmp_path):
    command = f"{sys.executable} -m tpullm serve {model} --port {{port}}"
    with started({"ours": command}, tmp_path) as (server,), in_use(server):
        with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            for case in CASES.values():
                case(client, model.name)


def test_the_last_table_says_how_many_times_the_peers_ours_is():
    of = lambda *rounds: {"rounds": list(rounds)}  # noqa: E731
    found = {"1": {"tpullm": of(10, 30, 20), "peer": of(40), "another": of(1)}, "8": {"tpullm": of(5), "peer": of()}}
    table = ["| | 1 clients | 8 clients |", "| --- | --- | --- |", "| q8_0 | 20 / 40 = 0.50 | 5 / 0 |"]
    assert serving_peers.summary({"q8_0": found}).splitlines() == table
