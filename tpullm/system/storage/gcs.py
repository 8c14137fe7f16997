"""Objects on Google Cloud Storage: requests that survive an outage, and paths with the methods of `pathlib`.

Google's own client (extra `gcp`) makes the requests, resumes a broken download at its byte, and retries by the policy
of `patiently`. The paths are etils' `epath`, which Orbax uses too. Importing the client takes 0.4 s, so `paths.remote`
imports this module for the first `gs://` path only. `STORAGE_EMULATOR_HOST` names another server for all requests,
TensorStore's too, without credentials. Obstore was not run: its interface names no checksum of an object and no clock
of the server, which identities of files and leases need.
"""

import contextlib
import functools
import http.client
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import google.auth
import requests
import urllib3.exceptions
from etils import epath
from etils.epath import gpath
from google.api_core.exceptions import PreconditionFailed
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError, TransportError
from google.auth.transport.requests import AuthorizedSession
from google.cloud.storage import Blob, Client

from tpullm.system.errors import TryAgain, UserError
from tpullm.system.log import warn
from tpullm.system.storage.foreign import check_names

PATIENCE_SECONDS = 150.0  # a longer outage ends the command
FIRST_PATIENCE_SECONDS = 20.0  # before the first answer: probably the network or the address is wrong
FIRST_WAIT_SECONDS = 0.5
SECONDS_TO_WARN = 5.0  # of an outage; shorter ones are daily
FIELDS = "items(name,size,generation,md5Hash,crc32c,updated),prefixes,nextPageToken"  # of a listing
ROLES = "roles/storage.objectAdmin and roles/storage.bucketViewer"
LOG_IN = "run `gcloud auth application-default login`, or give the machine a service account"
TRANSIENT_CODES = (408, 429, 500, 502, 503, 504)
TRANSIENT = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    TransportError,
)


class Connection(AuthorizedSession):
    """The HTTP session of this process.

    Attributes:
        reached: whether the server has answered a request well.
        warned: when an outage was last told, by this process's clock.
        clock: the server's, in its last answer; seconds since 1970.
    """

    def __init__(self):
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            credentials = AnonymousCredentials()
        else:
            credentials, _ = google.auth.default(["https://www.googleapis.com/auth/devstorage.read_write"])
        super().__init__(credentials)
        self.reached, self.warned, self.clock = False, -PATIENCE_SECONDS, time.time()
        for scheme in ("http://", "https://"):
            self.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=64))

    def request(self, *arguments: Any, **options: Any) -> requests.Response:
        """Send a request, once."""
        answer = super().request(*arguments, **options)
        self.reached |= answer.ok
        if date := answer.headers.get("Date"):
            self.clock = parsedate_to_datetime(date).timestamp()
        return answer


@functools.cache
def connection() -> Connection:
    """The session of this process; `UserError` if this machine has no credentials."""
    try:
        return Connection()
    except GoogleAuthError:
        raise UserError(f"gs://: the credentials are missing or expired; {LOG_IN}") from None


@functools.cache
def client() -> Client:
    """Google's client; listings are not cached, since several hosts write into one folder."""
    return Client(None, connection().credentials, _http=connection())


def patiently(path: Path | str) -> dict[str, Any]:
    """How to send the requests of one call: with which time limits, and what to do about an error.

    The call is retried while the server is away or busy.

    Raises:
        TryAgain: from the call: the server was away for too long.
        UserError: from the call: what the user has to correct, such as credentials, roles, the network.
        FileNotFoundError: from the call: there is no such object.
    """
    where, began, session = str(path), time.monotonic(), connection()

    def is_transient(error: Exception) -> bool:
        code = _http_status(error)
        worked = code == 401 and session.reached  # a token that is not valid any more
        if worked or code in TRANSIENT_CODES or isinstance(error, TRANSIENT) or getattr(error, "retryable", False):
            return True
        if isinstance(error, GoogleAuthError):
            raise UserError(f"{where}: the credentials are missing or expired; {LOG_IN}") from None
        if code == 401:
            raise UserError(f"{where}: no valid credentials; {LOG_IN}") from None
        if code == 403:
            bucket = where.split("/")[2]
            raise UserError(f"{where}: permission denied; grant {ROLES} on gs://{bucket} to this account") from None
        if code in (404, 410):  # the second is an upload of several requests that the server forgot
            raise FileNotFoundError(where) from None
        return False

    def wait(error: Exception) -> None:
        patience = PATIENCE_SECONDS if session.reached else FIRST_PATIENCE_SECONDS
        waited, code = time.monotonic() - began, _http_status(error)
        reason = f"{int(code)} {http.client.responses.get(code, '')}".strip() if code else ""
        reason = reason or str(error).rsplit(": ", 1)[-1].strip("()'\" ")[:120] or type(error).__name__
        if waited > patience and not session.reached:
            raise UserError(f"{where}: can't be reached ({reason}); check this machine's network") from error
        if waited > patience:
            line = f"the storage did not answer for {patience:.0f} s ({reason}); the same command resumes"
            raise TryAgain(f"{where}: {line}") from error
        if waited > SECONDS_TO_WARN and time.monotonic() - session.warned > PATIENCE_SECONDS:
            session.warned = time.monotonic()  # once for all requests that wait for the end of one outage
            warn(f"{where}: the storage does not answer ({reason}); it is asked again for {patience:.0f} s")

    retry = Retry(is_transient, FIRST_WAIT_SECONDS, maximum=8.0, timeout=None, on_error=wait)
    return {"retry": retry, "timeout": (10, 60)}  # seconds to connect, and to answer


def _http_status(error: Exception) -> int | None:
    """The HTTP status of an error, of an upload or download too."""
    return getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)


def explain(text: str) -> UserError:
    """One line for TensorStore's message about a failed request."""
    where = re.search(r"gs://[^\s:\"\']+", text)[0]
    if "PERMISSION_DENIED" in text or "code: 403" in text:
        return UserError(f"{where}: permission denied; grant {ROLES} on the bucket to this account")
    if "UNAUTHENTICATED" in text or "code: 401" in text:
        return UserError(f"{where}: no valid credentials; {LOG_IN}")
    reason = " ".join(text.split("attempts failed: ")[-1].split("[")[0].split())[:120]
    return TryAgain(f"{where}: the storage did not answer ({reason}); the same command resumes")


@dataclass(frozen=True)
class Status:
    """Facts about an object, with the names of `os.stat` and of `epath`.

    Args:
        st_size: bytes.
        generation: changes whenever the object is written.
        md5: of the content, in base64, as the server computes it; empty for an object that was put together from
            several.
        digest: of the content: what the server says, MD5 and CRC32C.
        mtime: seconds since 1970.
        is_directory: there is no object of this name, but objects below it.
    """

    st_size: int = 0
    generation: int = 0
    md5: str = ""
    digest: str = ""
    mtime: float = 0.0
    is_directory: bool = False

    @classmethod
    def of(cls, blob: Blob) -> "Status":
        """What the server said about an object."""
        md5, changed = blob.md5_hash or "", blob.updated.timestamp() if blob.updated else 0.0
        return cls(blob.size or 0, blob.generation or 0, md5, f"{md5} {blob.crc32c or ''}".strip(), changed)


@epath.register_path_cls("gs://")
class BucketPath(gpath.PosixGPath):
    """A path `gs://bucket/...`, for Orbax too; a file is one request. Unpickled elsewhere, it connects there."""

    def __reduce__(self):
        return path, (str(self),)

    def blob(self) -> Blob:
        """The object of this name, in the words of Google's client; sends nothing."""
        bucket, _, key = str(self).removeprefix("gs://").partition("/")
        return client().bucket(bucket).blob(key)

    def listed(self, **options: Any) -> tuple[dict[str, Blob], set[str]]:
        """The objects below, by name relative to this path, sorted; with a `delimiter`, the folders too."""
        bucket, _, key = str(self).removeprefix("gs://").partition("/")
        start = f"{key}/" if key else ""
        pages = client().list_blobs(bucket, prefix=start, fields=FIELDS, **options, **patiently(self))
        found = {blob.name.removeprefix(start): blob for blob in pages}
        return dict(sorted(found.items())), {name.removeprefix(start).rstrip("/") for name in pages.prefixes}

    def stat(self) -> Status:
        """Facts about the object; `FileNotFoundError` if there is none and none below."""
        with contextlib.suppress(FileNotFoundError):
            if (blob := self.blob()).name:
                blob.reload(**patiently(self))
                return Status.of(blob)
        if not self.is_dir():
            raise FileNotFoundError(str(self))
        return Status(is_directory=True)

    def exists(self) -> bool:
        """Whether there is an object of this name, or one below."""
        with contextlib.suppress(FileNotFoundError):
            return bool(self.stat())
        return False

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        with contextlib.suppress(FileNotFoundError):
            return not self.stat().is_directory
        return False

    def is_dir(self) -> bool:
        """Whether there is an object below."""
        with contextlib.suppress(FileNotFoundError):
            return bool(self.listed(max_results=1)[0])
        return False

    def open(self, mode: str = "r", encoding: str | None = None, **options: Any) -> Any:
        """Read the object as a stream, in ranges; a text without translated line ends."""
        if mode not in ("r", "rb"):
            raise NotImplementedError(f"{self}: objects are written whole")
        stream = self.blob().open("rb", **patiently(self))
        return stream if mode == "rb" else io.TextIOWrapper(stream, encoding=encoding or "utf-8")

    def read_bytes(self) -> bytes:
        """The whole object."""
        return self.blob().download_as_bytes(**patiently(self))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """The whole object as text, with line ends as `pathlib` returns them."""
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding=encoding or "utf-8", errors=errors).read()

    def write_bytes(self, data: bytes) -> int:
        """Write the whole object, atomically."""
        _send_object(self, Blob.upload_from_string, bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        """Write the whole object as UTF-8, atomically."""
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def iterdir(self) -> Iterator["BucketPath"]:
        """The children, sorted; `FileNotFoundError` if there are none, `UserError` for one that leads elsewhere."""
        objects, folders = self.listed(delimiter="/")
        if not objects and not folders:
            raise FileNotFoundError(str(self))
        for name in sorted((folders | set(objects)) - {""}):
            check_names([name], self)
            yield self / name

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """The children whose names match."""
        with contextlib.suppress(FileNotFoundError):
            yield from (child for child in self.iterdir() if child.match(pattern))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        with contextlib.suppress(*[FileNotFoundError] * missing_ok):
            self.blob().delete(**patiently(self))

    def rmtree(self, missing_ok: bool = False) -> None:
        """Remove all objects below; `FileNotFoundError` if there are none."""
        names = list(files(self))
        if not (names or missing_ok):
            raise FileNotFoundError(str(self))
        remove_all(self, names)

    def resolve(self, strict: bool = False) -> "BucketPath":
        """Itself: there are no links."""
        return self

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder exists as soon as it has content."""


def _send_object(target: BucketPath, upload: Callable, *arguments: Any) -> None:
    """Write an object; `UserError` if there is no such bucket."""
    try:
        upload(target.blob(), *arguments, **patiently(target))
    except FileNotFoundError:  # or the server forgot an upload of several requests
        check_bucket(target)
        upload(target.blob(), *arguments, **patiently(target))


def path(text: str) -> BucketPath:
    """The path of `gs://bucket/...`. TensorStore will use the same server."""
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator if "://" in emulator else f"http://{emulator}")
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    return BucketPath(text.rstrip("/"))


def files(folder: BucketPath) -> dict[str, Status]:
    """All objects below a folder, by name relative to it, sorted; one request per thousand objects."""
    with contextlib.suppress(FileNotFoundError):
        found, _ = folder.listed()
        return {name: Status.of(blob) for name, blob in found.items() if name and not name.endswith("/")}
    return {}


def upload(source: Path, target: BucketPath) -> None:
    """Write a local file as the object `target`, atomically."""
    _send_object(target, Blob.upload_from_filename, str(source))


def upload_all(source: Path, target: BucketPath, names: list[str]) -> None:
    """Send the named files of a local folder, several at once."""
    _for_each_object(lambda name: upload(source / name, target / name), names)


def download_all(source: BucketPath, target: Path, names: list[str]) -> None:
    """Fetch the named objects below a folder into a local folder, several at once.

    `UserError` names an object that would be written elsewhere: anyone who writes in the bucket chooses names.
    """
    check_names(names, source)
    for folder in {(target / name).parent for name in names}:
        folder.mkdir(parents=True, exist_ok=True)

    def download(name: str) -> None:
        (source / name).blob().download_to_filename(str(target / name), **patiently(source / name))

    _for_each_object(download, names)


def copy_all(source: BucketPath, target: BucketPath, names: list[str]) -> None:
    """Copy the named objects below a folder to another folder, on the server."""

    def copy(name: str) -> None:
        written, read, token = (target / name).blob(), (source / name).blob(), None
        while (token := written.rewrite(read, token, **patiently(source / name))[0]) is not None:
            pass  # the server copies a large object in parts

    _for_each_object(copy, names)


def remove_all(folder: BucketPath, names: list[str]) -> None:
    """Remove the named objects below a folder; missing objects are no error."""
    _for_each_object(lambda name: (folder / name).unlink(missing_ok=True), names)


def _for_each_object(work: Callable[[str], None], names: list[str]) -> None:
    """Do the same with each of several objects; after an error, begin with no other."""
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, names))


def write_if(target: BucketPath, value: dict, generation: int) -> int | None:
    """Write JSON if the object still has that generation (0: no object); the new generation, or None if it has not.

    One request with a precondition, so only one of several writers succeeds. None also after an answer that was lost:
    the request is sent again, and finds its own first write.
    """
    blob = target.blob()
    with contextlib.suppress(PreconditionFailed):
        blob.upload_from_string(json.dumps(value), if_generation_match=generation, **patiently(target))
        return blob.generation
    return None


def read_with_age(target: BucketPath) -> tuple[int, dict, float]:
    """Generation, JSON value and age in seconds by the server's clock; generation 0 if there is no object."""
    blob = target.blob()
    try:
        blob.reload(**patiently(target))
        value = json.loads(target.read_bytes())
    except FileNotFoundError:
        return 0, {}, 0.0
    return blob.generation, value, connection().clock - blob.updated.timestamp()


def remove_if(target: BucketPath, generation: int) -> None:
    """Remove an object if it still has that generation."""
    with contextlib.suppress(FileNotFoundError, PreconditionFailed):
        target.blob().delete(if_generation_match=generation, **patiently(target))


def check_bucket(target: BucketPath) -> None:
    """`UserError` if the bucket does not exist or may not be read, which Orbax needs."""
    bucket = target.blob().bucket
    try:
        bucket.reload(**patiently(target))
    except FileNotFoundError:
        where = f"gs://{bucket.name}"
        raise UserError(f"{where}: no such bucket; make it with `gcloud storage buckets create {where}`") from None
