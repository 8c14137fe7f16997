"""Objects on Google Cloud Storage: requests that survive an outage, and paths with the methods of `pathlib`.

gcsfs (extra `gcp`) makes the requests and finds credentials; the paths are etils' `epath`, which Orbax uses. Importing
gcsfs takes 0.4 s, so `paths.remote` imports this module for the first `gs://` path only. `STORAGE_EMULATOR_HOST` names
another server for all requests, TensorStore's too, without credentials.
"""

import asyncio
import contextlib
import functools
import io
import json
import os
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else gcsfs sends a gRPC request for every bucket
import aiohttp
import fsspec
import google.auth.exceptions
import requests
from etils.epath import gpath
from gcsfs.core import GCSFileSystem
from gcsfs.retry import ChecksumError, HttpError

from tpullm.system.errors import TryAgain, UserError
from tpullm.system.log import warn
from tpullm.system.storage.foreign import check_names

PATIENCE_SECONDS = 150.0  # a longer outage ends the command
FIRST_PATIENCE_SECONDS = 20.0  # before the first answer: probably the network or the address is wrong
LONGEST_WAIT_SECONDS = 8.0
SECONDS_TO_WARN = 5.0  # of an outage; shorter ones are daily
AT_ONCE = 16  # files in flight
ROLES = "roles/storage.objectAdmin and roles/storage.bucketViewer"
LOG_IN = "run `gcloud auth application-default login`, or give the machine a service account"
TRANSIENT = (
    aiohttp.ClientError,
    asyncio.TimeoutError,
    ConnectionError,
    ChecksumError,
    requests.exceptions.RequestException,
    google.auth.exceptions.TransportError,
)


class Bucket(GCSFileSystem):
    """All buckets, as fsspec's filesystem; listings are not cached, since several hosts write into one folder."""

    def __init__(self, **ignored: Any):
        timeouts = aiohttp.ClientTimeout(total=600, sock_connect=10, sock_read=60)
        token = "anon" if os.environ.get("STORAGE_EMULATOR_HOST") else None
        super().__init__(token=token, use_listings_cache=False, requests_timeout=timeouts)
        self._reached, self._warned = False, -PATIENCE_SECONDS

    async def _request(self, method: str, path: str, *args: Any, **options: Any):
        once = functools.partial(GCSFileSystem._request.__wrapped__, self, method, path, *args, **options)
        return await self._patiently(once, method, path, args)

    async def _get_file_request(self, rpath: str, lpath: str, *args: Any, **options: Any):
        once = functools.partial(GCSFileSystem._get_file_request.__wrapped__, self, rpath, lpath, *args, **options)
        return await self._patiently(once, "GET", "", (rpath,))

    async def _get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        await super()._get_file(rpath, lpath, **options | {"concurrency": 1})  # gcsfs does not retry concurrent ones

    async def _put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        try:
            await super()._put_file(lpath, rpath, **options)
        except FileNotFoundError:  # the server forgot an upload of several requests
            await super()._put_file(lpath, rpath, **options)

    async def _patiently(self, once: Callable[[], Awaitable], method: str, path: str, args: tuple) -> Any:
        """The answer to a request, which is retried while the server is away or busy."""
        began, wait = time.monotonic(), 0.5
        while True:
            try:
                answer = await once()
                self._reached = True
                return answer
            except Exception as error:
                expired = self._reached and str(getattr(error, "code", "")) == "401"  # a token that worked before
                if not expired:
                    refuse(error, method, path, args)
                if not (expired or is_transient(error)):
                    raise
                patience = PATIENCE_SECONDS if self._reached else FIRST_PATIENCE_SECONDS
                waited = time.monotonic() - began
                if waited > patience:
                    raise self._given_up(error, path, args) from error
                self._warn(error, waited, patience, path, args)
            await asyncio.sleep(wait * (0.5 + random.random()))
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def _warn(self, error: Exception, waited: float, patience: float, path: str, args: tuple) -> None:
        """Warn of an outage, once for all requests that wait for its end."""
        if waited > SECONDS_TO_WARN and time.monotonic() - self._warned > PATIENCE_SECONDS:
            self._warned = time.monotonic()
            where, reason = name(path, args), _reason(error)
            warn(f"{where}: the storage does not answer ({reason}); it is asked again for {patience:.0f} s")

    def _given_up(self, error: Exception, path: str, args: tuple) -> UserError:
        where, reason = name(path, args), _reason(error)
        if self._reached:
            wait = f"{PATIENCE_SECONDS:.0f} s"
            return TryAgain(f"{where}: the storage did not answer for {wait} ({reason}); the same command resumes")
        return UserError(f"{where}: can't be reached ({reason}); check this machine's network")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, HttpError):
        return str(error.code) in {"408", "429", "500", "502", "503", "504"}
    return isinstance(error, TRANSIENT) or bool(getattr(error, "retryable", False))


def refuse(error: Exception, method: str, path: str, args: tuple) -> None:
    """Raise `UserError` for what the user has to correct: credentials, roles, a missing bucket."""
    where, code = name(path, args), str(getattr(error, "code", ""))
    bucket = where.split("/")[2]
    if isinstance(error, google.auth.exceptions.GoogleAuthError) and not is_transient(error):
        raise UserError(f"{where}: the credentials are missing or expired; {LOG_IN}") from None
    if code == "401":
        raise UserError(f"{where}: no valid credentials; {LOG_IN}") from None
    if code == "403" or isinstance(error, OSError) and str(error).startswith("Forbidden"):
        raise UserError(f"{where}: permission denied; grant {ROLES} on gs://{bucket} to this account") from None
    if isinstance(error, FileNotFoundError) and method == "POST" and "/upload/" in path and "upload_id=" not in path:
        raise _no_bucket(bucket)


def _no_bucket(bucket: str) -> UserError:
    return UserError(f"gs://{bucket}: no such bucket; make it with `gcloud storage buckets create gs://{bucket}`")


def explain(text: str) -> UserError:
    """One line for TensorStore's message about a failed request."""
    where = re.search(r"gs://[^\s:\"\']+", text)[0]
    if "PERMISSION_DENIED" in text or "code: 403" in text:
        return UserError(f"{where}: permission denied; grant {ROLES} on the bucket to this account")
    if "UNAUTHENTICATED" in text or "code: 401" in text:
        return UserError(f"{where}: no valid credentials; {LOG_IN}")
    reason = " ".join(text.split("attempts failed: ")[-1].split("[")[0].split())[:120]
    return TryAgain(f"{where}: the storage did not answer ({reason}); the same command resumes")


def name(path: str, args: tuple) -> str:
    """`gs://bucket/object` of a request's URL or arguments, without its parameters."""
    if path.startswith("http"):
        found = re.search(r"/b/([^/?]+)(?:/o/([^?]+))?", path)
        return "gs://" + "/".join(filter(None, found.groups())) if found else "gs://"
    return "gs://" + "/".join(str(part) for part in args[:2]).removeprefix("gs://")


@dataclass(frozen=True)
class Status:
    """Facts about an object, with the names of `os.stat` and of `epath`.

    Args:
        st_size: bytes.
        generation: changes whenever the object is written.
        md5: of the content, in base64, as the server computes it; empty for an object that was put together from
            several.
        crc32c: of the content, in base64.
        mtime: seconds since 1970.
        is_directory: there is no object of this name, but objects below it.
    """

    st_size: int
    generation: int
    md5: str
    crc32c: str
    mtime: float
    is_directory: bool

    @property
    def digest(self) -> str:
        """What the server says of the content."""
        return f"{self.md5} {self.crc32c}".strip()

    @property
    def length(self) -> int:
        """Bytes."""
        return self.st_size

    @property
    def st_mtime_ns(self) -> int:
        """The generation, which changes whenever the object does."""
        return self.generation


class BucketPath(gpath.PosixGPath):
    """A path `gs://bucket/...`; a file is one request. Unpickled in another process, it connects there."""

    def __reduce__(self):
        return path, (str(self),)

    def stat(self) -> Status:
        """Facts about the object; `FileNotFoundError` if there is none and none below."""
        return _status(filesystem().info(str(self)))

    def read_bytes(self) -> bytes:
        """The whole object."""
        return filesystem().cat_file(str(self))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """The whole object as text, with line ends as `pathlib` returns them."""
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding=encoding or "utf-8", errors=errors).read()

    def write_bytes(self, data: bytes) -> int:
        """Write the whole object, atomically."""
        filesystem().pipe_file(str(self), bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        """Write the whole object as UTF-8, atomically."""
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def iterdir(self):
        """The children, sorted; `FileNotFoundError` if there are none, `UserError` for one that leads elsewhere."""
        own = str(self).removeprefix("gs://")
        for found in sorted(filesystem().ls(str(self), detail=False)):
            if found.strip("/") != own:
                name = found.strip("/").rsplit("/", 1)[-1]
                check_names([name], self)
                yield self / name

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        try:
            filesystem().rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def resolve(self, strict: bool = False) -> "BucketPath":
        """Itself: there are no links."""
        return self

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder exists as soon as it has content."""


def path(text: str) -> BucketPath:
    """The path of `gs://bucket/...`."""
    filesystem()
    return BucketPath(text.rstrip("/"))


@functools.cache
def filesystem() -> Bucket:
    """The connection of this process; also makes Orbax and TensorStore use the same server."""
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator if "://" in emulator else f"http://{emulator}")
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    for protocol in ("gs", "gcs"):
        fsspec.register_implementation(protocol, Bucket, clobber=True)
    os.environ.setdefault("EPATH_USE_TF", "false")  # an installed TensorFlow would use its own connection
    return fsspec.filesystem("gcs", finalize_on_close=True)  # epath's arguments, so both share one instance


def files(folder: Path) -> dict[str, Status]:
    """All objects below a folder, by name relative to it, sorted; one request per thousand objects."""
    found = filesystem().find(str(folder), detail=True)
    start = str(folder).removeprefix("gs://") + "/"
    named = {key.removeprefix(start): _status(info) for key, info in sorted(found.items()) if key.startswith(start)}
    return {key: status for key, status in named.items() if key and not key.endswith("/")}


def _status(info: dict) -> Status:
    changed = info.get("mtime")
    return Status(
        st_size=info.get("size") or 0,
        generation=int(info.get("generation") or 0),
        md5=info.get("md5Hash") or "",
        crc32c=info.get("crc32c") or "",
        mtime=changed.timestamp() if changed else 0,
        is_directory=info["type"] == "directory",
    )


def upload(source: Path, target: Path) -> None:
    """Write a local file as the object `target`, atomically."""
    filesystem().put_file(str(source), str(target))


def upload_all(source: Path, target: Path, names: list[str]) -> None:
    """Send the named files of a local folder, several at once."""
    _transfer(filesystem().put, source, target, names)


def download_all(source: Path, target: Path, names: list[str]) -> None:
    """Fetch the named objects below a folder into a local folder, several at once.

    `UserError` names an object that would be written elsewhere: anyone who writes in the bucket chooses names.
    """
    check_names(names, source)
    for folder in {(target / name).parent for name in names}:
        folder.mkdir(parents=True, exist_ok=True)
    _transfer(filesystem().get, source, target, names)


def copy_all(source: Path, target: Path, names: list[str]) -> None:
    """Copy the named objects below a folder to another folder, on the server."""
    _transfer(filesystem().copy, source, target, names)


def _transfer(action: Callable, source: Path, target: Path, names: list[str]) -> None:
    if names:
        action([f"{source}/{name}" for name in names], [f"{target}/{name}" for name in names], batch_size=AT_ONCE)


def remove_all(folder: Path, names: list[str]) -> None:
    """Remove the named objects below a folder; missing objects are no error."""
    for first in range(0, len(names), 1000):
        keys = [f"{folder}/{name}".removeprefix("gs://") for name in names[first : first + 1000]]
        for result in fsspec.asyn.sync(filesystem().loop, filesystem()._delete_files, keys, 100):
            if isinstance(result, Exception) and not isinstance(result, FileNotFoundError):
                raise result


def _split(target: Path) -> tuple[str, str]:
    """Bucket and name of an object."""
    bucket, _, key = str(target).removeprefix("gs://").partition("/")
    return bucket, key


def write_if(target: Path, value: dict, generation: int) -> int | None:
    """Write JSON if the object still has that generation (0: no object); the new generation, or None if it has not.

    One request with a precondition, so only one of several writers succeeds. None also after an answer that was lost:
    the request is sent again, and finds its own first write.
    """
    system, (bucket, key) = filesystem(), _split(target)
    parts = [("application/json; charset=UTF-8", {"name": key}), ("application/json", value)]
    body = "".join(f"--part\r\nContent-Type: {kind}\r\n\r\n{json.dumps(part)}\r\n" for kind, part in parts) + "--part--"
    options = {"headers": {"Content-Type": 'multipart/related; boundary="part"'}, "data": body.encode()}
    where = f"{system._location}/upload/storage/v1/b/{bucket}/o"
    try:
        made = system.call(
            "POST", where, uploadType="multipart", ifGenerationMatch=str(generation), json_out=True, **options
        )
        return int(made["generation"])
    except FileExistsError:
        return None


def read_with_age(target: Path) -> tuple[int, dict, float]:
    """Generation, JSON value and age in seconds by the server's clock; generation 0 if there is no object."""
    system = filesystem()
    try:
        headers, found = system.call("GET", "b/{}/o/{}", *_split(target))
        value = json.loads(target.read_bytes())
    except FileNotFoundError:
        return 0, {}, 0.0
    facts = json.loads(found)
    changed = system._parse_timestamp(facts["updated"])
    return int(facts["generation"]), value, (parsedate_to_datetime(headers["Date"]) - changed).total_seconds()


def remove_if(target: Path, generation: int) -> None:
    """Remove an object if it still has that generation."""
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        filesystem().call("DELETE", "b/{}/o/{}", *_split(target), ifGenerationMatch=str(generation))


def check_bucket(target: Path) -> None:
    """`UserError` if the bucket does not exist or may not be read, which Orbax needs."""
    bucket, _ = _split(target)
    try:
        filesystem().call("GET", "b/{}", bucket)
    except FileNotFoundError:
        raise _no_bucket(bucket) from None
