"""The page at `/`: one HTML file that loads nothing else, and the headers that let it do nothing else."""

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable

import yaml
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from tpullm.report.language import ENGLISH
from tpullm.report.rendering import render, source

_PACKAGE = "tpullm.serving"
SCRIPTS = ("asking.js", "markdown.js", "message.js", "chat.js", "next_tokens.js", "start.js")


def front_page() -> Callable[[Request], Awaitable[Response]]:
    """What answers with the page. It is the same for everybody: what it shows it asks for, with the reader's key."""
    style = source("colours.css") + source("page.css", _PACKAGE)
    script = "".join(source(name, _PACKAGE) for name in SCRIPTS)
    words = json.dumps(page_texts(), ensure_ascii=False).replace("<", "\\u003c")  # it can't end its element
    marked = {name: Markup(text) for name, text in (("style", style), ("texts", words), ("script", script))}
    html = render("page.html", ENGLISH, _PACKAGE, **marked).encode()
    headers = {
        # With Trusted Types no script can make a text into HTML.
        "content-security-policy": (
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
            "require-trusted-types-for 'script'; trusted-types 'none'"
        ),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",  # kept, but asked for again: another version may serve here tomorrow
        "etag": f'"{hashlib.sha256(html).hexdigest()[:32]}"',
    }

    async def answer(request: Request) -> Response:
        if headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(html, headers=headers, media_type="text/html")

    return answer


def page_texts() -> dict[str, dict[str, str]]:
    """Every text of the page, by its name and its language."""
    return yaml.safe_load(source("texts.yaml", _PACKAGE))


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
