"""The page at `/`: one HTML file that loads nothing else, and the headers that let it do nothing else."""

import hashlib
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from tpullm.serving.page import page


def front_page() -> Callable[[Request], Awaitable[Response]]:
    """What answers with the page. It is the same for everybody: what it shows it asks for, with the reader's key."""
    html, policy = page(["asking.js"], "; connect-src 'self'; frame-ancestors 'none'", {}, is_file=False)
    content = html.encode()
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",  # kept, but asked for again: another version may serve here tomorrow
        "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    }

    async def answer(request: Request) -> Response:
        if headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type="text/html")

    return answer
