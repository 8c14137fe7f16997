"""`tpullm serve` in this process: started, asked, stopped."""

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable

from tests.conftest import wait_until
from tpullm.cli import main
from tpullm.system.cluster.handshake import free_port


def serve_until(words: list[str], ask: Callable, stop: int = signal.SIGTERM) -> tuple[list, int]:
    """Serve on a free port until `ask`, a function of the address, is through: what it gives, and the exit code."""
    before, port = signal.signal(stop, signal.default_int_handler), free_port()  # as `cli.entry` has it
    got, ended, url = [], threading.Event(), f"http://127.0.0.1:{port}"

    def client():
        try:
            wait_until(lambda: ended.is_set() or is_ready(url))
            got.append(ask(url))
        finally:
            if not ended.is_set():
                os.kill(os.getpid(), stop)

    thread = threading.Thread(target=client)
    thread.start()
    try:
        code = main.main(["serve", *words, "--port", str(port)])
    finally:
        ended.set()
        thread.join()
        signal.signal(stop, before)
    return got, code


def is_ready(url: str) -> bool:
    """Whether the server answers."""
    try:
        return get(f"{url}/health") == {"status": "ok"}
    except OSError:
        return False


def get(url: str, **headers: str) -> dict:
    """The JSON at an address; `OSError` if it is refused."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as response:
        return json.load(response)
