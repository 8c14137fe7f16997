"""The page at `/`: one HTML file that loads nothing else, and the headers that let it do nothing else."""

import base64
import hashlib
import json
from importlib import resources

from starlette.responses import Response

from tpullm.report.html import colours

SCRIPTS = ("asking.js", "chat.js", "next_tokens.js", "start.js")


class FrontPage:
    """The page, as it is for everybody: what it shows it asks the server for, with the reader's key."""

    def __init__(self) -> None:
        style, script = colours() + _file("page.css"), "".join(map(_file, SCRIPTS))
        page = _file("page.html")
        for name, content in (("style", style), ("texts", _data(texts())), ("script", script)):
            page = page.replace("{{" + name + "}}", content)
        self.html = page.encode()
        self.headers = {
            "content-security-policy": _policy(style, script),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",  # kept, but asked for again: another version may serve here tomorrow
            "etag": f'"{hashlib.sha256(self.html).hexdigest()[:32]}"',
        }

    def response(self, known: str) -> Response:
        """The page, or 304 if it is `known`, the header If-None-Match."""
        if self.headers["etag"] in known:
            return Response(status_code=304, headers=self.headers)
        return Response(self.html, headers=self.headers, media_type="text/html")


def texts() -> dict[str, dict[str, str]]:
    """Every text of the page, by its name and its language."""
    import yaml

    return yaml.safe_load(_file("texts.yaml"))


def _policy(style: str, script: str) -> str:
    """Content-Security-Policy. With Trusted Types no script can make a text into HTML."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _data(value: dict) -> str:
    """JSON that can't end the element it stands in."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
