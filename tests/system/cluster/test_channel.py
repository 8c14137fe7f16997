"""Hosts in one process, connected by sockets: they meet, talk, and notice who is gone."""

import contextlib
import hashlib
import importlib.util
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock, call

import jax
import pytest

from tests.conftest import ROOT, wait_until
from tests.system.cluster.conftest import connect
from tpullm.system.cluster import channel, handshake, hosts
from tpullm.system.cluster.channel import MOST_BYTES, Channel
from tpullm.system.cluster.hosts import FromFirst, relay
from tpullm.system.cluster.place import Place
from tpullm.system.errors import TRY_AGAIN, HostFailed, TryAgain, UserError

pytestmark = pytest.mark.usefixtures("ended")


def meet(count: int, wrong: dict | None = None, secrets: dict | None = None, seconds=20.0, of: int = 0) -> list:
    """What `receive` on host 0 and `connect` on the others return or raise.

    Args:
        wrong: what the last host, which comes last, says instead of the truth.
        secrets: by host; nothing is no secret on any.
        of: how many host 0 waits for, if there are fewer.
    """
    port, heard, answer = handshake.free_port(), set(), handshake._Reception._answer

    def host(index: int):
        secret = (secrets or {}).get(index, b"")
        if index == 0:
            return handshake.receive(port, of or count, "name0", seconds, {"notice": 7}, secret)
        own = {"index": index, "count": count, "name": f"name{index}"}
        if index == count - 1:
            wait_until(lambda: heard >= set(range(1, index)))
            own |= wrong or {}
        return handshake.connect("127.0.0.1", port, **own, seconds=20.0, secret=secret)

    def remember(reception, guest):
        answer(reception, guest)
        heard.update(each.hello.index for each in reception.hosts)

    with ThreadPoolExecutor(count) as threads, pytest.MonkeyPatch.context() as patch:
        patch.setattr(handshake._Reception, "_answer", remember)
        started = [threads.submit(host, index) for index in range(count)]
        return [future.exception() or future.result() for future in started]


SECRET = b"a secret of all hosts"
ALL = {host: SECRET for host in range(3)}


@pytest.mark.parametrize("secrets", [{}, ALL], ids=["without a secret", "with one"])
def test_hosts_meet_and_hear_each_others_names(secrets):
    first, *others = meet(3, secrets=secrets)
    assert first.names == ["name0", "name1", "name2"] and first.index == 0
    for index, (own, answer) in enumerate(others, start=1):
        assert (own.names, own.index, answer["notice"]) == (first.names, index, 7)
    talk([first, *(own for own, _ in others)])


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"count": 4}, "index 2 of 4, and host 0 counts 3"),
        ({"index": 3}, "index 3 of 3, and host 0 counts 3"),
        ({"index": 0}, "index 0 of 3, which name0 is already"),
        ({"index": 1}, "index 1 of 3, which name1 is already"),
    ],
)
def test_hosts_that_contradict_each_other_are_refused_alike(wrong, says):
    for answer in meet(3, wrong, ALL, seconds=10_000.0):
        assert isinstance(answer, UserError) and answer.code == 2
        assert str(answer) == f"hosts: name2 says it is {says}; correct the settings"


@pytest.mark.parametrize("last", [b"another secret than theirs", b""])
def test_a_host_with_another_secret_is_dropped_and_both_sides_say_so(last, capsys):
    """Nor does a host with a secret believe a host 0 without one."""
    first, second, third = meet(3, secrets=ALL | {2: last}, seconds=1.0)
    assert str(third) == "hosts: host 0 has another TPULLM_HOSTS_SECRET than host 2; set the same on all"
    says = "no answer from host(s) 2 of 3 in 1 s (1 without the secret were dropped); start them all"
    assert str(first) == str(second) == says and first.code == second.code == TRY_AGAIN
    assert "hosts: 127.0.0.1 says it is host 2, without the secret; dropped" in capsys.readouterr().err
    assert str(meet(2, secrets={1: SECRET}, seconds=1.0)[1]) == str(third).replace("host 2", "host 1")


def test_a_host_that_is_missing_is_named():
    for answer in meet(2, {"count": 3}, seconds=1.0, of=3):
        assert isinstance(answer, TryAgain) and str(answer) == "no answer from host(s) 2 of 3 in 1 s; start them all"


def test_without_host_0_the_line_names_its_address():
    port, began = handshake.free_port(), time.monotonic()
    with pytest.raises(TryAgain, match=f"hosts.coordinator: no answer from host 0 at 127.0.0.1:{port} in 2 s"):
        handshake.connect("127.0.0.1", port, 1, 2, "name1", 1.5)
    assert time.monotonic() - began >= 0.5, "it tries again until the time is over"


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("", 0)) as taken, pytest.raises(UserError, match="port .* can't be used"):
        handshake.receive(taken.getsockname()[1], 2, "name0", 1.0, {})


def started(count: int = 3, but: int | None = None) -> list[Channel]:
    """The channels of all hosts, whose threads run, but for one host."""
    connected = connect(count)
    for one in connected:
        if one.index != but:
            one.start()
    return connected


@pytest.mark.parametrize("gone", [0, 2])
def test_a_host_that_is_gone_ends_all_others_at_once(gone, ended):
    connected = started(but=gone)
    for peer in connected[gone]._peers.values():
        peer.hang_up()  # as the system does for a killed process
    again = "give the same command again on all hosts; a training resumes from its last checkpoint"
    line = f"host {gone} (name{gone}) stopped answering; {again}"
    wait_until(lambda: len(ended) == 2)
    assert ended == [(line, TRY_AGAIN)] * 2


def test_a_silent_host_is_gone_and_one_with_heartbeats_is_not(monkeypatch, ended):
    monkeypatch.setattr(channel, "SECONDS_TO_WARN", 0.2)
    monkeypatch.setattr(channel, "SECONDS_SILENT", 0.5)
    monkeypatch.setattr(channel, "SECONDS_BETWEEN_BEATS", 0.1)
    *_, third = started()
    time.sleep(0.8)
    assert ended == []
    third._tell = lambda *_, **__: None  # it sends no heartbeats any more
    wait_until(lambda: ended)
    assert ended[0][0].startswith("host 2 (name2) stopped answering")


def test_a_host_that_is_paused_is_named_once_and_waited_for(monkeypatch, ended, capsys):
    monkeypatch.setattr(channel, "SECONDS_TO_WARN", 0.3)
    monkeypatch.setattr(channel, "SECONDS_BETWEEN_BEATS", 0.05)
    *_, third = started()
    with monkeypatch.context() as paused:
        paused.setattr(third, "_tell", lambda *_, **__: None)
        time.sleep(0.6)
    time.sleep(0.3)
    said = capsys.readouterr().err.splitlines()
    assert said == ["host 2 (name2) has not answered for 0 s; all hosts wait for it"] and ended == []


UNHEARD = [
    (b"no JSON\n", "sent a line that is not JSON; give the same command again on all hosts", TRY_AGAIN),
    (b"[" * 100_000 + b"\n", "sent a line that is not JSON; give the same command", TRY_AGAIN),
    (b"[]\n", "sent a line that is not a JSON object; give the same command", TRY_AGAIN),
    (b"x" * (MOST_BYTES + 1), "sent a line of more than 1,048,576 bytes; give the same command", TRY_AGAIN),
    (b"{}\n", "sent a message that can't be used (KeyError: 'kind'); report this", 1),
    (b'{"kind": []}\n', "sent a message that can't be used (TypeError: ", 1),
    (b'{"kind": "unknown"}\n', "sent a message that can't be used (KeyError: 'unknown')", 1),
    (b'{"kind": "ends"}\n', "sent a message that can't be used (KeyError: 'host')", 1),
    (b'{"kind": "ends", "host": 9, "message": "", "code": 2}\n', "(ValueError: an end without host, message and", 1),
    (b'{"kind": "ends", "host": 2, "message": 7, "code": 2}\n', "(ValueError: an end without host, message and", 1),
    (b'{"kind": "ends", "host": 2, "message": "", "code": "2"}\n', "(ValueError: an end without host, message", 1),
]


@pytest.mark.parametrize("sent, says, code", UNHEARD, ids=range(len(UNHEARD)))
def test_a_host_that_sends_no_message_ends_all_and_is_named(sent, says, code, ended):
    """Its connection would be deaf, so the hosts would wait for ever; an endless line would fill the memory."""
    *_, third = started(but=2)
    third._peers[0]._peer.settimeout(20)
    threading.Thread(target=lambda: third._peers[0]._peer.sendall(sent), daemon=True).start()
    wait_until(lambda: len(ended) == 2)
    assert ended[0] == ended[1] and ended[0][1] == code
    assert ended[0][0].startswith("host 2 (name2) sent ") and says in ended[0][0]


def test_a_host_whose_message_never_ends_is_gone(monkeypatch, ended):
    """Each byte shows that it is alive, but nobody hears a heartbeat."""
    monkeypatch.setattr(channel, "SECONDS_TO_WARN", 0.2)
    monkeypatch.setattr(channel, "SECONDS_SILENT", 0.5)
    _, second = started(2, but=1)
    while not ended:
        with contextlib.suppress(OSError):
            second._peers[0]._peer.send(b"x")
        time.sleep(0.05)
    assert ended[0][0].startswith("host 1 (name1) stopped answering")


def test_a_message_that_nobody_reads_ends_the_connection(monkeypatch, ended):
    """The sender must neither wait for ever nor send the rest of the message later."""
    monkeypatch.setattr(channel, "SECONDS_TO_SEND", 0.2)
    first, _ = started(2, but=1)
    first.send(1, {"kind": "long", "text": "x" * (10 << 20)})
    wait_until(lambda: ended)
    assert ended == [(f"host 1 (name1) stopped answering; {channel.RESUME}", TRY_AGAIN)]


def test_hosts_that_leave_end_nobody(ended):
    connected = started()
    connected[2].leave()
    wait_until(lambda: connected[0]._left == {2})
    for peer in connected[2]._peers.values():
        peer.hang_up()
    connected[1].leave()
    connected[0].leave()
    for thread in [thread for one in connected for thread in one.threads]:
        thread.join(20)
        assert not thread.is_alive()
    assert ended == []


def test_an_error_on_one_host_is_raised_where_others_wait(ended):
    first, second, third = started(but=2)
    third.fail("a.txt: is broken", 2)
    for one in (first, second):
        with pytest.raises(HostFailed, match=r"^host 2 \(name2\): a.txt: is broken$") as raised:
            one.wait(lambda: False)
        assert raised.value.code == 2
        one.fail(str(raised.value), 2)  # its command fails with that error
    time.sleep(0.5)
    assert ended == [], "nobody has to be ended"


def test_an_error_on_one_host_ends_others_that_do_not_wait_for_it(ended):
    *_, third = started(but=2)
    began = time.monotonic()
    third.fail("a.txt: is broken", 2)
    wait_until(lambda: len(ended) == 2)
    assert ended == [("host 2 (name2): a.txt: is broken", 2)] * 2
    assert time.monotonic() - began >= channel.SECONDS_TO_UNWIND


def talk(connected: list[Channel]) -> None:
    """Messages from host 0 arrive on all hosts in order, and those of any host on host 0."""
    seen = {one.index: [] for one in connected}
    for one in connected:
        one.handlers["number"] = lambda sender, message, own=one.index: seen[own].append((sender, message["number"]))
        one.start()
    for number in range(50):
        connected[0].broadcast({"kind": "number", "number": number})
    expected = [(0, number) for number in range(50)]
    wait_until(lambda: all(numbers == expected for numbers in seen.values()))
    for one in connected:
        one.send(0, {"kind": "number", "number": 100 + one.index})
    wait_until(lambda: len(seen[0]) == 50 + len(connected))
    assert sorted(seen[0][50:]) == [(one.index, 100 + one.index) for one in connected]
    for one in connected:
        one.leave()


@pytest.fixture
def together(monkeypatch):
    """The module `hosts` once for each of three hosts."""
    modules = []
    for one in connect():
        module = importlib.util.module_from_spec(hosts.__spec__)
        hosts.__spec__.loader.exec_module(module)
        module.use(one)
        modules.append(module)
    yield modules
    for module in modules:
        module.connection().leave()


def everywhere(modules, work) -> list:
    """What `work(module, index)` returns or raises on each host, all at once."""
    with ThreadPoolExecutor(len(modules)) as threads:
        started = [threads.submit(work, module, index) for index, module in enumerate(modules)]
        return [future.exception() or future.result() for future in started]


def test_every_host_gathers_the_values_of_all(together):
    assert [module.index() for module in together] == [0, 1, 2]
    assert {module.count() for module in together} == {3}
    for turn in range(20):
        values = everywhere(together, lambda host, index, turn=turn: host.gather("turn", [turn, index]))
        assert values == [[[turn, 0], [turn, 1], [turn, 2]]] * 3


def test_a_host_that_gathers_out_of_turn_ends_all(together, ended):
    """Values for turns to come would fill the memory of host 0."""
    for _ in range(2):
        together[2].connection().send(0, {"kind": "gather", "name": "later", "value": None})
    wait_until(lambda: ended)
    says = "host 2 (name2) sent a message that can't be used (ValueError: a value before all have sent theirs)"
    assert ended[0] == (f"{says}; report this", 1)


def test_host_0_works_and_decides_for_all(together):
    done = []

    def work(host, index):
        host.on_first("work", lambda: (time.sleep(0.2), done.append(index)))
        return done == [0] and host.broadcast("decision", lambda: index)

    assert everywhere(together, work) == [0, 0, 0]


def test_hosts_that_differ_are_refused_by_the_first_key(together):
    def value(index):
        return {"same": [1, (), {}], "deep": {"list": [0, index // 2]}, "last": index}

    answers = everywhere(together, lambda host, index: host.agree("the recipe", value(index)))
    says = "the recipe: host 1 (name1) has last 1, host 0 (name0) has 0; start all hosts with the same"
    assert [str(answer) for answer in answers] == [says] * 3
    answers = everywhere(together, lambda host, index: host.agree("the code", {"a": {}} if index else {}))
    assert "host 1 (name1) has a {}, host 0 (name0) has None" in str(answers[0])
    answers = everywhere(together, lambda host, index: host.agree("the recipe", value(0)))
    assert answers == [None] * 3


def test_hosts_that_wait_for_different_things_are_ended(together, ended):
    for index, host in enumerate(together):
        threading.Thread(target=host.barrier, args=(f"thing {index // 2}",), daemon=True).start()
    wait_until(lambda: ended)
    assert {code for _, code in ended} == {1}
    assert any("the hosts wait for different things: thing 0, thing 1" in line for line, _ in ended)


def test_the_code_is_compared_file_by_file():
    found = hosts._versions_and_code_hashes()
    content = (ROOT / "tpullm" / "data" / "mixture.py").read_bytes()
    assert found["tpullm/data/mixture.py"] == hashlib.sha256(content).hexdigest()[:12] and "jaxlib" in found


def test_jax_hears_no_heartbeats_since_they_go_by_a_clock_that_may_be_set(monkeypatch):
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **more: given.update(more))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    hosts._start_jax(Place(1, 2, "a test", "a:1"), 7, "0.0.0.0")
    assert given["heartbeat_timeout_seconds"] >= 86_400 and given["coordinator_bind_address"] == "0.0.0.0:7"


def test_one_host_waits_for_nobody():
    assert hosts.gather("a", 7) == [7] and hosts.broadcast("a", lambda: 8) == 8
    assert (hosts.index(), hosts.count(), hosts.is_first(), hosts.connection()) == (0, 1, True, None)
    hosts.agree("the recipe", {"a": 1})
    hosts.fail("nobody hears this", 2)


@pytest.mark.parametrize("waits", [True, False])
def test_only_a_failed_collective_waits_for_its_cause(together, monkeypatch, waits):
    slept = []
    monkeypatch.setattr(together[1].time, "sleep", slept.append)
    together[1].wait_for_cause(type("JaxRuntimeError" if waits else "ValueError", (Exception,), {})())
    hosts.wait_for_cause(type("JaxRuntimeError", (Exception,), {})())  # one host has nobody to wait for
    assert [seconds for seconds in slept if seconds > 30] == [32.0] * waits


def test_the_relay_forwards_both_ways_and_outlives_the_other_side():
    port = handshake.free_port()
    near = socket.create_connection(("127.0.0.1", relay("127.0.0.1", port)), timeout=0.2)
    near.sendall(b"early")  # before the other side listens
    time.sleep(0.1)
    with socket.create_server(("127.0.0.1", port)) as server:
        far, _ = server.accept()
    assert far.recv(100) == b"early"
    far.sendall(b"answer")
    assert near.recv(100) == b"answer"
    time.sleep(0.3)
    near.sendall(b"late")
    assert far.recv(100) == b"late", "without a time limit"
    far.close()
    with pytest.raises(TimeoutError):
        near.recv(100)


def test_the_end_of_a_process_is_one_line_and_waits_for_nothing():
    """Exit handlers, as JAX's, would wait for hosts that are gone. XLA's threads in C++ talk on to the last moment."""
    program = (
        "import atexit, os, time; from tpullm.system.cluster.channel import end_process; leave = os._exit\n"
        "def late(code):\n    os.write(2, b'E0000 of C++\\n\\n')\n    leave(code)\n"
        "atexit.register(time.sleep, 300)\nprint('printed')\n"
        "os._exit = late; os.write(2, b'I0000\\n'); end_process('host 1 is\\n gone', 75)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (75, "printed\n", "I0000\ntpullm: host 1 is gone\n")


@pytest.fixture
def told():
    channels = started()
    return channels, [FromFirst("words", one) for one in channels]


def test_each_host_hears_all_in_order(told):
    _, (first, *others) = told
    values = [[], {"a": "猫" * MOST_BYTES}, None, "\n", [1, {"b": [2.5]}]]
    for value in values:
        first.tell(value)
    assert [[other.next() for _ in values] for other in others] == [values, values]


def test_another_host_may_not_tell(told):
    channels, (_, other, _) = told
    channels[1].send(0, {"kind": "told words", "text": "1", "ends": True})
    with pytest.raises(HostFailed, match="host 1 .*a message that can't be used"):
        other.next()


def test_who_waits_for_words_or_its_own_event_hears_of_a_host_that_failed(told, monkeypatch):
    channels, (_, _, last) = told
    event = threading.Event()
    monkeypatch.setattr(hosts, "_channel", channels[0])
    channels[1].fail("the disk is full", 2)
    for wait in (last.next, lambda: hosts.wait_for(event)):
        with pytest.raises(HostFailed, match="host 1 .*the disk is full"):
            wait()
    event.set()
    hosts.wait_for(event)


def test_who_waits_looks_each_second_whether_a_signal_came():
    """One that comes between Python's look and the wait does not end it: one of 115 servers did not stop."""
    event = Mock(wait=Mock(side_effect=[False, True]))
    hosts.wait_for(event)
    assert event.wait.call_args_list == [call(1.0)] * 2
