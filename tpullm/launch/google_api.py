"""Google's APIs: requests as data, how one is sent, and the meaning of an error.

A dry run prints a `Request`; `send` sends the same method, address and JSON, with the credentials that google-auth
finds. The client libraries of the APIs (70 MB installed) are used by the tests alone, which parse every request into
the published types.

gcloud's variables `CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU` and `…_BATCH` set another address of an API. An
address with `http://` (a fake on this machine) gets no credentials.
"""

import contextlib
import functools
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode, urlsplit

from tpullm.system.errors import TryAgain, UserError

SECONDS = 60.0  # for one answer
LOGIN = "run `gcloud auth application-default login`"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"  # all APIs: the roles of an account limit it, not its scopes


class Missing(Exception):
    """The resource does not exist."""


class Exists(Exception):
    """The resource exists already."""


@dataclass(frozen=True)
class Request:
    """One call of a Google API.

    Args:
        call: published name of the call, such as `CreateQueuedResource`, for messages.
        method: HTTP method.
        url: address with its query.
        body: JSON; None is no body.
    """

    call: str
    method: str
    url: str
    body: dict[str, Any] | None = None

    def rest(self) -> dict[str, Any]:
        """What a dry run shows: `method`, `url`, `body`."""
        return {"method": self.method, "url": self.url} | ({"body": self.body} if self.body else {})

    @property
    def host(self) -> str:
        """Server of the API."""
        return urlsplit(self.url).netloc


def send(request: Request) -> dict[str, Any]:
    """The answer to a request, as JSON. Nothing is sent twice: `watch.py` decides what is sent again.

    Raises:
        TryAgain: no answer, or 429 or 5xx. The request may have been carried out.
        Missing, Exists: the resource does not exist, or exists already.
        UserError: the request is refused, in one line.
    """
    service = request.host.split(".")[0]
    address = os.environ.get(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{service.upper()}", "").rstrip("/")
    url = request.url.replace(f"https://{request.host}", address or f"https://{request.host}", 1)
    session = _http_session(with_credentials=not address.startswith("http://"))
    try:
        with _valid_credentials():
            answer = session.request(request.method, url, json=request.body, timeout=SECONDS)
    except OSError as error:  # all errors of `requests` are
        raise TryAgain(f"{request.host}: no answer ({type(error).__name__})") from None
    if answer.ok:
        return answer.json()
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):  # not Google's: a proxy's, say
        message = answer.reason
    raise refusal(request, answer.status_code, one_line(message))


def pages(request: Request, items: str) -> list[dict[str, Any]]:
    """What all pages of a list have in the field `items`."""
    found, token = [], ""
    while True:
        more = f"{'&' if '?' in request.url else '?'}{urlencode({'pageToken': token})}" if token else ""
        page = send(replace(request, url=request.url + more))
        found += page.get(items, [])
        if not (token := page.get("nextPageToken", "")):
            return found


@functools.cache
def _http_session(with_credentials: bool) -> Any:
    """A session of the libraries that a dry run does without."""
    try:
        import google.auth
        import requests
        from google.auth.transport.requests import AuthorizedSession, Request
    except ImportError:
        raise UserError("launch: Google's client libraries are not installed; run: pip install 'tpullm[gcp]'") from None
    if not with_credentials:
        return requests.Session()
    with _valid_credentials():
        found, _ = google.auth.default(scopes=[SCOPE])
        found.refresh(Request())
    return AuthorizedSession(found)


@contextlib.contextmanager
def _valid_credentials() -> Iterator[None]:
    """Have an error of google-auth say what to do."""
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

    try:
        yield
    except DefaultCredentialsError:
        raise UserError(f"Google credentials: there are none on this machine; {LOGIN}") from None
    except GoogleAuthError as error:
        raise UserError(f"Google credentials: not valid any more ({one_line(error)}); {LOGIN}") from None


def refusal(request: Request, status: int, message: str) -> Exception:
    """The exception for an HTTP error."""
    if status == 404:
        return Missing(message)
    if status == 409:
        return Exists(message)
    if status == 429 and _is_quota(message):
        return quota_error(message)
    if status in (408, 429) or status >= 500 or (status == 400 and "not ready" in message):
        return TryAgain(f"{request.host}: {status} {message}")
    if status == 401:
        return UserError(f"Google credentials: refused ({message}); {LOGIN}")
    if status == 403:
        message = f"not allowed ({message}); docs/en/google-cloud.md names the APIs and roles that are needed"
        return UserError(f"{request.call}: {message}")
    return UserError(f"{request.call}: refused ({message})")


def is_permanent(code: int, message: str) -> bool:
    """Whether an error with this RPC code would come again: no permission, no such resource, no quota."""
    return (code == 8 and _is_quota(message)) or code in (3, 5, 7, 9, 12, 16)


def _is_quota(message: str) -> bool:
    """Whether a quota is used up that does not come back by itself, as those of requests a minute do."""
    return "quota" in message.lower() and "per minute" not in message.lower() and "RATE_LIMIT" not in message


def quota_error(message: str) -> UserError:
    """The error of a quota that is used up."""
    return UserError(f"quota: {message}; ask for more (console, IAM & Admin, Quotas), or launch something smaller")


def one_line(message: Any) -> str:
    """A message of Google's in one line of at most 300 characters."""
    return " ".join(str(message).split())[:300]


def request_id(*parts: str) -> str:
    """The identifier by which an API recognizes a request that is sent again: the same for the same parts."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(parts)))


@dataclass(frozen=True)
class Collection:
    """A kind of resource with Google's standard methods (google.aip.dev/132, 133 and 135).

    Args:
        api: address of the API with its version, such as `https://tpu.googleapis.com/v2`.
        name: name of the kind in calls, such as `QueuedResource`.
    """

    api: str
    name: str

    @property
    def field(self) -> str:
        """The name in addresses and messages, such as `queuedResource`."""
        return self.name[0].lower() + self.name[1:]

    def create_request(self, parent: str, name: str, run: str, body: dict[str, Any]) -> Request:
        """Create the resource `name` for a run directory. Sent twice, it creates one resource."""
        query = urlencode({f"{self.field}Id": name, "requestId": request_id(parent, name, run)})
        return Request(f"Create{self.name}", "POST", f"{self.api}/{parent}/{self.field}s?{query}", body)

    def list(self, parent: str) -> list[dict[str, Any]]:
        """All resources of a project in a place."""
        return pages(Request(f"List{self.name}s", "GET", f"{self.api}/{parent}/{self.field}s"), f"{self.field}s")

    def delete(self, name: str, query: str = "") -> None:
        """Delete a resource by its full name. It may be gone already."""
        _delete_resource(Request(f"Delete{self.name}", "DELETE", f"{self.api}/{name}{query}"))


def create(request: Request) -> None:
    """Send a request that creates a resource. The resource may exist already."""
    with contextlib.suppress(Exists):
        send(request)


def _delete_resource(request: Request) -> None:
    with contextlib.suppress(Missing):
        send(request)
