"""The page at `/`, without a browser: how it is served, what it may do, and its texts."""

import asyncio
import base64
import hashlib
import re
from string import Formatter

from starlette.requests import Request

from tpullm.report.rendering import source
from tpullm.serving import shared_page
from tpullm.serving.front_page import front_page
from tpullm.serving.page import SCRIPTS, page_texts

PAGE = asyncio.run(front_page()(Request({"type": "http", "headers": []})))
HTML = PAGE.body.decode()
CODE = "".join(source(name, "tpullm.serving") for name in ("asking.js", *SCRIPTS, *shared_page.SCRIPTS))


def test_it_is_served_to_everybody_and_a_browser_that_has_it_is_told_so(served):
    answer = served.ask("/", headers={"authorization": None})
    assert answer.status == 200 and answer.text == PAGE.body
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = served.ask("/", method="HEAD", headers={"authorization": None})
    assert head.status == 200 and head.text == b"" and head.headers["etag"] == answer.headers["etag"]
    tag = answer.headers["etag"]
    again = served.ask("/", headers={"if-none-match": f'W/"other", {tag}'})
    assert again.status == 304 and again.text == b"" and again.headers["cache-control"] == "no-cache"
    assert served.ask("/", headers={"if-none-match": '"other"'}).status == 200


def test_the_policy_allows_its_own_style_and_script_and_nothing_else():
    policy = dict(part.strip().split(" ", 1) for part in PAGE.headers["content-security-policy"].split(";"))
    for name in ("style", "script"):
        (content,) = re.findall(rf"<{name}>(.*?)</{name}>", HTML, re.DOTALL)
        hashed = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{name}-src"] == f"'sha256-{hashed}'"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["connect-src"] == "'self'" and policy["require-trusted-types-for"] == "'script'"
    assert re.findall(r"<[^>]*\s(?:style|on\w+)=", HTML.partition("<script>")[0]) == [], "the policy forbids them"


def test_it_names_no_other_address_and_texts_stay_texts():
    assert re.findall(r"https?:|wss?:|[\"'(]//|@import|url\(|<(?:img|iframe|object|base)\b", HTML) == []
    assert re.findall(r'(?:src|href)="([^"]*)"', HTML) == ["data:,"]
    assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|setHTML", CODE) == []
    assert "<" not in HTML.partition('id="texts">')[2].partition("</script>")[0]


def test_every_text_exists_in_both_languages_and_is_used():
    for name, text in page_texts().items():
        assert set(text) == {"en", "ja"} and all(isinstance(value, str) and value for value in text.values()), name
        filled = [{field for _, field, _, _ in Formatter().parse(value)} for value in text.values()]
        assert filled[0] == filled[1], name
    known = set(page_texts())
    shown = set(re.findall(r'data-(?:text|label)="(\w+)"', HTML))
    shown |= set(re.findall(r'(?:translated|Trouble)\("(\w+)"', CODE)) | set(re.findall(r"TEXTS\.(\w+)", CODE))
    assert shown <= known
    words = set(re.findall(r'"(\w+)"', CODE))
    places = {"after_note", "instead_note", "in_blank_note", "words_note"}
    assert known - shown - words == places
