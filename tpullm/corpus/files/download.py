"""Downloads the file of a source, once: it is kept beside the run."""

import hashlib
import http.client
import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tpullm import storage
from tpullm.errors import UserError

TIMEOUT_SECONDS = 60


def is_url(path: str) -> bool:
    """Whether `path` is an http(s) URL."""
    return path.startswith(("http://", "https://"))


def place(url: str, folder: Path) -> Path:
    """Where in `folder` the file at `url` is kept."""
    name = Path(urllib.parse.urlsplit(url).path).name or "index.html"
    return folder / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"


def fetch(url: str, folder: Path) -> Path:
    """The file at `url`, downloaded into `folder` unless it is there already.

    A download that breaks off leaves no file, so the next run starts it again.
    """
    path = place(url, folder)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        storage.remove_partials(folder)
        with storage.atomic_file(path) as temporary:
            _download(url, temporary)
    return path


def _download(url: str, path: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "tpullm"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response, open(path, "wb") as file:
            shutil.copyfileobj(response, file)
            expected = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answers {error.code} {error.reason}; correct the source's path") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{url}: cannot be downloaded ({reason}); check the address and the network, or download it yourself and "
            "write the file's path in its place"
        ) from None
    size = path.stat().st_size
    if expected is not None and size != int(expected):
        raise UserError(f"{url}: the download broke off after {size} of {expected} bytes; run the same command again")
