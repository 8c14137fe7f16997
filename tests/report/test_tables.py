"""Tables in a terminal: as wide as they must be, and true to their cells."""

from tpullm.report.tables import aligned, bar, show


def test_a_bar_is_full_at_most_and_never_empty():
    for share, width in {0.0: 0, 0.016: 0, 0.5 / 30 + 0.001: 1, 0.5: 15, 1.0: 30, 2.0: 30}.items():
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
    words = ["a [b]title", "name [i]size", "[red]x 1", "a long name that is 10,000", "folded"]
    assert [" ".join(line.split()) for line in lines] == words
    assert len(lines[1]) == len(lines[2]) == len(lines[3]) <= 30
    show("", ("", ""), [("a", "b")], lines="none")
    assert capsys.readouterr().out.split() == ["a", "b"], "no line of names without one"
