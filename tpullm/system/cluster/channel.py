"""Messages between hosts beside the devices: one TCP connection of each host to host 0, with lines of JSON.

Every host sends heartbeats, so that all learn of a host that is gone: a killed process closes its connection at once, a
machine without power or network sends nothing. So does one that is paused for a minute, while it is moved to other
hardware, say: it is named after 30 s, and waited for.

JAX's coordination service has heartbeats, barriers and a key-value store too. It does not notice a killed host at once,
it aborts the other hosts in C++ instead of ending them with one line and a code, and its client is private to JAX.
`multiprocessing.connection` frames and authenticates messages, but waits without limit for the rest of one.
"""

import contextlib
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tpullm.system import log
from tpullm.system.errors import TRY_AGAIN, HostFailed

SECONDS_BETWEEN_BEATS = 2.0
SECONDS_TO_WARN = 30.0  # of silence; 8 processes on two cores sent heartbeats up to 3 s late
SECONDS_SILENT = 150.0  # then a host is gone
SECONDS_TO_UNWIND = 5.0  # for the main thread after another host failed; it may be stuck in a collective

RESUME = "give the same command again on all hosts; a training resumes from its last checkpoint"
SECONDS_TO_SEND = 30.0
MOST_BYTES = 1 << 20  # of a message of one host; the largest that is sent is the list of source files, 20 KB

Message = dict[str, Any]


class Connection:
    """One end of a TCP connection that carries messages: one JSON object a line, each with a time limit.

    Whoever is at the other end may send anything. All that is not such a message is a `ValueError`, and no message is
    an `OSError`, so a reader has two ways to fail and no third.

    Args:
        peer: the connected socket.
        most_bytes: the longest line that is read. A longer one is refused before it is read to its end.

    Attributes:
        data: what was received of messages to come.
    """

    def __init__(self, peer: socket.socket, most_bytes: int = MOST_BYTES):
        self.most_bytes = most_bytes
        self.data = bytearray()
        self._peer, self._sending = peer, threading.Lock()
        peer.setblocking(False)  # the time limits of a socket count from each byte

    def fileno(self) -> int:
        """For `select`."""
        return self._peer.fileno()

    def send(self, message: Message) -> None:
        """Send a message; threads may send at once. `OSError` if the other end is gone, or does not read for 30 s.

        After an error the connection is hung up: a part of the message may be sent, so what follows has no meaning.
        """
        line = memoryview(json.dumps(message).encode() + b"\n")
        until = time.monotonic() + SECONDS_TO_SEND
        with self._sending:
            try:
                while line:
                    self._wait(select.POLLOUT, until)
                    with contextlib.suppress(BlockingIOError):
                        line = line[self._peer.send(line) :]
            except OSError:
                self.hang_up()
                raise

    def receive(self, seconds: float) -> Message:
        """Wait for the next message.

        Raises:
            OSError: the connection is closed, or the message is not whole after `seconds`.
            ValueError: what came is no message.
        """
        until = time.monotonic() + seconds
        while (message := self.look()) is None:
            self._wait(select.POLLIN, until)
        return message

    def _wait(self, what: int, until: float) -> None:
        poll = select.poll()
        poll.register(self._peer, what)
        if not poll.poll(1000 * max(0.0, until - time.monotonic())):
            raise TimeoutError("timed out")

    def look(self) -> Message | None:
        """The next message; None if it is not whole yet. Does not wait. Errors as of `receive`."""
        if b"\n" not in self.data:
            with contextlib.suppress(BlockingIOError):
                if not (received := self._peer.recv(1 << 16)):
                    raise ConnectionError("closed by the other end")
                self.data += received
        line, ended, rest = self.data.partition(b"\n")
        if len(line) > self.most_bytes:
            raise ValueError(f"a line of more than {self.most_bytes:,} bytes")
        if not ended:
            return None
        self.data = rest
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("a line that is not JSON") from None
        if not isinstance(message, dict):
            raise ValueError("a line that is not a JSON object")
        return message

    def hang_up(self, how: int = socket.SHUT_RDWR) -> None:
        """End both directions, so that a thread that waits in `receive` sees it; any thread may call this.

        With `SHUT_WR` send nothing more. The other end reads what was sent before, then the end.
        """
        with contextlib.suppress(OSError):
            self._peer.shutdown(how)

    def close(self) -> None:
        """Hang up and give the socket back; only by the thread that receives."""
        self.hang_up()
        self._peer.close()


class Channel:
    """This host's connections: host 0 to every other one, any other one to host 0.

    Attributes:
        index: this host.
        names: the host names, by index.
        handlers: functions of the sender and the message, by the `kind` of the message; called in a thread per peer.
        failure: set when another host failed.
        changed: notified whenever something arrived that `wait` may wait for.
        status: what each heartbeat of this host says.
    """

    def __init__(self, index: int, names: list[str], peers: dict[int, Connection]):
        self.index, self.names, self._peers = index, names, peers
        self.handlers: dict[str, Callable[[int, Message], None]] = {
            "beat": lambda sender, message: None,
            "leaves": lambda sender, message: self._left.add(sender),
            "ends": self._hear_end,
        }
        self._left: set[int] = set()
        self._closing = threading.Event()
        self.failure: HostFailed | None = None
        self.changed = threading.Condition()
        self.status: Callable[[], Message] = dict

        def beat() -> None:
            while not self._closing.wait(SECONDS_BETWEEN_BEATS):
                self._tell({"kind": "beat", **self.status()})

        listening = [threading.Thread(target=self._listen, args=(peer,), daemon=True) for peer in peers]
        self.threads = [*listening, threading.Thread(target=beat, daemon=True)]

    def start(self) -> None:
        """Start the threads that receive messages and send heartbeats. They end when all hosts have left."""
        for thread in self.threads:
            thread.start()

    def send(self, host: int, message: Message) -> None:
        """Send to host 0, or from host 0 to any host; a message to this host itself is handled at once."""
        if host == self.index:
            return self.handlers[message["kind"]](host, message)
        with contextlib.suppress(OSError):  # `_listen` notices a host that is gone
            self._peers[host].send(message)

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
        self._closing.set()
        self._tell({"kind": "ends", "host": self.index, "message": message, "code": code})

    def leave(self) -> None:
        """Tell the other hosts that this one is finished, so a closed connection is no failure."""
        self._closing.set()
        self._tell({"kind": "leaves"})
        for connection in self._peers.values():
            connection.hang_up(socket.SHUT_WR)

    def called(self, host: int) -> str:
        """A host in words."""
        return f"host {host} ({self.names[host]})"

    def _hear_end(self, sender: int, message: Message) -> None:
        host, line, code = message["host"], message["message"], message["code"]
        if host not in range(len(self.names)) or not isinstance(line, str) or type(code) is not int:
            raise ValueError("an end without host, message and code")
        self.end(host, line if line.startswith(self.called(host)) else f"{self.called(host)}: {line}", code, sender)

    def end(self, host: int, line: str, code: int = TRY_AGAIN, sender: int | None = None) -> None:
        """End all hosts because of what one of them did; the line begins with its name.

        It is raised in the main thread. The process is ended if the main thread does not get there.
        """
        with self.changed:
            if self.failure or self._closing.is_set():
                return
            self._tell({"kind": "ends", "host": host, "message": line, "code": code}, but=sender)
            if code == TRY_AGAIN:  # at once: the main thread's collective can't finish, and JAX will abort
                end_process(line, code)
            self.failure = HostFailed(line, code)
            self.changed.notify_all()
        if not self._closing.wait(SECONDS_TO_UNWIND):
            end_process(line, code)

    def _listen(self, peer: int) -> None:
        while True:
            try:
                message = self._receive(peer)
            except OSError:  # it is gone: all others end, unless it is finished
                if peer not in self._left:
                    self.end(peer, f"{self.called(peer)} stopped answering; {RESUME}", sender=peer)
                return None
            except ValueError as error:
                return self.end(peer, f"{self.called(peer)} sent {error}; {RESUME}")
            try:
                self.handlers[message["kind"]](peer, message)
            except Exception as error:  # whatever a message holds: no host waits for one that nobody hears
                problem = f"a message that can't be used ({type(error).__name__}: {error})"
                return self.end(peer, f"{self.called(peer)} sent {problem}; report this", code=1)

    def _receive(self, peer: int) -> Message:
        """The next message; names a host from which none comes, and waits for it. `OSError` if it is gone."""
        try:
            return self._peers[peer].receive(SECONDS_TO_WARN)
        except TimeoutError:
            log.warn(f"{self.called(peer)} has not answered for {SECONDS_TO_WARN:.0f} s; all hosts wait for it")
            return self._peers[peer].receive(SECONDS_SILENT - SECONDS_TO_WARN)


def end_process(line: str, code: int) -> None:
    """Exit with one last line, without the exit handlers, which would wait for hosts that are gone."""
    sys.stdout.flush()
    with os.fdopen(os.dup(2), "w", errors="backslashreplace") as stderr:
        # XLA's threads notice a host that is gone at the same moment: what they say would be last, after the line.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        log.last_words(line, stderr)
    os._exit(code)
