"""Files that grow while a training goes on, sent to `gs://` behind its back: objects can't be appended to.

They are written in a folder of this machine. A thread sends what changed, whole, at most every few seconds; the loop
waits for it only where a save has to come after the lines of its steps.
"""

import tempfile
import threading
import time
from pathlib import Path

from tpullm import storage
from tpullm.errors import UserError

SECONDS_BETWEEN = 5.0
SHARE_OF_TIME = 0.1  # at most, so that a log of many megabytes is sent more rarely


class Here:
    """A folder of this machine: nothing has to be sent."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def changed(self) -> None:
        """Nothing."""

    def wait(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Mirror:
    """A local folder whose files are sent to a folder on `gs://`.

    Args:
        target: on `gs://`.

    Attributes:
        folder: the local one, to write in.
    """

    def __init__(self, target: Path):
        self._target, self._temporary = target, tempfile.TemporaryDirectory(prefix="tpullm-")
        self.folder = Path(self._temporary.name)
        self._sent: dict[str, tuple[int, int]] = {}
        self._turn = threading.Condition()
        self._asked = self._done = 0
        self._hurry = self._closed = False
        self._failure: UserError | None = None
        threading.Thread(target=self._work, daemon=True, name="mirror").start()

    def changed(self) -> None:
        """Something was written; it will be sent soon."""
        with self._turn:
            self._asked += 1
            self._turn.notify_all()

    def wait(self) -> None:
        """Until all that was written so far is there; `UserError` if it can't be sent."""
        with self._turn:
            self._asked += 1
            mine, self._hurry, self._failure = self._asked, True, None
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._done >= mine or self._failure)
            if self._failure:
                raise self._failure

    def close(self) -> None:
        """As `wait`, and nothing comes after."""
        self.wait()
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        self._temporary.cleanup()

    def _work(self) -> None:
        pause = 0.0
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._asked > self._done or self._closed)
                self._turn.wait_for(lambda: self._hurry or self._closed, pause)
                if self._closed:
                    return
                asked, self._hurry = self._asked, False
            began = time.monotonic()
            failure = self._try()
            pause = max(SECONDS_BETWEEN, (time.monotonic() - began) * (1 / SHARE_OF_TIME - 1))
            with self._turn:
                self._failure = failure
                self._done = self._done if failure else asked  # else it is asked for still, and sent after the pause
                self._turn.notify_all()

    def _try(self) -> UserError | None:
        try:
            self._send()
        except UserError as error:
            return error
        except Exception as error:
            return UserError(f"{self._target}: can't be written ({error})")
        return None

    def _send(self) -> None:
        for file in sorted(self.folder.rglob("*")):
            status = file.stat()
            state, name = (status.st_size, status.st_mtime_ns), str(file.relative_to(self.folder))
            if file.is_file() and self._sent.get(name) != state:
                (self._target / name).write_bytes(file.read_bytes())
                self._sent[name] = state


def mirrored(folder: Path) -> Here | Mirror:
    """Where to write the files of `folder` that grow."""
    return Mirror(folder) if storage.is_remote(folder) else Here(folder)
