"""Servers for benchmarks: one that runs already, or one that is started, paused while others are asked, and stopped."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import openai

START_SECONDS = 1800  # a CPU compiles ours for minutes, if other programs want it too


class Server:
    """A server that speaks as OpenAI's API does.

    Args:
        name: what it is called in tables.
        what: an address that ends in `/v1`, or a command. In a command `{port}` stands for its port.
        log: the file for what the command says.

    Attributes:
        url: its address.
        process: the command's process; None if the server ran already.
    """

    def __init__(self, name: str, what: str, log: Path):
        self.name, self._what, self._log = name, what, log
        self.is_ours_to_start = not what.startswith(("http://", "https://"))
        self.url = f"http://127.0.0.1:{free_port()}/v1" if self.is_ours_to_start else what
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the command, and wait until it completes a text. `SystemExit` with its last words if it ends."""
        if not self.is_ours_to_start:
            return
        port = self.url.rsplit(":", 1)[1].removesuffix("/v1")
        words = shlex.split(self._what.replace("{port}", port))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise SystemExit(f"{self.name}: does not answer; it said\n{self._said()}")
            time.sleep(0.5)

    def pause(self) -> None:
        """Let it have none of the processor."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """The contrary of `pause`."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, within 30 s."""
        self.resume()
        self._signal(signal.SIGTERM)
        if self.process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            self._signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _signal(self, number: int) -> None:
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def _said(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])

    def _answers(self) -> bool:
        try:
            with openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=120) as client:
                model = client.models.list().data[0].id
                client.completions.create(model=model, prompt="a", max_tokens=1, temperature=0)
        except (openai.OpenAIError, IndexError):
            return False
        return True


@contextlib.contextmanager
def started(servers: dict[str, str], logs: Path) -> Iterator[list[Server]]:
    """Servers by their names, started one after the other. Each is paused; `in_use` lets one run.

    Args:
        servers: what `Server` takes, by name.
        logs: the folder for what the commands say.
    """
    with contextlib.ExitStack() as stack:
        made = []
        for number, (name, what) in enumerate(servers.items()):
            made.append(Server(name, what, logs / f"server-{number}.log"))
            stack.callback(made[-1].stop)
            made[-1].start()
            made[-1].pause()
        yield made


@contextlib.contextmanager
def in_use(server: Server) -> Iterator[Server]:
    """The server runs, until it is paused again."""
    server.resume()
    try:
        yield server
    finally:
        server.pause()


def named(words: list[str]) -> dict[str, str]:
    """`NAME=ADDRESS` or `NAME=COMMAND`, by name."""
    if wrong := [word for word in words if "=" not in word]:
        raise SystemExit(f"{wrong[0]}: is not NAME=ADDRESS or NAME=COMMAND")
    return dict(word.split("=", 1) for word in words)


def free_port() -> int:
    """A free TCP port, to be bound right away."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]
