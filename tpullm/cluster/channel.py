"""What the hosts of one training say to each other beside the devices: one connection of each host to host 0.

Messages are lines of JSON. Every host sends a beat, so that one which is gone is known: a killed process closes its
connection at once, a machine without power or network is silent. JAX would notice after 100 s and end the process with
a page of text; a collective that waits for a dead host may wait for ever.
"""

import contextlib
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tpullm import log
from tpullm.errors import TRY_AGAIN, HostFailed, UserError

SECONDS_BETWEEN_BEATS = 2.0
SECONDS_SILENT = 30.0  # then a host counts as gone; on two cores shared by 8 processes a beat came up to 3 s late
SECONDS_TO_UNWIND = 5.0  # after another host failed, until a process that is stuck in a collective is ended
GO_ON = "the same command on all hosts goes on from the last save"

Message = dict[str, Any]


def free_port() -> int:
    """A port that nobody listens on, for who will listen a moment later.

    One that the system itself gives to nobody: of those that it gives, another process took it meanwhile (once in some
    thousand starts, on a busy machine).
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise UserError("hosts: no port between 20,000 and 32,000 is free; stop what listens on them")


class Channel:
    """This host's connections: host 0 to every other one, any other one to host 0.

    Attributes:
        index: this host.
        names: the host names, by index.
        handlers: by the `kind` of a message, what is called with the sender and the message, in a thread of its own.
    """

    def __init__(self, index: int, names: list[str], peers: dict[int, socket.socket]):
        self.index, self.names, self._peers = index, names, peers
        self.handlers: dict[str, Callable[[int, Message], None]] = {
            "beat": lambda sender, message: None,
            "leaves": lambda sender, message: self._left.add(sender),
            "ends": lambda sender, message: self._end(message, sender),
        }
        self._left: set[int] = set()
        self._locks = {peer: threading.Lock() for peer in peers}
        self._closing = False
        self.failure: HostFailed | None = None
        self.changed = threading.Condition()  # notified when something came that may be waited for

    def start(self) -> None:
        """Begin to listen and to beat."""
        for peer in self._peers:
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, host: int, message: Message) -> None:
        """Give a message to host 0, or from host 0 to any host; what is sent to oneself is handled at once."""
        if host == self.index:
            return self.handlers[message["kind"]](host, message)
        with contextlib.suppress(OSError), self._locks[host]:  # one that is gone is noticed where it is listened to
            self._peers[host].sendall(json.dumps(message).encode() + b"\n")

    def broadcast(self, message: Message) -> None:
        """From host 0 to every host, itself included (last: then the others are on their way)."""
        for host in [*self._peers, self.index]:
            self.send(host, message)

    def wait(self, ready: Callable[[], bool]) -> None:
        """Until `ready()`; `HostFailed` if another host failed meanwhile. Ctrl-C is heard."""
        with self.changed:
            while not ready():
                if self.failure:
                    raise self.failure
                self.changed.wait(1.0)

    def fail(self, message: str, code: int) -> None:
        """Tell every host that this one ends, and why."""
        self._closing = True
        ends = {"kind": "ends", "host": self.index, "message": message, "code": code}
        for peer in self._peers:
            self.send(peer, ends)

    def leave(self) -> None:
        """Say that this host is finished: from now on a closed connection means nothing."""
        self._closing = True
        for peer in self._peers:
            self.send(peer, {"kind": "leaves"})

    def lost(self, host: int) -> None:
        """Another host is gone: tell the others, say so, and end this process, whatever it is doing."""
        if host in self._left or self._closing:
            return
        message = f"host {host} ({self.names[host]}) stopped answering; {GO_ON}"
        self._end({"kind": "ends", "host": host, "message": message, "code": TRY_AGAIN}, host)

    def _end(self, message: Message, sender: int) -> None:
        """Another host is gone or failed: have the main thread raise that, or end without it."""
        where, text = f"host {message['host']} ({self.names[message['host']]})", message["message"]
        line, code = text if text.startswith(where) else f"{where}: {text}", message["code"]
        with self.changed:
            if self.failure or self._closing:
                return
            for peer in self._peers:
                if peer != sender:
                    self.send(peer, message)
            if code == TRY_AGAIN:  # what the main thread waits for will not come, and JAX's own alarm is on its way
                end_process(line, code)
            self.failure = HostFailed(line, code)
            self.changed.notify_all()
        time.sleep(SECONDS_TO_UNWIND)
        if not self._closing:
            end_process(line, code)

    def _listen(self, peer: int) -> None:
        try:
            self._peers[peer].settimeout(SECONDS_SILENT)
            with self._peers[peer].makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line)
                    self.handlers[message["kind"]](peer, message)
        except OSError:
            pass
        self.lost(peer)

    def _beat(self) -> None:
        while True:
            time.sleep(SECONDS_BETWEEN_BEATS)
            for peer in self._peers:
                self.send(peer, {"kind": "beat"})


def end_process(line: str, code: int) -> None:
    """One line, and the end of the process: without the exit handlers, which would wait for hosts that are gone."""
    sys.stdout.flush()
    log.last_words(line)
    os._exit(code)


def receive(port: int, count: int, name: str, seconds: float, notice: Message) -> Channel:
    """Host 0: wait until all other hosts are connected, then tell them the names and `notice`.

    Raises:
        UserError: the port can't be used, hosts are missing after `seconds`, or they contradict each other.
    """
    names, peers = {0: name}, {}
    try:
        server = socket.create_server(("", port), backlog=count)
    except OSError as error:
        raise UserError(f"hosts.coordinator: port {port} can't be used ({error.strerror}); choose another") from None
    until = time.monotonic() + seconds
    with server:
        while len(names) < count:
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                peer, _ = server.accept()
                peer.settimeout(5)
                hello = _read(peer)
            except TimeoutError:
                missing = [str(host) for host in range(count) if host not in names]
                problem = f"no answer from host(s) {', '.join(missing)} of {count} in {seconds:.0f} s; start them all"
                raise _refused(peers, problem) from None
            except (OSError, ValueError):
                continue  # something else that knocked
            host = hello.get("index")
            if hello.get("count") != count or host not in range(1, count) or host in names:
                peers[-1] = peer
                told = f"index {host} of {hello.get('count')}"
                why = f"which {names[host]} is already" if host in names else f"and host 0 counts {count}"
                raise _refused(peers, f"hosts: {hello.get('name')} says it is {told}, {why}; correct the settings")
            names[host], peers[host] = hello["name"], peer
    ordered = [names[host] for host in range(count)]
    for peer in peers.values():
        peer.sendall(json.dumps({"names": ordered, **notice}).encode() + b"\n")
    return Channel(0, ordered, peers)


def connect(host: str, port: int, index: int, count: int, name: str, seconds: float) -> tuple[Channel, Message]:
    """Any other host: connect to host 0, and hear what it tells all.

    Raises:
        UserError: nobody answers within `seconds`, or host 0 refuses.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            peer = socket.create_connection((host, port), timeout=max(1.0, until - time.monotonic()))
            peer.sendall(json.dumps({"index": index, "count": count, "name": name}).encode() + b"\n")
            peer.settimeout(max(1.0, until - time.monotonic()))
            told = _read(peer)
            break
        except (OSError, ValueError) as error:
            if time.monotonic() > until - 1:
                raise UserError(
                    f"hosts.coordinator: no answer from host 0 at {host}:{port} in {seconds:.0f} s ({error}); "
                    "start all hosts, and give all the address of host 0"
                ) from None
            time.sleep(0.2)
    if "refused" in told:
        raise UserError(told["refused"])
    return Channel(index, told["names"], {0: peer}), told


def relay(host: str, port: int) -> int:
    """A port of this machine whose connections lead to `host:port`, and stay open when that one closes.

    JAX aborts a process in C++ at the moment when the connection to its coordinator closes: before the channel can say
    who is gone. Through the relay it only hears nothing more.
    """
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            near, _ = server.accept()
            threading.Thread(target=_forward_both, args=(near, host, port), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return server.getsockname()[1]


def _forward_both(near: socket.socket, host: str, port: int) -> None:
    while True:
        try:
            far = socket.create_connection((host, port), timeout=60)
            break
        except OSError:
            time.sleep(0.1)  # host 0 has not started it yet, and JAX has a limit of its own
    far.settimeout(None)
    threading.Thread(target=_forward, args=(near, far), daemon=True).start()
    _forward(far, near)


def _forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


def _read(peer: socket.socket) -> Message:
    """The one line that a connection begins with."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = peer.recv(1)  # one at a time: what follows is for the channel
        if not byte or len(line) > 1 << 20:
            raise ConnectionResetError("the connection was closed")
        line += byte
    return json.loads(line)


def _refused(peers: dict[int, socket.socket], problem: str) -> UserError:
    for peer in peers.values():
        with contextlib.suppress(OSError):
            peer.sendall(json.dumps({"refused": problem}).encode() + b"\n")
    return UserError(problem)
