"""Files that grow during training, on `gs://`, where objects can't be appended to.

They are written in a local folder. A thread sends changed files, whole, at most every few seconds. The training loop
waits for it only before a checkpoint, which must come after the log lines of its steps.
"""

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
        self._turn = threading.Condition()
        self._asked = self._done = 0
        self._hurry = self._closed = False
        self._failure: UserError | None = None
        threading.Thread(target=self._work, daemon=True, name="mirror").start()

    def changed(self) -> None:
        """Call after writing: the change is sent soon."""
        with self._turn:
            self._asked += 1
            self._turn.notify_all()

    def wait(self) -> None:
        """Wait until everything written so far is sent; `UserError` if that fails."""
        with self._turn:
            self._asked += 1
            mine, self._hurry, self._failure = self._asked, True, None
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._done >= mine or self._failure)
            if self._failure:
                raise self._failure

    def close(self) -> None:
        """`wait`, then end the thread and remove the local folder."""
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
                self._done = self._done if failure else asked  # after a failure: again after the pause
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
    """Where to write the growing files of `folder`."""
    return Mirror(folder) if storage.is_remote(folder) else Here(folder)
