"""Lines for people: who of several processes says what, and where."""

import pytest
from rich.console import Console

from tpullm.system import log


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(log, "_name", "")
    monkeypatch.setattr(log, "_only_warns", False)


@pytest.mark.parametrize(
    "name, only_warns, expected",
    [
        ("", False, "said [a]\nwarned\ntpullm: last words\n"),
        ("share 1", False, "[share 1] said [a]\n[share 1] warned\n[share 1] tpullm: last words\n"),
        ("host 1", True, "[host 1] warned\n[host 1] tpullm: last words\n"),
    ],
)
def test_every_share_speaks_and_of_the_hosts_the_others_only_warn(capsys, name, only_warns, expected):
    log.speak_as(name, only_warns)
    log.say("said [a]")
    log.warn("warned")
    log.last_words("last\n  words")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", expected)


@pytest.mark.parametrize("only_warns", [False, True])
def test_progress_on_a_terminal_counts_what_is_done(monkeypatch, capsys, only_warns):
    with log.progress("reading", 3, "files") as advance:
        advance(3)
    assert capsys.readouterr().err == "", "without one it is silent"
    terminal = Console(force_terminal=True, width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    monkeypatch.setattr(log, "console", lambda: terminal)
    log.speak_as("", only_warns)
    with log.progress("reading", 4, "files") as advance:
        advance()
        advance(2)
    shown = terminal.export_text()
    assert ("3 files" in shown and "reading" in shown) != only_warns


@pytest.mark.parametrize("total, told", [(2_500, "2.5 kB"), (3e6, "3 MB"), (4e9, "4 GB"), (6.1e12, "6.1 TB")])
def test_lines_tell_how_far_work_is_first_soon_then_every_minute(monkeypatch, capsys, total, told):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    with log.progress("reading", total, "bytes", 0.2 * total, lines=True) as advance:
        for moment, share in ((4.9, 0.2), (5.0, 0.3), (64.9, 0.2), (65.0, 0)):
            now[0] = moment
            advance(share * total, f"at {moment}")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"reading: at 5.0; 70% of {told}, ") and first.endswith("/s, 0:00:03 left")
    assert second.startswith(f"reading: at 65.0; 90% of {told}, ") and second.endswith("/s, 0:00:30 left")
