"""Paths: a `pathlib.Path`, or on `gs://` a `gcs.BucketPath` with the same methods as far as tpullm uses them.

These are `/`, name, parent, exists, is_dir, is_file, iterdir, glob, stat, open, read_text, read_bytes, write_text,
write_bytes, unlink and mkdir. For everything else there is a function in this package, which takes either kind.
"""

import re
from pathlib import Path

from tpullm.system.errors import UserError

BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_GIVEN_UP = re.compile("retry attempts failed|PERMISSION_DENIED|UNAUTHENTICATED|CURL error|UNAVAILABLE")


def path(text: str | Path) -> Path:
    """The path that the user means: an absolute local path, or a path on `gs://`.

    Raises:
        UserError: another scheme, no bucket, or Google's client is not installed.
    """
    if is_remote(text):
        if not BUCKET.fullmatch(str(text).removeprefix("gs://").split("/")[0]):
            raise UserError(f"{text}: names no bucket; write gs://BUCKET/FOLDER, the bucket in small letters")
        return remote().path(str(text))
    if "://" in str(text):
        raise UserError(f"{text}: only local paths and gs:// are supported; copy it to one of them")
    return Path(text).expanduser().absolute()


def is_remote(path: str | Path) -> bool:
    """Whether the path is on `gs://`."""
    return str(path).startswith("gs://")


def remote():
    """The module `gcs`; `UserError` if Google's client is not installed."""
    try:
        from tpullm.system.storage import gcs
    except ModuleNotFoundError as error:
        raise UserError(f"gs:// needs {error.name}, which is not installed; pip install 'tpullm[gcp]'") from None
    return gcs


def explain(error: BaseException | None) -> UserError | None:
    """One line for a request to `gs://` that failed in TensorStore; None for any other error."""
    while error is not None and not ("gs://" in str(error) and _GIVEN_UP.search(str(error))):
        error = error.__cause__ or error.__context__
    return None if error is None else remote().explain(str(error))
