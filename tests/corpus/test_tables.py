"""Of a table the column with the text is found, or the one that the source names; without one its rows are lines."""

import pytest

from tests.corpus.desktop_files import package, read
from tpullm.corpus.document import NOT_READ

ROWS = [
    "1;7;The film was long, but I liked it.;http://example.com/a-long-address-of-a-page",
    '2;8;"A ""good"" film\nall in all.";x',
]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_column_of_text_is_found(tmp_path, delimiter):
    path = tmp_path / ("a.tsv" if delimiter == "\t" else "a.csv")
    lines = ["id;stars;review;page", *ROWS, "3;9;;y"]
    path.write_text("\n".join(lines).replace(", but", " but").replace(";", delimiter), encoding="utf-8-sig")
    raws = read(path)
    assert [raw.text for raw in raws] == ["The film was long but I liked it.\n", 'A "good" film\nall in all.\n']
    assert [raw.record for raw in raws] == ["row 2", "row 3"] and raws[0].noted == "its column 'review' is read"
    named = read(path, text_key="stars")
    assert [raw.text for raw in named] == ["7\n", "8\n", "9\n"] and named[0].noted == ""
    (raw,) = read(path, text_key="title")
    told = "has no column 'title': its columns are id, stars, review, page; name another one"
    assert (raw.dropped, raw.problem) == (NOT_READ, told)


def test_a_column_without_a_name_has_its_number(tmp_path):
    """No row of names: a column has a number twice, and the first row is read too."""
    (tmp_path / "a.csv").write_text("1,1,This is a film that I liked.\n2,2,This is one that I left.\n")
    raws = read(tmp_path / "a.csv")
    assert [(raw.record, raw.noted) for raw in raws] == [(f"row {n}", "its column number 3 is read") for n in (1, 2)]


def test_a_table_without_text_is_lines_also_in_the_encoding_of_excel_in_japan(tmp_path):
    (tmp_path / "a.csv").write_bytes("名前,年齢,住所\r\n佐藤太郎,30,東京\r\n三木英子,25,大阪\r\n".encode("cp932"))
    (raw,) = read(tmp_path / "a.csv")
    assert raw.text == "名前\t年齢\t住所\n佐藤太郎\t30\t東京\n三木英子\t25\t大阪\n"


def test_a_workbook_is_read_sheet_by_sheet(tmp_path):
    pytest.importorskip("python_calamine")
    name = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    links = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet"
    cells = [["note", "n"], ["The first note is long enough.", "1.5"], ["The second note is long too.", "2"]]
    made = (
        "".join(f'<c r="{"AB"[at]}{number}" t="inlineStr"><is><t>{cell}</t></is></c>' for at, cell in enumerate(row))
        for number, row in enumerate(cells, 1)
    )
    rows = "".join(f'<row r="{number}">{row}</row>' for number, row in enumerate(made, 1))
    packages = "http://schemas.openxmlformats.org/package/2006/relationships"
    sheet = '<sheet name="A" sheetId="1" r:id="r1"/>'
    whole = f'<Relationship Id="r1" Type="{kind.replace("worksheet", "officeDocument")}" Target="xl/workbook.xml"/>'
    relations = f'<Relationship Id="r1" Type="{kind}" Target="worksheets/sheet1.xml"/>'
    parts = {
        "xl/workbook.xml": f"<workbook {name} {links}><sheets>{sheet}</sheets></workbook>",
        "_rels/.rels": f'<Relationships xmlns="{packages}">{whole}</Relationships>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{packages}">{relations}</Relationships>',
        "xl/worksheets/sheet1.xml": f"<worksheet {name}><sheetData>{rows}</sheetData></worksheet>",
    }
    raws = read(package(tmp_path / "a.xlsx", parts))
    assert [(raw.text, raw.noted) for raw in raws] == [
        (f"{row[0]}\n", "its column 'note' is read") for row in cells[1:]
    ]
    (tmp_path / "b.xlsx").write_bytes(b"PK\3\4")
    (raw,) = read(tmp_path / "b.xlsx")
    assert raw.dropped == NOT_READ and raw.problem.startswith("is broken (")
