"""Messages between hosts beside the devices: one TCP connection of each host to host 0, with lines of JSON.

Every host sends heartbeats, so that all learn of a host that is gone: a killed process closes its connection at once, a
machine without power or network sends nothing for 30 s. JAX's coordination service has heartbeats too, but it does not
notice a killed host at once, and it aborts the other hosts in C++ instead of ending them with one line and a code.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tpullm import log
from tpullm.errors import TRY_AGAIN, HostFailed

SECONDS_BETWEEN_BEATS = 2.0
SECONDS_SILENT = 30.0  # then a host is gone; 8 processes on two cores sent heartbeats up to 3 s late
SECONDS_TO_UNWIND = 5.0  # for the main thread after another host failed; it may be stuck in a collective

RESUME = "the same command on all hosts resumes from the last checkpoint"

Message = dict[str, Any]


class Channel:
    """This host's connections: host 0 to every other one, any other one to host 0.

    Attributes:
        index: this host.
        names: the host names, by index.
        handlers: functions of the sender and the message, by the `kind` of the message; called in a thread per peer.
        failure: set when another host failed.
        changed: notified whenever something arrived that `wait` may wait for.
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
        self.changed = threading.Condition()

    def start(self) -> None:
        """Start the threads that receive messages and send heartbeats."""
        for peer in self._peers:
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, host: int, message: Message) -> None:
        """Send to host 0, or from host 0 to any host; a message to this host itself is handled at once."""
        if host == self.index:
            return self.handlers[message["kind"]](host, message)
        with contextlib.suppress(OSError), self._locks[host]:  # `_listen` notices a host that is gone
            self._peers[host].sendall(json.dumps(message).encode() + b"\n")

    def broadcast(self, message: Message) -> None:
        """Send from host 0 to every host, last to itself: what it does then can't delay the others' messages."""
        for host in [*self._peers, self.index]:
            self.send(host, message)

    def _tell(self, message: Message, but: int | None = None) -> None:
        for peer in self._peers:
            if peer != but:
                self.send(peer, message)

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`; `HostFailed` if another host failed meanwhile. Ctrl-C interrupts."""
        with self.changed:
            while not ready():
                if self.failure:
                    raise self.failure
                self.changed.wait(1.0)

    def fail(self, message: str, code: int) -> None:
        """Tell the other hosts that this one ends with an error."""
        self._closing = True
        self._tell({"kind": "ends", "host": self.index, "message": message, "code": code})

    def leave(self) -> None:
        """Tell the other hosts that this one is finished, so a closed connection is no failure."""
        self._closing = True
        self._tell({"kind": "leaves"})

    def lost(self, host: int) -> None:
        """Another host is gone: end all hosts, unless that host or this one is finished."""
        if host in self._left or self._closing:
            return
        message = f"host {host} ({self.names[host]}) stopped answering; {RESUME}"
        self._end({"kind": "ends", "host": host, "message": message, "code": TRY_AGAIN}, host)

    def _end(self, message: Message, sender: int) -> None:
        """Another host failed: raise that in the main thread; end the process if the main thread does not get there."""
        where, text = f"host {message['host']} ({self.names[message['host']]})", message["message"]
        line, code = text if text.startswith(where) else f"{where}: {text}", message["code"]
        with self.changed:
            if self.failure or self._closing:
                return
            self._tell(message, but=sender)
            if code == TRY_AGAIN:  # at once: the main thread's collective can't finish, and JAX will abort
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
            self._tell({"kind": "beat"})


def end_process(line: str, code: int) -> None:
    """Exit with one line, without the exit handlers, which would wait for hosts that are gone."""
    sys.stdout.flush()
    log.last_words(line)
    os._exit(code)
