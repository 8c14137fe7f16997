"""Lists of what its owners have asked to leave out: domains, addresses of pages, hashes of texts."""

import array
import functools
import hashlib
import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tpullm import storage
from tpullm.corpus.files import encodings
from tpullm.errors import UserError

SHA256 = re.compile(r"[0-9a-f]{64}")
DOMAIN = re.compile(r"[^\s/?#@:]+(\.[^\s/?#@:]+)+")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,20}://", re.IGNORECASE)
LONGEST_HOST = 255  # RFC 1035
MOST_FOLDERS = 32  # of the path of an address that are looked up


@dataclass(frozen=True)
class OptOuts:
    """What is listed: sorted 64-bit hashes, uint64 [entries] each. Ten million entries take 80 MB.

    Args:
        domains: with all their subdomains.
        pages: single addresses.
        folders: addresses that end in `*`, with all that is below.
        hashes: SHA-256 of texts.
    """

    domains: np.ndarray
    pages: np.ndarray
    folders: np.ndarray
    hashes: np.ndarray

    def address(self, url: str) -> str:
        """The reason that keeps out what was published at `url`; "" if nothing does."""
        if not url:
            return ""
        host, path = host_and_path(url)
        labels = host.split(".")
        if holds(self.domains, (".".join(labels[start:]) for start in range(len(labels) - 1))):
            return "opted out by domain"
        page = f"{host.removeprefix('www.')}/{path}"
        ends = [match.end() for match in re.finditer("/", page)][:MOST_FOLDERS]
        if holds(self.pages, [page]) or holds(self.folders, (page[:end] for end in ends)):
            return "opted out by URL"
        return ""

    def texts(self, hashes: Iterable[str]) -> str:
        """The reason that keeps out a text with one of these SHA-256 hashes; "" if none is listed."""
        return "opted out by hash" if holds(self.hashes, hashes) else ""


@functools.lru_cache(maxsize=4)
def load(files: tuple[str, ...]) -> OptOuts:
    """The lists in `files`: a domain, an address or a SHA-256 hash on each line; `#` begins a comment.

    `UserError` names the line that is none of them. They are read once in a process: 1.2 s for each million lines.
    """
    found = {kind: array.array("Q") for kind in ("domains", "pages", "folders", "hashes")}
    for name in files:
        for number, line in enumerate(_lines(name), 1):
            entry = "" if line.lstrip().startswith("#") else line.partition(" #")[0].strip()
            if entry:
                kind, value = _parsed(entry, f"{name}: line {number}")
                found[kind].append(key(value))
    return OptOuts(**{kind: np.unique(np.array(keys, np.uint64)) for kind, keys in found.items()})


def _lines(name: str) -> Iterable[str]:
    try:
        with open(storage.local_copy(storage.path(name)), "rb") as file:
            for line in file:
                yield encodings.decode(line) or ""
    except OSError as error:
        raise UserError(f"corpus.opted_out: {name}: cannot be read ({error.strerror}); correct the path") from None


def _parsed(entry: str, where: str) -> tuple[str, str]:
    """The kind of an entry and its one form."""
    if SHA256.fullmatch(entry.lower()):
        return "hashes", entry.lower()
    bare = entry.removeprefix("*.").removeprefix(".")
    if DOMAIN.fullmatch(bare):
        return "domains", _host(bare)
    host, path = host_and_path(entry.removesuffix("*"))
    if any(map(str.isspace, entry)) or not DOMAIN.fullmatch(host):
        raise UserError(f"{where}: {entry[:80]!r} is no domain, address or SHA-256 hash; correct or remove the line")
    page = f"{host.removeprefix('www.')}/{path}"
    if not entry.endswith("*"):
        return "pages", page
    return "folders", page if page.endswith("/") else page + "/"


def host_and_path(url: str) -> tuple[str, str]:
    """`example.org` and `a/b?c` of an address, in one form: scheme, port, fragment and last slash do not count."""
    address = SCHEME.sub("", url.strip(), count=1).partition("#")[0]
    end = re.search("[/?]", address)
    host, path = (address[: end.start()], address[end.start() :]) if end else (address, "")
    return _host(host.rpartition("@")[2].partition(":")[0]), urllib.parse.unquote(path).strip("/")


def _host(name: str) -> str:
    name = name.lower().rstrip(".")
    if name.isascii() or len(name) > LONGEST_HOST:
        return name
    try:
        return name.encode("idna").decode("ascii")
    except UnicodeError:
        return name


def key(value: str) -> int:
    """The 64-bit hash of an entry of a list."""
    return int.from_bytes(hashlib.blake2b(value.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def holds(keys: np.ndarray, values: Iterable[str]) -> bool:
    """Whether the key of one of the values is among the sorted keys."""
    if not len(keys):
        return False
    wanted = np.array([key(value) for value in values], np.uint64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return bool(np.any(keys[places] == wanted))
