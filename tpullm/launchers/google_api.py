"""Google's APIs: one request by the client library, its answer as JSON, and what an error means.

An API's address can be another one, by the variable that gcloud has for it (`CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU`,
`…_COMPUTE`, `…_BATCH`); one with `http://` (a fake on this machine) is never sent credentials.
"""

import functools
import importlib
import os
import re
from typing import Any

from tpullm.errors import TryAgain, UserError
from tpullm.launchers.target import Request

SECONDS = 60.0  # for one answer
LOGIN = "run `gcloud auth application-default login`"


class Missing(Exception):
    """There is no such thing."""


class Exists(Exception):
    """It is there already."""


def create(request: Request) -> None:
    """Send what makes a thing; that it is there is as good."""
    try:
        send(request)
    except Exists:
        return


def delete(request: Request) -> None:
    """Send what removes a thing; that it is gone is as good."""
    try:
        send(request)
    except Missing:
        return


def send(request: Request) -> Any:
    """The answer to a request, as JSON; of a list, all its items.

    Raises:
        TryAgain: no answer, or one that asks for patience (429, 5xx); what was asked may have happened.
        Missing, Exists: what they say.
        UserError: refused, in one line.
    """
    message = parsed(request)
    exceptions = _import("google.api_core.exceptions")
    function = getattr(_client(request.client), request.function or _snake(request.call))
    try:
        # Never a retry of the library's: what has to be asked again is decided in `watch.py`.
        return _as_json(function(request=message, retry=None, timeout=SECONDS))
    except exceptions.NotFound as error:
        raise Missing(error.message) from None
    except exceptions.Conflict as error:
        raise Exists(error.message) from None
    except exceptions.GoogleAPICallError as error:
        raise _refusal(request, error) from None
    except (OSError, exceptions.RetryError) as error:  # `requests` has its errors from OSError
        raise TryAgain(f"{request.host}: no answer ({type(error).__name__})") from None
    except _import("google.auth.exceptions").GoogleAuthError as error:
        raise UserError(f"Google credentials: not valid any more ({_line(error)}); {LOGIN}") from None


def parsed(request: Request) -> Any:
    """The message as the client library's own type; a field that the published API lacks is a `ParseError`."""
    module, _ = request.client.split(".")
    kind = getattr(_import(f"google.cloud.{module}"), request.kind or f"{request.call}Request")
    message = kind()
    _import("google.protobuf.json_format").ParseDict(request.message, kind.pb(message))
    return message


def is_hopeless(code: int, message: str) -> bool:
    """Whether an error of the RPC code would come again: no right, no such thing, no quota; not a lack of machines."""
    quota = code == 8 and "quota" in message.lower() and not _is_rate(message)
    return quota or code in (3, 5, 7, 9, 12, 16)


def _is_rate(message: str) -> bool:
    return "per minute" in message.lower() or "RATE_LIMIT" in message


def _refusal(request: Request, error: Any) -> Exception:
    code, message = int(error.code or 0), _line(error.message)
    if code == 429 and "quota" in message.lower() and not _is_rate(message):
        return UserError(f"quota: {message}; ask for more (console, IAM & Admin, Quotas), or launch something smaller")
    if code in (408, 429) or code >= 500 or (code == 400 and "not ready" in message):
        return TryAgain(f"{request.host}: {code} {message}")
    if code == 401:
        return UserError(f"Google credentials: refused ({message}); {LOGIN}")
    if code == 403:
        where = "docs/en/google-cloud.md names the APIs and roles that are needed"
        return UserError(f"{request.call}: not allowed ({message}); {where}")
    return UserError(f"{request.call}: refused ({message})")


def _line(error: Any) -> str:
    text = " ".join(str(error).split())
    return re.sub(r"^[A-Z]+ https?://\S+: ", "", text)[:300]  # the library puts the address before the message


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError("launch: Google's client libraries are not installed; run: pip install 'tpullm[gcp]'") from None


@functools.cache
def _client(name: str) -> Any:
    """The client, over REST."""
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
        found, _ = auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        found.refresh(_import("google.auth.transport.requests").Request())
    except auth.exceptions.DefaultCredentialsError:
        raise UserError(f"Google credentials: there are none on this machine; {LOGIN}") from None
    except auth.exceptions.GoogleAuthError as error:
        raise UserError(f"Google credentials: not valid any more ({_line(error)}); {LOGIN}") from None
    return found


def _as_json(answer: Any) -> Any:
    to_dict = _import("google.protobuf.json_format").MessageToDict
    if hasattr(answer, "operation"):  # what the service will have done; it is asked for by name, not waited for
        return to_dict(answer.operation)
    if hasattr(answer, "pages"):
        return [_as_json(item) for item in answer]
    return to_dict(type(answer).pb(answer)) if hasattr(type(answer), "pb") else to_dict(answer)
