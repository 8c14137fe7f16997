"""Tables in a terminal: as wide as they must be, and true to their cells."""

import pytest

from tpullm.report.tables import aligned, bar, show


@pytest.mark.parametrize(
    ("share", "width"), [(0.0, 0), (0.016, 0), (0.5 / 30 + 0.001, 1), (0.5, 15), (1.0, 30), (2.0, 30)]
)
def test_a_bar_is_full_at_most_and_never_empty(share, width):
    assert bar(share) == ("█" * width or "▏")


def test_columns_are_as_wide_as_their_widest_cell(monkeypatch):
    rows = [("a", "bb", "last"), ("ccc", "d", "")]
    for columns, told in ((13, "a    bb  last\nccc   d"), (12, "a    bb\n    last\nccc   d")):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert aligned(rows) == told


def test_cells_stay_what_they_are(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    rows = [("[red]x", "1"), None, ("a long name that is folded", "10,000")]
    show("a [b]title", ("name", "[i]size"), rows, right=[1], folded=[0])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["a", "[b]title"],
        ["name", "[i]size"],
        ["[red]x", "1"],
        ["a", "long", "name", "that", "is", "10,000"],
        ["folded"],
    ]
    assert len(lines[1]) == len(lines[2]) == len(lines[3]) <= 30


def test_a_table_without_names_has_no_line_of_names(capsys):
    show("", ("", ""), [("a", "b")], lines="none")
    assert capsys.readouterr().out.split() == ["a", "b"]
