"""Upload a host's log to the bucket, in pieces, while it grows. A thread uploads; a writer never waits."""

import sys
import threading
from pathlib import Path

from tpullm import storage
from tpullm.errors import UserError

SECONDS_BETWEEN_UPLOADS = 5.0
PIECE_CHARACTERS = 1 << 18  # each upload sends the last piece whole, so a piece must stay small


class Log:
    """The log of one host.

    Args:
        folder: receives the pieces, `HOST.NUMBER.log`.
        host: index of the host.
    """

    def __init__(self, folder: Path, host: int):
        self._folder, self._host = folder, host
        self._pieces = [""]
        self._sent = 0  # pieces that will not grow and are uploaded
        self._changed = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def line(self, text: str) -> None:
        """Add a line, and write it to stderr (the machine's serial console keeps it)."""
        sys.stderr.write(text + "\n")
        with self._changed:
            if len(self._pieces[-1]) > PIECE_CHARACTERS:
                self._pieces.append("")
            self._pieces[-1] += text + "\n"

    def close(self) -> None:
        """Upload the rest."""
        self._closing.set()
        self._thread.join(60.0)

    def _run(self) -> None:
        sent = ""
        while True:
            last = self._closing.wait(SECONDS_BETWEEN_UPLOADS)
            with self._changed:
                pieces = list(self._pieces)
            if pieces[-1] != sent or len(pieces) > self._sent + 1:
                try:
                    self._send(pieces)
                    sent = pieces[-1]
                except (OSError, UserError):  # the next upload has these lines too
                    pass
            if last:
                return

    def _send(self, pieces: list[str]) -> None:
        for number in range(self._sent, len(pieces)):
            storage.write_text(self._folder / f"{self._host:04d}.{number:04d}.log", pieces[number])
            self._sent = min(number + 1, len(pieces) - 1)
