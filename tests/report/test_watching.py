"""A run is shown while it grows, to browsers of this machine alone, and no end of the server is a run's trouble."""

import base64
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import is_gone, wait_until
from tpullm.recipe import parsing
from tpullm.recipe.schema import CorpusConfig, Recipe, Source, TokenizerConfig, TrainConfig
from tpullm.report import watching
from tpullm.report.watching import Pages, Server, listen
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.tokenizer import trainer

ROW = {"step": 10, "tokens": 100, "loss": 3.25, "step_seconds": 2.0}
TOKENS = {"seconds": 1.0, "sources": {"tenki": {"train": {"documents": 10, "tokens": 400}}}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def begin(run):
    """A run with its recipe that has not made a stage."""
    source = Source("tenki", licence="Apache-2.0", kind="tenki")
    recipe = Recipe(name="learner", corpus=CorpusConfig(sources=[source]), pretrain=TrainConfig(steps=40))
    storage.write_text(run / "recipe.yaml", parsing.dump(recipe))


def train(run, *rows):
    """Write the files of a run during pretraining. The last line of the log is incomplete, as while it is written."""
    config = TokenizerConfig(vocabulary_size=0, model_type="char", words="none")
    trainer.train([("ja", "今日はいい天気ですね。\n")], config, run / "tokenizer" / "tokenizer.model")
    for stage in ("documents", "tokenizer"):
        storage.write_json(run / stage / "manifest.json", {"seconds": 2.0})
    storage.write_json(run / "tokens" / "manifest.json", TOKENS)
    storage.write_text(run / "pretrain" / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + '{"st')


def shown(*runs):
    return Pages(list(map(str, runs))).newest()[0].decode()


def test_a_run_is_shown_from_an_empty_folder_to_its_end(run):
    assert "Nothing to see yet" in shown(run) and " data-live" in shown(run)
    begin(run)
    made = shown(run)
    assert '<li class="now">Collect</li>' in made and 'id="recipe"' in made and "learner" in made
    train(run, ROW, {"step": 10, "tokens": 100, "eval_loss": {"tenki": 1.5}})
    made = shown(run)
    assert '<li class="made">Collect <span>2.0 s</span></li>' in made and '<li class="now">Pretrain</li>' in made
    assert "Step 10 of 40. 1 min 0 s left in this stage." in made and 'style="width:25.0%"' in made
    assert "the truth: entropy of tenki" in made and "gap to the truth so far" in made, "the floor is there at once"
    assert re.findall(r'<section id="(\w+)"', made) == ["pretrain", "tokenize", "transformer", "speed", "recipe"], (
        "what changes comes first"
    )
    storage.write_json(run / "evaluate" / "results.json", {"tuned": {"accuracy": 0.5}})
    assert "50.0%" not in shown(run), "results of a model that is being replaced"
    for stage in ("pretrain", "evaluate"):
        storage.write_json(run / stage / "manifest.json", {"seconds": 3.0})
    made = shown(run)
    assert "data-live" not in made and "left in this stage" not in made and "50.0%" in made


def test_a_run_on_a_bucket_is_shown_too(bucket, run):
    begin(bucket / "run")
    train(run, ROW)
    storage.write_json(bucket / "run" / "documents" / "manifest.json", {"seconds": 2.0})
    text = (run / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8")
    storage.write_text(bucket / "run" / "pretrain" / "metrics.jsonl", text)
    made = shown(bucket / "run")
    assert '<li class="now">Train the tokenizer</li>' in made and 'id="pretrain"' in made


def test_losses_of_other_runs_are_drawn_over_those_of_the_first(run, tmp_path):
    begin(run)
    train(run, ROW, ROW | {"step": 20, "tokens": 200})
    other = tmp_path / "other"
    train(other, ROW | {"tokens": 300}, {"step": 10, "tokens": 300, "eval_loss": {"tenki": 1.5, "web": 2.0}})
    made = shown(run, other)
    names = re.findall(r'<path [^>]*data-name="([^"]*)"', made)
    assert names[:3] == [f"{run}: training", f"{other}: training", f"{other}: tenki, held out"]
    assert "web, held out" not in made


def test_what_can_not_be_read_now_leaves_the_page_before(run):
    begin(run)
    pages = Pages([str(run)])
    before = pages.newest()
    (run / "recipe.yaml").write_text("name: [", encoding="utf-8")
    pages._next = 0.0
    assert pages.newest() == before
    assert "recipe.yaml" in shown(run), "and without one, why"


def test_pages_are_made_only_if_somebody_asks_and_not_more_often_than_their_share_of_a_core(run, monkeypatch):
    begin(run)
    made, now, worked = [], [0.0], [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "thread_time", lambda: worked[0])

    def make():
        made.append(now[0])
        worked[0] += 0.1
        return "page"

    pages = Pages([str(run)])
    monkeypatch.setattr(pages, "_made", make)
    for now[0] in (x / 10 for x in range(200)):
        pages.newest()
    assert made[0] == 0.0 and made[1] == pytest.approx(watching.LEAST_SECONDS), "what is made once is not counted"
    gaps = [b - a for a, b in zip(made[1:], made[2:], strict=False)]
    assert gaps and all(gap == pytest.approx(0.1 / watching.SHARE, abs=0.11) for gap in gaps)


@pytest.fixture
def server(run):
    begin(run)
    with listen(0) as listener:
        server = Server(listener, Pages([str(run)]))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(port, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body, {name.lower(): value for name, value in answer.getheaders()}


def test_only_browsers_of_this_machine_get_the_page_and_nothing_else_is_there(server):
    port = server.server_address[1]
    hosts = ["localhost", f"localhost:{port}", f"127.0.0.1:{port}", "[::1]", f"[::1]:{port}", "LocalHost"]
    assert [ask(port, Host=host)[0] for host in hosts] == [200] * 6
    bad = ["evil.example", f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example:80", ""]
    assert [ask(port, Host=host)[0] for host in bad] == [421] * 5
    assert [ask(port, path)[0] for path in ("/recipe.yaml", "/../", "/?")] == [404] * 3
    assert [ask(port, method=method)[0] for method in ("POST", "PUT", "HEAD")] == [501] * 3
    assert server.socket.getsockname()[0] == "127.0.0.1"


def test_only_our_style_and_script_work_on_it(server):
    """The hashes of the policy are those of all that the page has; scripts of data are not run."""
    _, body, headers = ask(server.server_address[1])
    policy = headers["content-security-policy"]
    for name in ("style", "script"):
        (found,) = re.findall(f"<{name}>(.*?)</{name}>", body, re.DOTALL)
        hashed = base64.b64encode(hashlib.sha256(found.encode()).digest()).decode()
        assert f"'sha256-{hashed}'" in re.search(f"{name}-src ([^;]*)", policy)[1]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "'unsafe-inline'; c" in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_many_ask_at_once_and_who_has_the_page_is_not_sent_it_again(server):
    port = server.server_address[1]
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]  # they never say anything
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: ask(port), range(24)))
    assert {status for status, _, _ in answers} == {200} and len({body for _, body, _ in answers}) == 1
    version = answers[0][2]["etag"]
    assert ask(port, **{"If-None-Match": version})[:2] == (304, "")
    assert ask(port, **{"If-None-Match": '"another"'})[0] == 200
    for each in silent:
        each.close()


def test_a_port_that_is_taken_is_said_if_it_was_asked_for_and_else_another_is_taken(monkeypatch):
    with listen(0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: address already in use; choose another"):
            listen(port)
        monkeypatch.setattr(watching, "PORT", port)
        with listen() as second:
            assert second.getsockname()[1] != port


@pytest.fixture
def switched_on(monkeypatch):
    monkeypatch.delenv(watching.SWITCH)
    monkeypatch.setattr(watching, "PORT", 0)


def test_beside_a_run_is_a_process_of_low_priority_that_ends_with_it(run, switched_on, capsys, monkeypatch):
    begin(run)
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **b: started.append(popen(*a, **b)) or started[-1])
    with watching.beside(run):
        port = int(re.search(r"http://127\.0\.0\.1:(\d+) .*TPULLM_WATCH=off", capsys.readouterr().err)[1])
        assert "learner" in ask(port)[1]
        assert os.getpriority(os.PRIO_PROCESS, started[0].pid) == 19
        assert os.getsid(started[0].pid) != os.getsid(0), "Ctrl-C is for the run"
    assert "learner" in ask(port)[1], "who has the page open gets the last one"
    monkeypatch.undo()
    assert started[0].wait(60) == 0


def test_a_server_that_is_killed_or_can_not_start_does_not_disturb_the_run(run, switched_on, capsys, monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **b: started.append(popen(*a, **b)) or started[-1])
    with watching.beside(run):
        started[0].send_signal(signal.SIGKILL)
        started[0].wait(30)
    assert is_gone(started[0].pid)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **b: (_ for _ in ()).throw(OSError(12, "no memory")))
    capsys.readouterr()
    with watching.beside(run):
        pass
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"watch: no page shows this run (no memory); `tpullm watch {run}` may"
    monkeypatch.setenv(watching.SWITCH, "off")
    with watching.beside(run):
        assert capsys.readouterr().err == ""


def test_it_ends_when_its_parent_is_gone(run):
    """However that ended: nothing is left behind by a run that was killed."""
    code = "import os, sys; from tpullm.report import watching\n"
    code += "with watching.beside(sys.argv[1]): print(flush=True); input()"
    environment = {name: value for name, value in os.environ.items() if name != watching.SWITCH}
    command = [sys.executable, "-c", code, str(run)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    parent = subprocess.Popen(command, env=environment, **pipes)
    parent.stdout.readline()
    (child,) = map(int, open(f"/proc/{parent.pid}/task/{parent.pid}/children").read().split())
    parent.kill()
    parent.wait()
    wait_until(lambda: is_gone(child))
    for pipe in (parent.stdin, parent.stdout):
        pipe.close()
