"""Finds the files of a source: which are read, how, how much of them, and in which parts.

A part is the work of one process: large files are cut, small ones are bundled. Where a part begins and ends depends on
the files beside it and not on how many there are, so the parts of a source stay the same except where a file is added,
changed or removed. A bundle ends after a file by chance, by the hash of its name, as in content-defined chunking
(Muthitacharoen et al. 2001, LBFS): the more bytes the file has, the more often. A new file is then in one bundle, or,
if that bundle ends after it, cuts it in two.

A source may be a file at an http(s) URL. It is downloaded once, and kept beside the run.
"""

import dataclasses
import hashlib
import http.client
import os
import re
import shutil
import stat
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tpullm.corpus import domains
from tpullm.corpus.document import NOT_READ
from tpullm.corpus.domains import programming
from tpullm.corpus.files import archives, kinds, opened
from tpullm.recipe.schema import Source
from tpullm.system import storage
from tpullm.system.errors import UserError

UNKNOWN = "unknown extension ("  # begins the reason, which stands whole below: the catalogue is held to whole lines
NO_FILE = "a broken link, or no file"  # or a link to a folder, or what cannot be looked at
NESTED = "a zip file in a zip file; unpack the outer one"
NO_TEXT = "no text in it"  # by its first bytes
_SHOWN = 13  # extensions in an error: those of text come first, those of code after them
# Kinds of sources that read what is installed with Python, and their files by the path of the source.
_DOMAINS = {kind: partial(domains.files, kind) for kind in domains.SOURCES}
INSTALLED: dict[str, Callable[[str], list[Path]]] = {"python": programming.files} | _DOMAINS
_HIDDEN = re.compile(r"(^|/)(\.|__pycache__/)")
VENDORED = {"node_modules", "vendor", "third_party", "site-packages", "dist-packages", "venv"}

BUNDLE_BYTES = 2_000_000  # of a bundle on average
RANGE_BYTES = 16_000_000  # of a range of a large file
FILE_BYTES = 4_096  # opening a file takes about as long as reading so much
# A line or a row group says itself where it begins. What is compressed can only be read from its beginning.
CUT_KINDS = ("text", "jsonl", "parquet")


@dataclass(frozen=True)
class File:
    """One file to read.

    Args:
        path: where it is.
        kind: how it is read, a key of `kinds.EXTENSIONS`, of `kinds.DESKTOP` or of `INSTALLED`.
        bytes: how many of its bytes are read, or about how many its text has (`kinds.BYTES_PER_TEXT`).
        held_out: whether the recipe holds its documents out.
        is_part: whether only its first `bytes` are read.
        start: the first byte of the range that is read: what begins in it (a line, a row group) belongs to it.
        stop: the byte after the range; None for the end of the file.
        member: its name in the zip file at `path`; "" if it is a file by itself.
    """

    path: Path
    kind: str
    bytes: int
    held_out: bool = False
    is_part: bool = False
    start: int = 0
    stop: int | None = None
    member: str = ""

    @property
    def is_range(self) -> bool:
        """Whether it is one of several ranges of its file."""
        return self.start > 0 or self.stop is not None


@dataclass(frozen=True)
class Found:
    """The files of a source.

    Args:
        files: the files to read, in a fixed order.
        skipped: names of the files in its folders that are not read, by reason.
        files_there: how many files could be read.
        bytes_there: the bytes of these files. Fewer are read if the source has a bound.
    """

    files: list[File]
    skipped: dict[str, list[str]]
    files_there: int = 0
    bytes_there: int = 0

    @property
    def read(self) -> list[File]:
        """The files that are not held out by the recipe."""
        return [file for file in self.files if not file.held_out]

    @property
    def bytes_read(self) -> int:
        """How many of their bytes are read."""
        return sum(file.bytes for file in self.read)

    @property
    def is_part(self) -> bool:
        """Whether fewer bytes are read than there are."""
        return self.bytes_read < self.bytes_there


def find(source: Source, downloads: Path) -> Found:
    """The files of a source; if `source.bytes` is set, as many files as fit in these bytes."""
    if source.kind in ("tenki", "tokens"):  # tokens are read by `tokenize`
        return Found([], {})
    held_out: list[File] = []
    skipped: dict[str, list[str]] = {}
    if source.kind in INSTALLED:
        found = [File(path, source.kind, path.stat().st_size) for path in INSTALLED[source.kind](source.path)]
    else:
        files_at = partial(_files_at_location, source, downloads, skipped)
        named = files_at(source.held_out) if source.held_out else []
        held_out = [dataclasses.replace(file, held_out=True) for file in named]
        apart = {file.path.resolve() for file in held_out}
        found = [file for file in files_at(source.path) if file.path.resolve() not in apart]
    total = sum(file.bytes for file in found)
    if not 0 < source.bytes < total:
        return Found([*held_out, *found], skipped, len(found), total)
    # Whole files in the order of the hash of their names, and a part of the last: so the part of a folder is a fair
    # sample of it. In the order of the names it would not be.
    left, chosen = source.bytes, {}
    for file in sorted(found, key=lambda file: hashlib.sha256(name_of(file, source).encode()).digest()):
        taken = min(left, file.bytes)
        if taken > 0:
            chosen[file.path, file.member] = dataclasses.replace(file, bytes=taken, is_part=taken < file.bytes)
            left -= taken
    read = [chosen[key] for file in found if (key := (file.path, file.member)) in chosen]
    return Found([*held_out, *read], skipped, len(found), total)


def name_of(file: File, source: Source) -> str:
    """The path of a file in the folder of its source, as `printable` has it; of a file from the web, its own name."""
    inner = f"/{archives.name_of(file.member)}" if file.member else ""
    if is_url(source.path):
        return printable(f"{file.path.name}{inner}")
    root = programming.folder() if source.kind == "python" else storage.path(source.path)
    inside = file.path != root and file.path.is_relative_to(root)
    return printable(f"{file.path.relative_to(root) if inside else file.path.name}{inner}")


def printable(name: str) -> str:
    """A file's name in one line of UTF-8: a name may hold line ends, and bytes that are no text."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _files_at_location(source: Source, downloads: Path, skipped: dict[str, list[str]], location: str) -> list[File]:
    """The files at a location; the names of those that are not read are added to `skipped`, by reason."""
    path = fetch(location, downloads) if is_url(location) else storage.path(location)
    where, found, left_out = f"corpus.sources: {source.name}", [], dict[str, list[str]]()
    if path.is_file():
        kind = _kind_of_single_file(path, source, where)
        if kind != "zip":
            return [_file(path, kind, path.stat().st_size)]
        there: list[tuple[Path, Any]] = [(path, path.stat())]
    else:
        there = files_below(path)
    for file, status in there:
        status, name = status or status_of(file), file.relative_to(path) if file != path else Path(file.name)
        kind, reason = _kind_or_reason(name, source, partial(_head_of_file, file)) if status else ("", NO_FILE)
        if kind == "zip" and source.kind in ("files", *kinds.EXTENSIONS):
            try:
                with storage.brief_copy(file) as local:
                    inside = archives.members(local)
            except opened.Unreadable as error:
                left_out.setdefault(NOT_READ, []).append(f"{printable(str(name))}: {error}")
                continue
            for member, size in inside:
                inner = Path(archives.name_of(member))
                kind, reason = _kind_or_reason(inner, source, partial(_head_of_member, file, member))
                if kind and kind != "zip":
                    found.append(_file(file, kind, size, member))
                    continue
                left_out.setdefault(NESTED if kind else reason, []).append(printable(f"{name}/{inner}"))
        elif kind:
            found.append(_file(file, kind, status.st_size))
        else:
            left_out.setdefault(reason, []).append(printable(str(name)))
    if not found:
        seen = ", ".join([*left_out.get(NOT_READ, ()), *sorted({*left_out} - {NOT_READ})]) or "it is empty"
        kind = f"{source.kind} ({_known_extensions(source.kind)})"
        raise UserError(f"{where}: {location} holds no file of kind {kind}; there is: {seen}")
    for reason, names in left_out.items():
        skipped.setdefault(reason, []).extend(names)
    return found


def _file(path: Path, kind: str, size: int, member: str = "") -> File:
    return File(path, kind, -(-size // kinds.BYTES_PER_TEXT.get(kind, 1)), member=member)


def _kind_of_single_file(path: Path, source: Source, where: str) -> str:
    """The kind of a source that is one file: as the source says whatever its extension is, but for a zip file.

    Raises:
        UserError: it is a kind that is not read; the error says what to do.
    """
    if source.kind != "files":
        return "zip" if extension(path) == ".zip" else source.kind
    kind, reason = _kind_or_reason(Path(path.name), source, partial(_head_of_file, path))
    if not kind:
        raise UserError(f"{where}: {path} can't be read: {reason}; {kinds.way_out(extension(path))}")
    return kind


def _kind_or_reason(name: Path, source: Source, head: Callable[[], bytes]) -> tuple[str, str]:
    """How a file is read, or else why it is not.

    Args:
        name: its name, in its folder.
        source: the source.
        head: reads its first bytes.
    """
    ends = extension(name)
    kind = kinds.of_extension(ends, source.kind)
    if kind == "code" and VENDORED.intersection(name.parts):
        return "", "other people's code"
    if source.kind == "files" and kind == "text" and name.suffix.lower() == ".txt":
        return kinds.of_text(head()), ""
    if kind or source.kind != "files" or kinds.is_believed(ends):
        return kind or "zip" * (ends == ".zip"), f"unknown extension ({printable(ends) or 'none'})"
    kind = kinds.of_content(head())
    return kind, "" if kind else NO_TEXT


def _head_of_file(path: Path) -> bytes:
    """The first bytes of a file, decompressed. On `gs://` none are read: there the extension alone decides."""
    if storage.is_remote(path):
        return b""
    try:
        with opened.reading(), opened.open_bytes(path, by_content=True) as stream:
            return stream.read(kinds.HEAD_BYTES)
    except opened.Unreadable:
        return b""


def _head_of_member(path: Path, member: str) -> bytes:
    try:
        with storage.brief_copy(path) as local:
            return archives.head(local, member, kinds.HEAD_BYTES)
    except opened.Unreadable:
        return b""


def status_of(path: Path) -> Any:
    """The status of a file, links followed; None of what is no file, or cannot be looked at."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _known_extensions(kind: str) -> str:
    """The extensions of a kind, for an error; of many, the first."""
    found = kinds.known_extensions(kind)
    return " ".join([*found[:_SHOWN], *(["…"] if found[_SHOWN:] else [])])


def extension(path: Path) -> str:
    """The last extension in lower case, without that of a compression: `.jsonl` for `a.JSONL.gz`."""
    plain = path.with_suffix("") if path.suffix.lower() in kinds.COMPRESSED else path
    return plain.suffix.lower()


def files_below(folder: Path) -> list[tuple[Path, Any]]:
    """All files under `folder` in a fixed order, without hidden and compiled ones; on `gs://` with their status.

    With them come links to folders, and folders that cannot be read: nobody looks into them, so they are told.
    """
    if storage.is_remote(folder):
        shown = [item for item in storage.remote().files(folder).items() if not _HIDDEN.search(item[0])]
        shown.sort(key=lambda item: (item[0].split("/")[:-1], item[0]))  # as `os.walk` has them
        return [(folder / name, status) for name, status in shown]
    unreadable: list[OSError] = []
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]  # they may lead in a circle
        found += [Path(parent, name) for name in sorted([*names, *links]) if not name.startswith(".")]
    return [(path, None) for path in [*found, *(Path(error.filename) for error in unreadable)]]


def parts(files: Sequence[File]) -> list[tuple[tuple[File, ...], int]]:
    """The parts of a source, in the order of its files, and the bytes of each."""
    bundles: list[list[File]] = [[]]
    for file in files:
        is_large = file.bytes >= BUNDLE_BYTES  # then it is by itself, so that what is added beside it does not redo it
        if is_large or bundles[-1] and bundles[-1][-1].held_out != file.held_out:
            bundles.append([])
        if is_large:
            bundles += [*([part] for part in ranges_of_file(file)), []]
            continue
        bundles[-1].append(file)
        # Of files of `n` bytes, `n / BUNDLE_BYTES` end a bundle.
        chance = (
            int.from_bytes(hashlib.sha256(printable(file.path.name + file.member).encode()).digest()[:8], "big") / 2**64
        )
        if chance * BUNDLE_BYTES < max(file.bytes, FILE_BYTES):
            bundles.append([])
    return [(tuple(bundle), sum(file.bytes for file in bundle)) for bundle in bundles if bundle]


def ranges_of_file(file: File) -> list[File]:
    """A file in ranges of about `RANGE_BYTES`, or whole if it can't be cut; what is appended changes the last one."""
    is_packed = file.member or file.path.suffix.lower() in kinds.COMPRESSED
    can_be_cut = file.kind in CUT_KINDS and not is_packed and not file.is_part
    count = max(file.bytes // RANGE_BYTES, 1) if can_be_cut else 1
    starts = [number * RANGE_BYTES for number in range(count)]
    return [
        dataclasses.replace(file, start=start, stop=stop, bytes=(file.bytes if stop is None else stop) - start)
        for start, stop in zip(starts, [*starts[1:], None], strict=True)
    ]


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
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    storage.remove_partials(folder)
    with storage.atomic_file(path) as temporary:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "tpullm"})
            with urllib.request.urlopen(request, timeout=60) as response, open(temporary, "wb") as file:
                shutil.copyfileobj(response, file)
                expected = response.headers.get("Content-Length")
        except urllib.error.HTTPError as error:
            said = f"{error.code} {error.reason}"
            raise UserError(f"{url}: the server answers {said}; correct the source's path") from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
            raise UserError(
                f"{url}: cannot be downloaded ({getattr(error, 'reason', error)}); check the address and the network, "
                "or download it yourself and write the file's path in its place"
            ) from None
        if expected is not None and (size := temporary.stat().st_size) != int(expected):
            broken = f"the download broke off after {size} of {expected} bytes"
            raise UserError(f"{url}: {broken}; run the same command again")
    return path
