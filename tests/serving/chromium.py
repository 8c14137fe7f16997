"""Headless Chromium, driven over the pipe of its DevTools protocol, so that no library is needed."""

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
SECONDS = 60
_OPTIONS = ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server")
_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio")
_REPLACED = (
    "Inspected target navigated or closed",
    "Execution context was destroyed.",
    "Cannot find context with specified id",
)


class Replaced(Exception):
    """The page that was asked went away before it answered: it reloads, or shows another address."""


class Page:
    """A page in a browser; `requests` are the addresses that it asked for, `faults` the errors in its console."""

    def __init__(self, reads: int, writes: int):
        self._from, self._to = os.fdopen(reads, "rb"), os.fdopen(writes, "wb", buffering=0)
        self._count, self._answers, self._session = 0, {}, None
        self.requests: list[str] = []
        self.faults: list[str] = []
        threading.Thread(target=self._hear, daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _hear(self) -> None:
        held = b""
        while part := self._from.read1(1 << 16):
            *messages, held = (held + part).split(b"\0")
            for message in map(json.loads, messages):
                event, told = message.get("method"), message.get("params", {})
                kind = told.get("entry", {}).get("level") or told.get("type")
                if "id" in message:
                    self._answers[message["id"]] = message
                elif event == "Network.requestWillBeSent":
                    self.requests.append(told["request"]["url"])
                elif event == "Runtime.exceptionThrown":
                    self.faults.append(json.dumps(told))
                elif event in ("Log.entryAdded", "Runtime.consoleAPICalled") and kind in ("error", "warning", "assert"):
                    self.faults.append(json.dumps(told))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        number = self._count
        asked = {"id": number, "method": method, "params": parameters}
        session = {"sessionId": self._session} if self._session else {}
        self._to.write(json.dumps(asked | session).encode() + b"\0")
        self.until(lambda: number in self._answers, method)
        answer = self._answers.pop(number)
        if answer.get("error", {}).get("message") in _REPLACED:
            raise Replaced(method)
        assert "error" not in answer, answer
        return answer["result"]

    def until(self, holds, what: str) -> None:
        end = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < end, f"it never came: {what}; {self.faults}"
            time.sleep(0.01)

    def value(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Until the page says yes. A page that is just being replaced by the next says nothing yet."""

        def holds() -> bool:
            with contextlib.suppress(Replaced):
                return self.value(f"Boolean({script})")
            return False

        self.until(holds, script)

    def open(self, url: str, width: int = 1280, language: str = "en") -> None:
        """Show a page in a window of this width, for a reader of this language."""
        screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        self.call("Emulation.setUserAgentOverride", userAgent="test", acceptLanguage=language)
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser that keeps what it writes in `folder`."""
    reads, its_writes = os.pipe()
    its_reads, writes = os.pipe()
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root
    options = [*_OPTIONS, *_QUIET, *sandbox, "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    command = ["bash", "-c", f'exec "$0" "$@" 3<&{its_reads} 4>&{its_writes}', PROGRAM, *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, pass_fds=(its_reads, its_writes), **quiet)
    os.close(its_reads)
    os.close(its_writes)
    try:
        yield Page(reads, writes)
    finally:
        process.terminate()
        process.wait()


def shown(page: Page, selector: str) -> list[str]:
    """The texts of all elements that a selector finds."""
    return page.value(f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => node.textContent)")
