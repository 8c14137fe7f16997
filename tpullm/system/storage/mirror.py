"""Files that grow during training, on `gs://`, where objects can't be appended to.

They are written in a local folder. A thread sends changed files, whole, at most every few seconds. The training loop
sends them itself only before a checkpoint, which must come after the log lines of its steps.
"""

import contextlib
import tempfile
import threading
import time
from pathlib import Path

from tpullm.system import storage
from tpullm.system.errors import UserError

SECONDS_BETWEEN = 5.0
SHARE_OF_TIME = 0.1  # that sending may take: a log of many megabytes is sent less often


class Here:
    """A local folder that need not be sent anywhere."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def changed(self) -> None:
        """Do nothing."""

    wait = close = changed


class Mirror:
    """A local folder whose files are sent to a folder on `gs://`.

    Args:
        target: on `gs://`.

    Attributes:
        folder: the local folder, to write in.
    """

    def __init__(self, target: Path):
        self._target, self._temporary = target, tempfile.TemporaryDirectory(prefix="tpullm-")
        self.folder = Path(self._temporary.name)
        self._sent: dict[str, tuple[int, int]] = {}
        self._sending = threading.Lock()
        self._changed, self._closed = threading.Event(), threading.Event()
        threading.Thread(target=self._work, daemon=True, name="mirror").start()

    def changed(self) -> None:
        """Call after writing: the change is sent soon."""
        self._changed.set()

    def wait(self) -> None:
        """Send everything that was written so far; `UserError` if that fails, and then it is tried again."""
        try:
            with self._sending:
                self._send()
        except Exception as error:
            self._changed.set()
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self._target}: can't be written ({error})") from error

    def close(self) -> None:
        """`wait`, then end the thread and remove the local folder."""
        self.wait()
        self._closed.set()
        self._changed.set()
        self._temporary.cleanup()

    def _work(self) -> None:
        pause = 0.0
        while not self._closed.wait(pause) and self._changed.wait() and not self._closed.is_set():
            self._changed.clear()
            began = time.monotonic()
            with contextlib.suppress(UserError):
                self.wait()
            pause = max(SECONDS_BETWEEN, (time.monotonic() - began) * (1 / SHARE_OF_TIME - 1))

    def _send(self) -> None:
        for file in sorted(self.folder.rglob("*")):
            status = file.stat()
            state, name = (status.st_size, status.st_mtime_ns), str(file.relative_to(self.folder))
            if file.is_file() and self._sent.get(name) != state:
                (self._target / name).write_bytes(file.read_bytes())
                self._sent[name] = state


def mirrored(folder: Path) -> Here | Mirror:
    """Where to write the growing files of `folder`."""
    return Mirror(folder) if storage.is_remote(folder) else Here(folder)
