"""What several tests of hosts share."""

import threading
from collections.abc import Iterator

import pytest

from tests.system.cluster.channels import end_threads
from tpullm.system.cluster import channel


class Ended(BaseException):
    """Instead of the end of the process."""


@pytest.fixture
def ended(monkeypatch) -> Iterator[list[tuple[str, int]]]:
    """The lines and codes with which hosts exited."""
    found: list[tuple[str, int]] = []

    def end(line: str, code: int) -> None:
        found.append((line, code))
        raise Ended

    monkeypatch.setattr(channel, "end_process", end)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(channel, "SECONDS_TO_UNWIND", 0.2)
    yield found
    end_threads()
