"""What a client is told when it gets no answer, in the form of OpenAI's errors."""

from typing import Any

# The `type` of an error by its status; any other status below 500 is an error of the request.
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that is not answered.

    Args:
        message: one sentence or two: what is wrong, and what to do.
        status: of HTTP.
        param: the field of the request that is wrong.
        code: a word for programs, such as `model_not_found`.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def headers(self) -> dict[str, str]:
        """The headers that go with the status."""
        return {429: {"retry-after": "1"}, 503: {"retry-after": "5"}, 401: {"www-authenticate": "Bearer"}}.get(
            self.status, {}
        )

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def too_long(count: str, context: int) -> Refusal:
    """The refusal of a prompt that leaves no room for an answer; `count` says how long it is."""
    return Refusal(
        f"the prompt has {count}, and the model's context holds {context:,} with the answer; shorten it",
        code="context_length_exceeded",
    )
