"""The report of a run that grows, at an address of this machine alone: for `tpullm watch`, and beside `tpullm run`.

It reads the files of the run and nothing else, so it also shows a run of another process, or of other machines on
`gs://`. The page is made again only if somebody asks, and takes at most `SHARE` of a core.
"""

import contextlib
import functools
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tpullm.recipe import parsing
from tpullm.report import run_data
from tpullm.report.language import named
from tpullm.report.page import page
from tpullm.report.rendering import page_script, page_style, policy_hash, render
from tpullm.run.directory import RECIPE
from tpullm.system import language, storage
from tpullm.system.errors import UserError
from tpullm.system.log import say, warn

PORT = 8600
SWITCH = "TPULLM_WATCH"  # `off`: `tpullm run` starts no server
SHARE = 0.02  # of a core, at most, for making pages: 1 % of two
LEAST_SECONDS = 1.0  # between two pages; a run on `gs://` takes as long again as its files took to come
LAST_LOOK_SECONDS = 6.0  # after the end of the run: the pages that are open ask every 2 s, and get the report
_HOSTS = ("localhost", "127.0.0.1", "[::1]")  # another name leads here only if somebody's DNS says so (rebinding)


class Pages:
    """The page of a run as it is now, and over its losses those of others.

    Args:
        runs: run directories; the first is the one whose report it is.
    """

    def __init__(self, runs: Sequence[str]):
        self._runs = {name: storage.path(name) for name in runs}
        self._lock, self._next = threading.Lock(), 0.0
        self._page: tuple[bytes, str] | None = None
        self.asked = -1e9  # when somebody asked last

    def newest(self) -> tuple[bytes, str]:
        """The page and its hash. What can't be read now, as a file that is being moved, leaves the page before."""
        self.asked = time.monotonic()
        with self._lock:
            if self._page is None or self.asked >= self._next:
                is_first, began, worked = self._page is None, time.monotonic(), time.thread_time()
                try:
                    html = self._made()
                except Exception as error:  # whatever is wrong with the files of a run that is being made
                    html = None if self._page else self._message(str(error))
                if html is not None:
                    self._page = html.encode(), hashlib.sha256(html.encode()).hexdigest()[:32]
                now = time.monotonic()
                # The first page also takes what is imported and compiled once.
                pause = 0.0 if is_first else (time.thread_time() - worked) / SHARE
                self._next = now + max(LEAST_SECONDS, now - began, pause)
            return self._page

    def _made(self) -> str:
        run = next(iter(self._runs.values()))
        if not (run / RECIPE).is_file():
            return self._message("")
        recipe = parsing.load(run / RECIPE)
        text = named(recipe.language or language.chosen())
        compared = self._runs if len(self._runs) > 1 else {}
        return page(run_data.read(recipe, run, text, compared), live=True)

    def _message(self, error: str) -> str:
        text = named(language.chosen())
        return render("waiting.html", text, run=next(iter(self._runs)), error=error)


class Server(ThreadingHTTPServer):
    """Answers with the newest page."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, pages: Pages):
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.pages = listener, pages

    def handle_error(self, request, client_address) -> None:
        """A client that is gone, or that speaks another language, is nobody's loss."""


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds for a request to come
    server_version, sys_version = "tpullm", ""

    def do_GET(self) -> None:
        name, _, port = self.headers.get("Host", "").rpartition(":")
        if (name if port.isdigit() else f"{name}:{port}".lstrip(":")).lower() not in _HOSTS:
            return self.send_error(421, explain="This page is for browsers of this machine, as http://localhost.")
        if self.path != "/":
            return self.send_error(404)
        html, version = self.server.pages.newest()
        is_known = f'"{version}"' == self.headers.get("If-None-Match")
        self.send_response(304 if is_known else 200)
        for header, value in (_headers() | {"etag": f'"{version}"'}).items():
            self.send_header(header, value)
        if not is_known:
            self.send_header("content-length", str(len(html)))
        self.end_headers()
        if not is_known:
            self.wfile.write(html)

    def log_message(self, *_) -> None:
        """Nothing is told of a request."""


@functools.cache
def _headers() -> dict[str, str]:
    """Only our style sheet and our script work on the page, and it asks only this server."""
    scripts = " ".join(f"'{policy_hash(page_script(live))}'" for live in (False, True))
    style = f"'{policy_hash(page_style())}'"
    return {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": (
            f"default-src 'none'; script-src {scripts}; style-src {style}; style-src-attr 'unsafe-inline'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "x-content-type-options": "nosniff",
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def listen(port: int | None = None) -> socket.socket:
    """A listening socket of this machine alone: at `port`, else at `PORT` or, if that is taken, any other.

    Raises:
        UserError: another program listens at the port that was asked for.
    """
    try:
        return socket.create_server(("127.0.0.1", PORT if port is None else port))
    except OSError as error:
        if port is None:
            return socket.create_server(("127.0.0.1", 0))
        raise UserError(
            f"--port {port}: {os.strerror(error.errno).lower()}; choose another one, or leave it out"
        ) from None


def address(listener: socket.socket) -> str:
    """Where the page is."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def beside(run: Path) -> Iterator[None]:
    """Show the page of `run` by another process, of the lowest priority, until a moment after the end of the block.

    Nothing that happens to that process ends the run, or is waited for.
    """
    process = None
    if os.environ.get(SWITCH) != "off":
        try:
            with listen() as listener:
                # The socket is its stdin: whoever asks now waits until it is there. Ctrl-C is for the run.
                command = [sys.executable, "-m", "tpullm.report.watching", str(run), str(os.getpid())]
                nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
                process = subprocess.Popen(command, stdin=listener.fileno(), **nowhere)
                how = f"on this machine only; {SWITCH}=off switches it off"
                say(f"watch: {address(listener)} shows the model while it learns ({how})")
        except OSError as error:
            warn(f"watch: no page shows this run ({error.strerror}); `tpullm watch {run}` may")
    try:
        yield
    finally:
        if process:
            process.terminate()


def main() -> None:
    """The process of `beside`, with the socket as stdin: of the run's path, and of the parent with which it ends."""
    os.nice(19)
    run, parent = sys.argv[1:]
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    pages = Pages([run])
    server = Server(socket.socket(fileno=0), pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not ended.wait(1.0) and os.getppid() == int(parent):
        pass
    end = time.monotonic() + LAST_LOOK_SECONDS
    while time.monotonic() < end and pages.asked > end - 2 * LAST_LOOK_SECONDS:
        time.sleep(0.2)


if __name__ == "__main__":
    main()
