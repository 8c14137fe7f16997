"""Lines for people: who of several processes says what, and where."""

import pytest

from tpullm import log


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


def test_progress_is_silent_without_a_terminal(capsys):
    with log.progress("reading", 3, "files") as advance:
        advance(3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("only_warns", [False, True])
def test_progress_on_a_terminal_counts_what_is_done(monkeypatch, only_warns):
    from rich.console import Console

    terminal = Console(force_terminal=True, width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    monkeypatch.setattr(log, "console", lambda: terminal)
    log.speak_as("", only_warns)
    with log.progress("reading", 4, "files") as advance:
        advance()
        advance(2)
    shown = terminal.export_text()
    assert ("3 files" in shown and "reading" in shown) != only_warns
