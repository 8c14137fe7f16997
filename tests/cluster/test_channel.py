"""Hosts in one process, connected by sockets: they meet, talk, and notice who is gone."""

import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import ROOT
from tpullm.cluster import channel, handshake, hosts
from tpullm.cluster.channel import Channel
from tpullm.cluster.relay import relay
from tpullm.errors import TRY_AGAIN, HostFailed, UserError

MADE: list[Channel] = []


class Ended(BaseException):
    """Instead of the end of the process."""


@pytest.fixture(autouse=True)
def ended(monkeypatch) -> Iterator[list[tuple[str, int]]]:
    """The lines and codes with which hosts exited."""
    found: list[tuple[str, int]] = []
    MADE.clear()

    def end(line: str, code: int) -> None:
        found.append((line, code))
        raise Ended

    monkeypatch.setattr(channel, "end_process", end)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(channel, "SECONDS_TO_UNWIND", 0.2)
    yield found
    for one in MADE:  # so that their threads do nothing in later tests
        one._closing = True
        for peer in one._peers.values():
            peer.close()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connect(count: int = 3) -> list[Channel]:
    """Channels of all hosts, not started."""
    pairs = {host: socket.socketpair() for host in range(1, count)}
    names = [f"name{host}" for host in range(count)]
    first = Channel(0, names, {host: pair[0] for host, pair in pairs.items()})
    MADE.extend([first, *(Channel(host, names, {0: pairs[host][1]}) for host in pairs)])
    return list(MADE)


def meet(count: int, strangers=(), wrong: dict | None = None) -> list:
    """What `receive` on host 0 and `connect` on the others return or raise.

    Args:
        strangers: what others than the hosts send first.
        wrong: what the last host, which comes last, says instead of the truth.
    """
    port, heard, read = handshake.free_port(), [], handshake._read

    def host(index: int):
        if index == 0:
            return handshake.receive(port, count, "name0", 20, {"notice": 7})
        own = {"index": index, "count": count, "name": f"name{index}"}
        if index == count - 1:
            wait_for(lambda: {hello.get("index") for hello in heard} >= set(range(1, index)))
            own |= wrong or {}
        return handshake.connect("127.0.0.1", port, **own, seconds=20)

    with ThreadPoolExecutor(count) as threads, pytest.MonkeyPatch.context() as patch:
        patch.setattr(handshake, "_read", lambda peer: heard.append(read(peer)) or heard[-1])
        started = [threads.submit(host, 0)]
        for text in strangers:
            wait_for(lambda text=text: _knock(port, text))
        started += [threads.submit(host, index) for index in range(1, count)]
        return [future.exception() or future.result() for future in started]


def _knock(port: int, text: bytes) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(text)
        return True
    return False


def test_hosts_meet_and_hear_each_others_names_though_strangers_knock():
    first, *others = meet(3, strangers=[b"", b"GET / HTTP/1.1\r\n"])
    assert first.names == ["name0", "name1", "name2"] and first.index == 0
    for index, (own, answer) in enumerate(others, start=1):
        assert (own.names, own.index, answer["notice"]) == (first.names, index, 7)
    talk([first, *(own for own, _ in others)])


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"count": 4}, "hosts: name2 says it is index 2 of 4, and host 0 counts 3; correct the settings"),
        ({"index": 3}, "hosts: name2 says it is index 3 of 3, and host 0 counts 3"),
        ({"index": 0}, "hosts: name2 says it is index 0 of 3, which name0 is already"),
    ],
)
def test_hosts_that_contradict_each_other_are_refused_alike(wrong, says):
    answers = meet(3, wrong=wrong)
    assert all(isinstance(answer, UserError) for answer in answers)
    assert len({str(answer) for answer in answers}) == 1 and says in str(answers[0])


def test_a_host_that_is_missing_is_named():
    port = handshake.free_port()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(handshake.receive, port, 3, "name0", 1.0, {})
        second = threads.submit(handshake.connect, "127.0.0.1", port, 1, 3, "name1", 20.0)
        for future in (first, second):
            with pytest.raises(UserError, match=r"no answer from host\(s\) 2 of 3 in 1 s; start them all"):
                future.result()


def test_without_host_0_the_line_names_its_address():
    port, began = handshake.free_port(), time.monotonic()
    with pytest.raises(UserError, match=f"hosts.coordinator: no answer from host 0 at 127.0.0.1:{port} in 2 s"):
        handshake.connect("127.0.0.1", port, 1, 2, "name1", 2.0)
    assert time.monotonic() - began >= 1, "it tries again until the time is over"


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} can't be used"):
            handshake.receive(port, 2, "name0", 1.0, {})


def test_what_follows_the_handshake_is_left_for_the_channel():
    one, other = socket.socketpair()
    other.sendall(b'{"a": 1}\n{"b": 2}\n')
    assert handshake._read(one) == {"a": 1} and one.recv(100) == b'{"b": 2}\n'


@pytest.mark.parametrize("gone", [0, 2])
def test_a_host_that_is_gone_ends_all_others_at_once(gone, ended):
    connected = connect()
    for one in connected:
        if one.index != gone:
            one.start()
    for peer in connected[gone]._peers.values():
        peer.close()  # as the system does for a killed process
    line = f"host {gone} (name{gone}) stopped answering; the same command on all hosts resumes from the last checkpoint"
    wait_for(lambda: len(ended) == 2)
    assert ended == [(line, TRY_AGAIN)] * 2


def test_a_silent_host_is_gone_and_one_with_heartbeats_is_not(monkeypatch, ended):
    monkeypatch.setattr(channel, "SECONDS_SILENT", 0.5)
    monkeypatch.setattr(channel, "SECONDS_BETWEEN_BEATS", 0.1)
    first, second, third = connect()
    for one in (first, second, third):
        one.start()
    time.sleep(1.5)
    assert ended == []
    third._tell = lambda *_, **__: None  # it sends no heartbeats any more
    wait_for(lambda: ended)
    assert ended[0][0].startswith("host 2 (name2) stopped answering")


def test_hosts_that_leave_end_nobody(ended):
    connected = connect()
    for one in connected:
        one.start()
    connected[2].leave()
    wait_for(lambda: connected[0]._left == {2})
    for peer in connected[2]._peers.values():
        peer.shutdown(socket.SHUT_RDWR)
    connected[1].leave()
    connected[0].leave()
    connected[0].lost(1)
    time.sleep(0.5)
    assert ended == []


def test_an_error_on_one_host_is_raised_where_others_wait(ended):
    first, second, third = connect()
    for one in (first, second):
        one.start()
    third.fail("a.txt: is broken", 2)
    for one in (first, second):
        with pytest.raises(HostFailed, match=r"^host 2 \(name2\): a.txt: is broken$") as raised:
            one.wait(lambda: False)
        assert raised.value.code == 2
        one.fail(str(raised.value), 2)  # its command fails with that error
    time.sleep(0.5)
    assert ended == [], "nobody has to be ended"


def test_an_error_on_one_host_ends_others_that_do_not_wait_for_it(ended):
    first, second, third = connect()
    for one in (first, second):
        one.start()
    began = time.monotonic()
    third.fail("a.txt: is broken", 2)
    wait_for(lambda: len(ended) == 2)
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
    wait_for(lambda: all(numbers == expected for numbers in seen.values()))
    for one in connected:
        one.send(0, {"kind": "number", "number": 100 + one.index})
    wait_for(lambda: len(seen[0]) == 50 + len(connected))
    assert sorted(seen[0][50:]) == [(one.index, 100 + one.index) for one in connected]
    for one in connected:
        one.leave()


def test_messages_arrive_in_order():
    talk(connect())


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
        assert (
            everywhere(together, lambda host, index, turn=turn: host.gather("turn", [turn, index]))
            == [[[turn, 0], [turn, 1], [turn, 2]]] * 3
        )


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
    wait_for(lambda: ended)
    assert {code for _, code in ended} == {1}
    assert any("the hosts wait for different things: thing 0, thing 1" in line for line, _ in ended)


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
    near = socket.create_connection(("127.0.0.1", relay("127.0.0.1", port)))
    near.settimeout(0.5)
    near.sendall(b"early")  # before the other side listens
    time.sleep(0.3)
    with socket.create_server(("127.0.0.1", port)) as server:
        far, _ = server.accept()
    assert far.recv(100) == b"early"
    far.sendall(b"answer")
    assert near.recv(100) == b"answer"
    time.sleep(0.7)
    near.sendall(b"late")
    assert far.recv(100) == b"late", "without a time limit"
    far.close()
    with pytest.raises(TimeoutError):
        near.recv(100)


def test_a_handler_gets_what_was_sent_as_json():
    first, second = connect(2)
    got = []
    second.handlers["a"] = lambda sender, message: got.append((sender, message))
    second.start()
    first.send(1, {"kind": "a", "text": "あ\n"})
    wait_for(lambda: got)
    assert got == [(0, {"kind": "a", "text": "あ\n"})] and json.dumps(got)


def test_the_end_of_a_process_is_one_line_and_waits_for_nothing():
    """Exit handlers, as JAX's, would wait for hosts that are gone; what was printed before is not lost."""
    program = (
        "import atexit, time; from tpullm.cluster.channel import end_process\n"
        "atexit.register(time.sleep, 300)\nprint('printed')\nend_process('host 1 is\\n gone', 75)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (75, "printed\n", "tpullm: host 1 is gone\n")
