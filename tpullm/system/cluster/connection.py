"""A TCP connection that carries messages: one JSON object a line, of bounded length, each with a time limit.

Whoever is at the other end may send anything. All that is not such a message is a `ValueError`, and no message is an
`OSError`, so a reader has two ways to fail and no third.
"""

import contextlib
import json
import select
import socket
import threading
import time
from typing import Any

SECONDS_TO_SEND = 30.0
MOST_BYTES = 1 << 20  # of a message of one host; the largest that is sent is the list of source files, 20 KB

Message = dict[str, Any]


class Connection:
    """One end of a connection.

    Args:
        peer: the connected socket.
        most_bytes: the longest line that is read. A longer one is refused before it is read to its end.
    """

    def __init__(self, peer: socket.socket, most_bytes: int = MOST_BYTES):
        self.most_bytes = most_bytes
        self._peer, self._data = peer, bytearray()
        self._sending = threading.Lock()
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
        if (end := self._data.find(b"\n")) < 0:
            with contextlib.suppress(BlockingIOError):
                received = self._peer.recv(1 << 16)
                if not received:
                    raise ConnectionError("closed by the other end")
                self._data += received
            end = self._data.find(b"\n")
        if (len(self._data) if end < 0 else end) > self.most_bytes:
            raise ValueError(f"a line of more than {self.most_bytes:,} bytes")
        if end < 0:
            return None
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return _message(line)

    def has_more(self) -> bool:
        """Whether bytes of another message were received already."""
        return bool(self._data)

    def leave(self) -> None:
        """Send nothing more. The other end reads what was sent before, then the end."""
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """End both directions; a thread that waits in `receive` sees it. Any thread may call this."""
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up and give the socket back; only by the thread that receives."""
        self.hang_up()
        self._peer.close()


def _message(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("a line that is not JSON") from None
    if not isinstance(message, dict):
        raise ValueError("a line that is not a JSON object")
    return message
