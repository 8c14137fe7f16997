"""Google's APIs: a request as data, sent by the client library; its answer as JSON; the meaning of its errors.

gcloud's variables `CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU`, `…_COMPUTE` and `…_BATCH` set another address of an API. An
address with `http://` (a fake on this machine) gets no credentials.
"""

import contextlib
import functools
import importlib
import os
import re
import string
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

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
    """One call of a Google API, as its published definition has it.

    Args:
        client: class of the client library that sends it, such as `tpu_v2.TpuClient`.
        call: published name of the call, such as `CreateQueuedResource`.
        method: HTTP method.
        path: HTTP path, with fields of the message in braces, such as `v2/{parent}/queuedResources`.
        host: server of the API.
        message: the whole message, as JSON with the names of the REST form.
        body: field of the message that is the HTTP body. The other fields are in the path and the query.
        kind: type of the message. Empty is `call` and `Request`, as for most calls.
        function: method of the client. Empty is `call` in snake case.
    """

    client: str
    call: str
    method: str
    path: str
    host: str
    message: dict[str, Any]
    body: str = ""
    kind: str = ""
    function: str = ""

    def rest(self) -> dict[str, Any]:
        """The request in REST form: `method`, `url` with its query, `body`."""
        in_path = {name for _, name, _, _ in string.Formatter().parse(self.path) if name}
        query = {key: value for key, value in self.message.items() if key not in in_path | {self.body}}
        url = f"https://{self.host}/{self.path.format(**self.message)}"
        sent = {"method": self.method, "url": url + (f"?{urlencode(query)}" if query else "")}
        return sent | ({"body": self.message[self.body]} if self.body else {})


@dataclass(frozen=True)
class Collection:
    """A kind of resource with Google's standard methods (google.aip.dev/132, 133 and 135).

    Args:
        client: class of the client library, such as `tpu_v2.TpuClient`.
        host: server of the API.
        version: of the API, such as `v2`.
        name: name of the kind in calls, such as `QueuedResource`.
    """

    client: str
    host: str
    version: str
    name: str

    def create_request(self, parent: str, name: str, run: str, body: dict[str, Any]) -> Request:
        """Create the resource `name` for a run directory. Sent twice, it creates one resource."""
        field = lower_first(self.name)
        identifiers = {f"{field}Id": name, "requestId": request_id(parent, name, run)}
        message = {"parent": parent, **identifiers, field: body}
        return Request(self.client, f"Create{self.name}", "POST", self._path, self.host, message, field)

    def list(self, parent: str) -> list[dict[str, Any]]:
        """All resources of a project in a place."""
        return send(Request(self.client, f"List{self.name}s", "GET", self._path, self.host, {"parent": parent}))

    def delete(self, name: str, **options: Any) -> None:
        """Delete a resource by its full name, unless it is gone already."""
        path, message = f"{self.version}/{{name}}", {"name": name, **options}
        delete(Request(self.client, f"Delete{self.name}", "DELETE", path, self.host, message))

    @property
    def _path(self) -> str:
        return f"{self.version}/{{parent}}/{lower_first(self.name)}s"


def request_id(*parts: str) -> str:
    """The identifier by which an API recognizes a request that is sent again: the same for the same parts."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(parts)))


def create(request: Request) -> None:
    """Send a request that creates a resource, which may exist already."""
    with contextlib.suppress(Exists):
        send(request)


def delete(request: Request) -> None:
    """Send a request that deletes a resource, which may be gone already."""
    with contextlib.suppress(Missing):
        send(request)


def send(request: Request) -> Any:
    """The answer to a request, as JSON; for a list, the items of all its pages.

    Raises:
        TryAgain: no answer, or 429 or 5xx. The request may have been carried out.
        Missing, Exists: the resource does not exist, or exists already.
        UserError: the request is refused, in one line.
    """
    message = parsed(request)
    exceptions = _import("google.api_core.exceptions")
    function = getattr(_client(request.client), request.function or _snake(request.call))
    try:
        # The library retries nothing: `watch.py` decides what is sent again.
        return _as_json(function(request=message, retry=None, timeout=SECONDS))
    except exceptions.NotFound as error:
        raise Missing(error.message) from None
    except exceptions.Conflict as error:
        raise Exists(error.message) from None
    except exceptions.GoogleAPICallError as error:
        raise _refusal(request, error) from None
    except (OSError, exceptions.RetryError) as error:  # the errors of `requests` are OSErrors
        raise TryAgain(f"{request.host}: no answer ({type(error).__name__})") from None
    except _import("google.auth.exceptions").GoogleAuthError as error:
        raise UserError(f"Google credentials: not valid any more ({one_line(error)}); {LOGIN}") from None


def parsed(request: Request) -> Any:
    """The message as the client library's own type. A field that the published API lacks raises `ParseError`."""
    module, _ = request.client.split(".")
    kind = getattr(_import(f"google.cloud.{module}"), request.kind or f"{request.call}Request")
    message = kind()
    _import("google.protobuf.json_format").ParseDict(request.message, kind.pb(message))
    return message


def is_permanent(code: int, message: str) -> bool:
    """Whether an error with this RPC code would come again: no permission, no such resource, no quota."""
    quota = code == 8 and "quota" in message.lower() and not _is_rate(message)
    return quota or code in (3, 5, 7, 9, 12, 16)


def _is_rate(message: str) -> bool:
    return "per minute" in message.lower() or "RATE_LIMIT" in message


def _refusal(request: Request, error: Any) -> Exception:
    code, message = int(error.code or 0), one_line(error.message)
    if code == 429 and "quota" in message.lower() and not _is_rate(message):
        return quota_error(message)
    if code in (408, 429) or code >= 500 or (code == 400 and "not ready" in message):
        return TryAgain(f"{request.host}: {code} {message}")
    if code == 401:
        return UserError(f"Google credentials: refused ({message}); {LOGIN}")
    if code == 403:
        where = "docs/en/google-cloud.md names the APIs and roles that are needed"
        return UserError(f"{request.call}: not allowed ({message}); {where}")
    return UserError(f"{request.call}: refused ({message})")


def quota_error(message: str) -> UserError:
    """The error of a quota that is used up."""
    return UserError(f"quota: {message}; ask for more (console, IAM & Admin, Quotas), or launch something smaller")


def one_line(message: Any) -> str:
    """A message of Google's in one line of at most 300 characters."""
    text = " ".join(str(message).split())
    return re.sub(r"^[A-Z]+ https?://\S+: ", "", text)[:300]  # the library puts the address before the message


def lower_first(name: str) -> str:
    """`QueuedResource` as `queuedResource`."""
    return name[:1].lower() + name[1:]


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError("launch: Google's client libraries are not installed; run: pip install 'tpullm[gcp]'") from None


@functools.cache
def _client(name: str) -> Any:
    """The client of the library, over REST."""
    module, kind = name.split(".")
    made = getattr(_import(f"google.cloud.{module}"), kind)
    service = module.rpartition("_")[0].upper()
    address = os.environ.get(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{service}", "").rstrip("/")
    plain = address.startswith("http://")
    options: dict[str, Any] = {"credentials": _anonymous() if plain else _credentials()}
    if address:
        options |= {"host": address.split("//")[-1], "url_scheme": "http" if plain else "https"}
    return made(transport=made.get_transport_class("rest")(**options))


def _anonymous() -> Any:
    return _import("google.auth.credentials").AnonymousCredentials()


@functools.cache
def _credentials() -> Any:
    auth = _import("google.auth")
    try:
        found, _ = auth.default(scopes=[SCOPE])
        found.refresh(_import("google.auth.transport.requests").Request())
    except auth.exceptions.DefaultCredentialsError:
        raise UserError(f"Google credentials: there are none on this machine; {LOGIN}") from None
    except auth.exceptions.GoogleAuthError as error:
        raise UserError(f"Google credentials: not valid any more ({one_line(error)}); {LOGIN}") from None
    return found


def _as_json(answer: Any) -> Any:
    to_dict = _import("google.protobuf.json_format").MessageToDict
    if hasattr(answer, "operation"):  # an operation that is not waited for
        return to_dict(answer.operation)
    if hasattr(answer, "pages"):
        return [_as_json(item) for item in answer]
    return to_dict(type(answer).pb(answer)) if hasattr(type(answer), "pb") else to_dict(answer)
