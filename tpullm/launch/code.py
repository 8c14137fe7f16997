"""This code as a wheel, named by the hash of its content. The same files give the same bytes on any machine.

The files are those that git tracks. A machine of a launch knows the SHA-256 of the wheel from its metadata.
"""

import functools
import hashlib
import io
import os
import subprocess
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import tpullm

PACKAGE = Path(tpullm.__file__).parent
CONSTRAINTS = PACKAGE.parent / "constraints.txt"  # of a checkout; an installed wheel has it in the package
# Of `package-data` in pyproject.toml, beside modules.
KINDS = (".py", ".html", ".jinja", ".css", ".js", ".sh", ".yaml", ".jsonl")


@dataclass(frozen=True)
class Wheel:
    """A wheel.

    Args:
        name: of the file, with the hash of its content.
        content: bytes of the file.
    """

    name: str
    content: bytes

    @property
    def sha256(self) -> str:
        """The hash of the file, by which a machine knows that it has it whole."""
        return hashlib.sha256(self.content).hexdigest()


@functools.cache
def wheel() -> Wheel:
    """The package with its files as they are here, committed or not, and the requirements of the installed package."""
    files = {f"tpullm/{name}": path.read_bytes() for name, path in _package_files().items()}
    if CONSTRAINTS.exists():
        files["tpullm/constraints.txt"] = CONSTRAINTS.read_bytes()
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    version = f"{tpullm.__version__}+{digest.hexdigest()[:12]}"
    about, installed = f"tpullm-{version}.dist-info", metadata.metadata("tpullm")
    lines = ["Metadata-Version: 2.1", "Name: tpullm", f"Version: {version}"]
    for key in ("Requires-Python", "Provides-Extra", "Requires-Dist"):
        lines += [f"{key}: {value}" for value in installed.get_all(key) or []]
    files[f"{about}/METADATA"] = ("\n".join(lines) + "\n").encode()
    files[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tpullm\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{about}/entry_points.txt"] = b"[console_scripts]\ntpullm = tpullm.__main__:entry\n"
    # RECORD may leave out hashes; pip checks only those that are there.
    names = [*sorted(files), f"{about}/RECORD"]
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in names).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # versions of zlib compress differently
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)  # dated 1980
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])
    return Wheel(f"tpullm-{version}-py3-none-any.whl", buffer.getvalue())


def _package_files() -> dict[str, Path]:
    """The files of the package by their names in it: those that git tracks.

    Whatever else lies in its folder (a `.env`, a notebook, an editor's backup) may be secret, and stays here. A copy
    that git does not know, such as an installed one or a downloaded archive, has the kinds of files that pip packs.
    """
    found = _tracked_files(PACKAGE)
    if not found:
        paths = [Path(folder) / name for folder, _, names in os.walk(PACKAGE, followlinks=True) for name in names]
        packed = [path for path in paths if path.suffix in KINDS or path.name == CONSTRAINTS.name]
        found = {path.relative_to(PACKAGE).as_posix(): path for path in packed}
    return {name: path for name, path in found.items() if not path.name.startswith(".") and path.is_file()}


def _tracked_files(folder: Path) -> dict[str, Path]:
    """The files in a folder that git tracks, committed or not; through a link to another folder of the checkout too."""
    found = {}
    for name in _names_from_git(folder, "ls-files", "-z"):
        path = folder / name
        inner = _tracked_files(path) if path.is_dir() else {"": path}  # a checkout has `configs` as a link
        found |= {f"{name}/{rest}" if rest else name: file for rest, file in inner.items()}
    return found


def left_out() -> list[str]:
    """The modules that git neither tracks nor ignores. They are not in the wheel, which may surprise who wrote them."""
    others = _names_from_git(PACKAGE, "ls-files", "-z", "--others", "--exclude-standard")
    return [f"{PACKAGE.name}/{name}" for name in others if name.endswith(".py")]


def _names_from_git(folder: Path, *words: str) -> list[str]:
    """The names that a command of git prints; none where there is no checkout, or no git.

    A hook's variables would name another repository. A checkout of another user's is read, and none of its settings
    starts a program.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", *words]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    except FileNotFoundError:
        return []
    return [] if done.returncode else [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
