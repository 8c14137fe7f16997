"""A made-up law in the form of e-Gov, 法令標準XML, and the same as the JSON of its API (version 2)."""

import json
from xml.etree import ElementTree


def sentence(text: str, of: str = "Paragraph") -> str:
    return f"<{of}Sentence>\n   <Sentence>{text}</Sentence>\n  </{of}Sentence>"


def paragraph(text: str, number: str = "", after: str = "", before: str = "") -> str:
    return f"\n <Paragraph>{before}<ParagraphNum>{number}</ParagraphNum>\n  {sentence(text)}{after}</Paragraph>"


def article(number: str, title: str, caption: str, *paragraphs: str) -> str:
    about = f"<ArticleCaption>（{caption}）</ArticleCaption>" if caption else ""
    return f'\n<Article Num="{number}">{about}<ArticleTitle>{title}</ArticleTitle>{"".join(paragraphs)}</Article>'


def table(*cells: str) -> str:
    columns = "".join(f"\n<TableColumn><Sentence>{cell}</Sentence>\n</TableColumn>" for cell in cells)
    return f"<TableStruct><Table><TableRow>{columns}</TableRow></Table></TableStruct>"


COLUMNS = """<ItemSentence><Column Num="1"><Sentence>茶</Sentence></Column>
  <Column Num="2"><Sentence>葉を湯で<Ruby>淹<Rt>い</Rt></Ruby>れた飲み物をいう。</Sentence></Column></ItemSentence>"""
LEAF = f"<Subitem1><Subitem1Title>イ</Subitem1Title>{sentence('緑茶', 'Subitem1')}</Subitem1>"
ITEM = f"\n<Item><ItemTitle>一</ItemTitle>{COLUMNS}{LEAF}</Item>"
FIGURE = '<FigStruct><Fig src="./pict/1.jpg"/></FigStruct>'
PROVISO = "</Sentence>\n<Sentence Function='proviso'>ただし、水を飲む者については、この限りでない。"
WASH = "急須は、一日に一回、湯で洗わなければならない。"
DEFINED = "この法律において、次の用語の意義は、それぞれに定めるところによる。"

GENERAL = (
    article("1", "第一条", "目的", paragraph(f"この法律は、茶を飲む者の健康を守ることを目的とする。{PROVISO}")),
    article(
        "2",
        "第二条",
        "定義",
        paragraph(DEFINED, after=ITEM),
        paragraph("茶の値段は、次の表による。", "２", after=table("緑茶", "十円") + FIGURE),
    ),
    "<Section><SectionTitle>第一節　急須</SectionTitle>",
    article("3", "第三条", "急須の洗浄", paragraph(WASH)),
    article("3_2", "第三条の二", "茶さじの管理", paragraph("茶さじを持つ者は、これを他人に貸してはならない。")),
    "</Section>",
    article("4:9", "第四条から第九条まで", "", paragraph("削除")),
)
PENALTIES = (
    article("10", "第十条", "罰則", paragraph("第三条の規定に違反した者は、三日の間、茶を飲んではならない。")),
    article("125", "第百二十五条", "両罰", paragraph(WASH)),
)
IN_FORCE = "<ParagraphCaption>（施行期日）</ParagraphCaption>"
LAW = f"""<?xml version="1.0" encoding="UTF-8"?>
<Law Era="Reiwa" Lang="ja" LawType="Act" Num="3" Year="2" PromulgateMonth="4" PromulgateDay="5">
<LawNum>令和二年法律第三号</LawNum><LawBody><LawTitle Kana="ちゃのほう">茶の法</LawTitle>
<TOC><TOCLabel>目次</TOCLabel><TOCChapter><ChapterTitle>第一章　総則</ChapterTitle></TOCChapter></TOC>
<MainProvision><Chapter><ChapterTitle>第一章　総則</ChapterTitle>{"".join(GENERAL)}</Chapter>
<Chapter><ChapterTitle>第二章　罰則</ChapterTitle>{"".join(PENALTIES)}</Chapter></MainProvision>
<SupplProvision><SupplProvisionLabel>附　則</SupplProvisionLabel>
{paragraph("この法律は、公布の日から施行する。", "１", before=IN_FORCE)}
{paragraph("急須には、当分の間、適用しない。", "２")}</SupplProvision>
<SupplProvision AmendLawNum="令和三年五月六日法律第七号"><SupplProvisionLabel>附則</SupplProvisionLabel>
{article("1", "第一条", "経過措置", paragraph("この法律の施行前に飲んだ茶については、なお従前の例による。"))}
</SupplProvision>
<AppdxTable><AppdxTableTitle>別表</AppdxTableTitle>{table("紅茶", "赤い")}</AppdxTable>
</LawBody></Law>
"""


def as_json(xml: str, enforced: str = "2025-06-01") -> str:
    """The answer of the API about a law: the same elements, and the day from which this text is in force."""

    def node(element):
        children = [element.text or ""]
        for child in element:
            children += [node(child), child.tail or ""]
        return {"tag": element.tag, "attr": dict(element.attrib), "children": [one for one in children if one]}

    law = node(ElementTree.fromstring(xml.encode()))
    return json.dumps({"revision_info": {"amendment_enforcement_date": enforced}, "law_full_text": law})
