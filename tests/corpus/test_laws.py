"""Laws and judgments are read as they are published, in both forms of a law, and hostile ones cost little."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corpus.made_up_law import LAW, as_json
from tpullm.corpus.files import laws, opened, readers, source_files
from tpullm.recipe.schema import Source

HEAD = "茶の法（令和二年法律第三号、2020年4月5日公布）\n"


def read(path, text, name="law.xml"):
    (path / name).write_text(text, encoding="utf-8")
    return list(laws.documents(path / name))


def test_each_article_is_a_document_that_names_its_law_number_and_dates(tmp_path):
    found = read(tmp_path, LAW)
    assert [(one.language, one.date) for one in found] == [("ja", "2020-04-05")] * 10
    assert found[0].text == (
        f"{HEAD}第一章　総則\n第一条（目的）\n"
        "この法律は、茶を飲む者の健康を守ることを目的とする。ただし、水を飲む者については、この限りでない。\n"
    )
    assert found[2].text.startswith(f"{HEAD}第一章　総則　第一節　急須\n第三条（急須の洗浄）\n急須は")
    assert [one.record for one in found[2:4]] == [
        "第一章　総則　第一節　急須 第三条",
        "第一章　総則　第一節　急須 第三条の二",
    ]
    assert found[4].text.endswith("第四条から第九条まで\n削除\n")


def test_items_columns_tables_readings_and_figures(tmp_path):
    assert read(tmp_path, LAW)[1].text == (
        f"{HEAD}第一章　総則\n第二条（定義）\nこの法律において、次の用語の意義は、それぞれに定めるところによる。\n"
        "一　茶　葉を湯で淹れた飲み物をいう。\nイ　緑茶\n２　茶の値段は、次の表による。\n緑茶　十円\n"
    )


def test_supplementary_provisions_and_tables_are_told_apart(tmp_path):
    *_, first, amended, table = read(tmp_path, LAW)
    assert (
        first.text
        == f"{HEAD}附則\n（施行期日）\n１　この法律は、公布の日から施行する。\n２　急須には、当分の間、適用しない。\n"
    )
    assert amended.text.startswith(f"{HEAD}附則（令和三年五月六日法律第七号）\n第一条（経過措置）\n")
    assert table.text == f"{HEAD}別表\n紅茶　赤い\n"
    law = laws.read(tmp_path / "law.xml")
    assert [article.title for article in law.articles if article.is_main] == [
        "第一条", "第二条", "第三条", "第三条の二", "第十条", "第百二十五条"
    ]  # fmt: skip


def test_json_of_the_api_is_the_same_law_with_the_day_it_is_in_force_from(tmp_path):
    xml, answer = read(tmp_path, LAW), read(tmp_path, as_json(LAW), "law.json")
    changed = ("公布）", "公布、2025年6月1日施行）")
    assert [one.text for one in answer] == [one.text.replace(*changed) for one in xml]
    wrapped = f"<law_data_response><law_full_text>{LAW.partition('?>')[2]}</law_full_text></law_data_response>"
    assert read(tmp_path, wrapped) == xml, "XML of the API, around the law"
    assert read(tmp_path, as_json(LAW, "soon"), "law.json") == xml


TAGS = ["Article", "Paragraph", "Item", "ItemTitle", "Sentence", "Column", "Ruby", "Rt", "TableRow", "Fig", "Chapter"]
WORDS = st.sampled_from(["茶", "湯を\n  注ぐ。", "一", "　", ""])
NODES = st.recursive(
    WORDS,
    lambda inner: st.builds(
        lambda tag, parts: f"<{tag}>{''.join(parts)}</{tag}>", st.sampled_from(TAGS), st.lists(inner)
    ),
    max_leaves=30,
)


@given(st.lists(NODES, max_size=6))
def test_any_nesting_of_elements_is_read_alike_in_both_forms_and_no_reading_is_kept(tmp_path_factory, parts):
    folder = tmp_path_factory.getbasetemp()
    xml = f"<Law><LawBody><LawTitle>茶</LawTitle><MainProvision>{''.join(parts)}</MainProvision></LawBody></Law>"
    files = [folder / "any.xml", folder / "any.json"]
    for file, text in zip(files, (xml, as_json(xml, "")), strict=True):
        file.write_text(text, encoding="utf-8")
    one, other = (laws.law_in_file(str(file)) for file in files)
    assert one == other
    assert all(
        line == line.strip() and line for article in one[-1] for line in article.text.split("\n") if article.text
    )


DEEP = "<a>" * 100_000
BOMB = '<!DOCTYPE l [<!ENTITY a "茶茶">' + "".join(
    f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 20}">' for n in range(20)
)
BROKEN = {
    "<Law>": "Premature end|EndTag|can't be read",
    "<page>茶</page>": "holds no law: no Law with a LawBody is in it; download it from e-Gov",
    "<Law><LawNum>一</LawNum></Law>": "holds no law",
    '{"name": 1}': "can't be read",
    '{"tag": "Law", "children": [1]}': "can't be read",
    '{"a": ' * 50_000: "can't be read",
    f"{BOMB}]><Law><LawBody>&u;</LawBody></Law>": "declares a document type|can't be read",
    f'<!DOCTYPE l SYSTEM "http://127.0.0.1/l.dtd"><Law>{DEEP}': "can't be read",
    f"<Law><LawBody>{DEEP}": "can't be read",
    '<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]><Law><LawBody>&x;</LawBody></Law>': "declares a document",
}


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_law_is_told_in_one_line_and_hostile_files_end_at_once(tmp_path, text):
    with pytest.raises(opened.Unreadable, match=BROKEN[text]) as told:
        read(tmp_path, text)
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


def law_of(inner):
    """A law with these parts of one sentence."""
    return f"<Law><LawBody><LawTitle>茶</LawTitle><Preamble><Sentence>{inner}</Sentence></Preamble></LawBody></Law>"


MANY, TEA = 40_000, "茶を飲む者の健康を守ることを目的とする。" * 5
LONG = {
    "spaces": (law_of(f"茶{' ' * MANY}湯"), f"茶{' ' * MANY}湯"),
    "columns": (law_of("<Column/>" + f"<Column>{TEA}</Column>" * MANY + "<Column/>"), "　".join([TEA] * MANY)),
    "strings": (as_json(law_of("@")).replace('"@"', ", ".join([f'"{TEA}"'] * MANY)), TEA * MANY),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_sentence_takes_time_in_proportion_to_its_length(tmp_path, name):
    text, expected = LONG[name]
    (tmp_path / "law").write_text(text, encoding="utf-8")
    began = time.thread_time()
    *_, [[*_, found, _]] = laws.law_in_file(str(tmp_path / "law"))
    assert found == expected
    assert time.thread_time() - began < 2, "0.1 s; where it is quadratic, 5 to 21 s"


@pytest.mark.parametrize("charset", ["utf-16le", "utf-16be"])
def test_laws_and_judgments_in_utf_16_are_read_as_in_utf_8(tmp_path, charset):
    for name, text in (("a.xml", LAW), ("a.json", as_json(LAW)), ("a.txt", JUDGMENT)):
        expected = read(tmp_path, text, name)
        (tmp_path / name).write_bytes(f"\ufeff{text}".encode(charset))
        found = list(laws.documents(tmp_path / name))
        assert [one.text for one in found] == [one.text for one in expected]
        assert [one.record for one in found] == [one.record for one in expected]


def test_a_file_that_is_too_large_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(laws, "MOST_BYTES", 1 << 20)
    (tmp_path / "a.xml").write_text("<Law>" + " " * (1 << 20))
    with pytest.raises(Exception, match="is larger than 1 MiB"):
        laws.law_in_file(str(tmp_path / "a.xml"))
    [raw] = read(tmp_path, "茶" * (1 << 20), "a.txt")
    assert raw.dropped == "too large" and raw.problem == "is larger than 1 MiB"


JUDGMENT = """令和２年１２月３日判決言渡　同日原本受領
令和元年（ワ）第１２３４号　茶代請求事件
　　主　文
１　被告は、茶を返せ。
"""


def test_text_is_a_judgment_with_its_case_and_date(tmp_path):
    [raw] = read(tmp_path, JUDGMENT, "a.txt")
    assert (raw.text, raw.record, raw.date) == (JUDGMENT, "令和元年(ワ)第1234号", "2020-12-03")
    [old] = read(tmp_path, "昭和５２年（行ツ）第１２号\n昭和五十三年判決\n主文", "b.txt")
    assert (old.record, old.date) == ("昭和52年(行ツ)第12号", "")
    [impossible] = read(tmp_path, "令和２年１３月３日判決", "c.txt")
    assert impossible.date == ""
    (tmp_path / "d.txt").write_bytes(b"\xff\x00\xfe" * 9)
    assert next(laws.documents(tmp_path / "d.txt")).dropped


def test_a_source_of_laws_is_a_folder_of_all_forms(tmp_path):
    for name, text in (
        ("a.xml", LAW),
        ("b/c.json", as_json(LAW)),
        ("d.txt", JUDGMENT),
        ("e.xml", "<a/>"),
        ("f.csv", ""),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    source = Source("law", "law", str(tmp_path), licence="none")
    found = source_files.find(source, tmp_path)
    assert [file.path.name for file in found.files] == ["a.xml", "d.txt", "e.xml", "c.json"]
    assert found.skipped == {"unknown extension (.csv)": ["f.csv"]}
    documents = [raw for file in found.files for raw in readers.read(file, source)]
    assert len(documents) == 10 + 1 + 1 + 10
    assert [raw.problem[:12] for raw in documents if raw.dropped] == ["holds no law"]


@pytest.mark.parametrize(
    ("name", "articles", "main"),
    [("gyosei_tetsuzuki_405AC0000000088.xml", 69, 48), ("tokkyo_334AC0000000121.json", 460, 291)],
)
def test_all_articles_of_a_real_law_are_read(real_text, name, articles, main):
    path = real_text / "law" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    law = laws.read(path)
    assert sum(article.title.startswith("第") for article in law.articles) == articles
    assert sum(article.is_main for article in law.articles) == main
    text = "".join(raw.text for raw in laws.documents(path))
    # Everything that the file says in a sentence is there.
    raw = path.read_text("utf-8")
    if path.suffix == ".json":
        sentences = [c for c in _strings(json.loads(raw)["law_full_text"], "Sentence")]
    else:
        sentences = [c for c in _strings(json.loads(as_json(raw))["law_full_text"], "Sentence")]
    assert len(sentences) > 280 and [one for one in sentences if one.strip() not in text] == []


def _strings(node, tag):
    if isinstance(node, dict):
        if node["tag"] == tag:
            yield "".join(child for child in node["children"] if isinstance(child, str))
        for child in node["children"]:
            yield from _strings(child, tag)
