"""This code as a wheel, named by the hash of its content. The same files give the same bytes on any machine."""

import functools
import hashlib
import io
import os
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import tpullm

PACKAGE = Path(tpullm.__file__).parent
CONSTRAINTS = PACKAGE.parent / "constraints.txt"  # of a checkout; an installed wheel has it in the package
NEVER = ("__pycache__",)


@dataclass(frozen=True)
class Wheel:
    """A wheel.

    Args:
        name: of the file, with the hash of its content.
        content: bytes of the file.
    """

    name: str
    content: bytes


@functools.cache
def wheel() -> Wheel:
    """The package with the files of this checkout, committed or not, and the requirements of the installed package."""
    files = {f"tpullm/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in _files()}
    if CONSTRAINTS.exists():
        files["tpullm/constraints.txt"] = CONSTRAINTS.read_bytes()
    version = f"{tpullm.__version__}+{_hash(files)}"
    about = f"tpullm-{version}.dist-info"
    files[f"{about}/METADATA"] = _metadata(version)
    files[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tpullm\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{about}/entry_points.txt"] = b"[console_scripts]\ntpullm = tpullm.cli:entry\n"
    # RECORD may leave out hashes; pip checks only those that are there.
    names = [*sorted(files), f"{about}/RECORD"]
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in names).encode()
    return Wheel(f"tpullm-{version}-py3-none-any.whl", _zip(files))


def _files() -> list[Path]:
    """All files of the package, with those of `configs/`, which is a link in a checkout."""
    folders = [Path(folder) for folder, _, _ in os.walk(PACKAGE, followlinks=True)]
    return sorted(path for folder in folders if folder.name not in NEVER for path in folder.iterdir() if path.is_file())


def _hash(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def _metadata(version: str) -> bytes:
    """Name, version, and the requirements of the installed package."""
    installed = metadata.metadata("tpullm")
    lines = ["Metadata-Version: 2.1", "Name: tpullm", f"Version: {version}"]
    for key in ("Requires-Python", "Provides-Extra", "Requires-Dist"):
        lines += [f"{key}: {value}" for value in installed.get_all(key) or []]
    return ("\n".join(lines) + "\n").encode()


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # versions of zlib compress differently
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)  # dated 1980
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()
