"""What a client is told when it gets no answer, in the form of OpenAI's errors, and bodies that are no request."""

import json
from typing import Any

# The `type` of an error by its status; any other status below 500 is an error of the request.
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_HEADERS = {429: {"retry-after": "1"}, 503: {"retry-after": "5"}, 401: {"www-authenticate": "Bearer"}}


class Refusal(Exception):
    """A request that is not answered, in the form of OpenAI's errors.

    Args:
        message: one sentence or two: what is wrong, and what to do.
        status: of HTTP.
        param: the field of the request that is wrong.
        code: a word for programs, such as `model_not_found`.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = _HEADERS.get(status, {})

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that a body is; `Refusal` if it is none."""

    def no_number(name: str) -> float:
        raise ValueError(f"{name} is no number of JSON")

    try:
        text = raw.decode("utf-8")
        body = json.loads(text, parse_constant=no_number)
        if "\\ud" in text.lower():
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise Refusal("the body is not UTF-8; send JSON in UTF-8") from None
    except UnicodeEncodeError:
        raise Refusal("the body holds half of a surrogate pair, which is no character; repair the text") from None
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON ({str(error)[:200]})") from None
    if not isinstance(body, dict):
        raise Refusal("the body is not a JSON object; send the fields of a request, {...}")
    return body
