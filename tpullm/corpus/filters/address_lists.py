"""Pages that lists keep out: of their owners (domains, addresses, hashes of texts), and datatrove's of bad addresses.

`OptOuts` are the lists of a recipe: what its owners have asked to leave out. `is_listed` looks into datatrove's lists
of domains, addresses and words (adult, gambling, malware). datatrove's own URLFilter needs two more packages, and
600 MB and more for the sets of each process. Here the 4.6 million domains are a sorted file of 64-bit hashes in the
user's cache, 36 MB, which the processes of a machine share. A look-up takes 0.03 ms. A domain between the host and its
registered domain counts too; datatrove looks for these two alone.
"""

import array
import contextlib
import functools
import hashlib
import importlib.metadata
import re
import tarfile
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpullm.corpus.files import encodings
from tpullm.system import storage
from tpullm.system.errors import UserError

SHA256 = re.compile(r"[0-9a-f]{64}")
DOMAIN = re.compile(r"[^\s/?#@:][^\s/?#@:.]*\.[^\s/?#@:]+")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,20}://", re.IGNORECASE)
LISTS = "url_filterblacklistsv0_3_0.tar.gz"
NOT_ALPHANUMERIC = re.compile("[^a-zA-Z0-9]+")


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
        host, page = _host_and_page(url)
        if _any_is_listed(self.domains, _host_and_domains_above(host)):
            return "opted out by domain"
        folders = [page[: match.end()] for match in re.finditer("/", page)][:32]
        is_listed = _any_is_listed(self.pages, [page]) or _any_is_listed(self.folders, folders)
        return "opted out by URL" if is_listed else ""

    def texts(self, hashes: Iterable[str]) -> str:
        """The reason that keeps out a text with one of these SHA-256 hashes; "" if none is listed."""
        return "opted out by hash" if _any_is_listed(self.hashes, hashes) else ""


@functools.lru_cache(maxsize=4)
def load(files: tuple[str, ...]) -> OptOuts:
    """The lists in `files`: a domain, an address or a SHA-256 hash on each line; `#` begins a comment.

    `UserError` names a line of another form. They are read once in a process: 1.2 s for each million lines.
    """
    found = {kind: array.array("Q") for kind in ("domains", "pages", "folders", "hashes")}
    for name in files:
        try:
            storage.check_file(path := storage.local_copy(storage.path(name)))  # a pipe would never end
            with open(path, "rb") as file:
                for number, data in enumerate(file, 1):
                    line = encodings.decode(data) or ""
                    entry = "" if line.lstrip().startswith("#") else line.partition(" #")[0].strip()
                    if entry:
                        kind, value = _parsed_opt_out(entry, f"{name}: line {number}")
                        found[kind].append(_opt_out_hash(value))
        except OSError as error:
            raise UserError(f"corpus.opted_out: {name}: cannot be read ({error.strerror}); correct the path") from None
    return OptOuts(**{kind: np.unique(np.array(keys, np.uint64)) for kind, keys in found.items()})


def _parsed_opt_out(entry: str, where: str) -> tuple[str, str]:
    """The kind of an entry and its one form."""
    if SHA256.fullmatch(entry.lower()):
        return "hashes", entry.lower()
    bare = entry.removeprefix("*.").removeprefix(".")
    if DOMAIN.fullmatch(bare):
        return "domains", _normalized_host(bare)
    host, page = _host_and_page(entry.removesuffix("*"))
    if any(map(str.isspace, entry)) or not DOMAIN.fullmatch(host):
        raise UserError(f"{where}: {entry[:80]!r} is no domain, address or SHA-256 hash; correct or remove the line")
    if not entry.endswith("*"):
        return "pages", page
    return "folders", page if page.endswith("/") else page + "/"


def _host_and_page(url: str) -> tuple[str, str]:
    """`www.example.org` and `example.org/a/b?c` of an address: scheme, port, fragment and last slash do not count."""
    address = SCHEME.sub("", url.strip(), count=1).partition("#")[0]
    end = re.search("[/?]", address)
    host, path = (address[: end.start()], address[end.start() :]) if end else (address, "")
    host = _normalized_host(host.rpartition("@")[2].partition(":")[0])
    return host, f"{host.removeprefix('www.')}/{urllib.parse.unquote(path).strip('/')}"


def _normalized_host(name: str) -> str:
    name = name.lower().rstrip(".")
    with contextlib.suppress(UnicodeError):
        return name if name.isascii() or len(name) > 255 else name.encode("idna").decode("ascii")  # RFC 1035
    return name


def _host_and_domains_above(host: str) -> Iterator[str]:
    """A host and the domains above it, without the one of the top level."""
    labels = host.split(".")
    return (".".join(labels[start:]) for start in range(len(labels) - 1))


def _opt_out_hash(value: str) -> int:
    """The 64-bit hash of an entry of a list."""
    return int.from_bytes(hashlib.blake2b(value.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _any_is_listed(keys: np.ndarray, values: Iterable[str]) -> bool:
    """Whether the key of one of the values is among the sorted keys."""
    if not len(keys):
        return False
    wanted = np.array([_opt_out_hash(value) for value in values], np.uint64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return bool(np.any(keys[places] == wanted))


def is_listed(url: str) -> bool:
    """Whether an address, its domain or a domain above it is listed, or its words are those of such pages."""
    if not url:
        return False
    url = url[:2000]
    host, _ = _host_and_page(url)
    return (
        _any_is_listed(_hashes_of_list("domains"), _host_and_domains_above(host))
        or _any_is_listed(_hashes_of_list("urls"), [url])
        or has_listed_words(url)
    )


def has_listed_words(url: str) -> bool:
    """Whether an address has a banned word, two soft ones, or a banned part of a word."""
    banned, soft, parts = map(_listed_address_words, ("banned_words", "soft_banned_words", "banned_subwords"))
    found, joined = set(NOT_ALPHANUMERIC.split(url)), _lower_alphanumeric(url)
    return not banned.isdisjoint(found) or len(soft & found) >= 2 or any(map(joined.__contains__, parts))


def _lower_alphanumeric(text: str) -> str:
    return NOT_ALPHANUMERIC.sub("", text).lower()


@functools.cache
def _listed_address_words(name: str) -> frozenset[str]:
    lines = (_address_list_folder() / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(_lower_alphanumeric(line) for line in lines if not line.startswith("#")) - {""}


@functools.cache
def _hashes_of_list(name: str) -> np.ndarray:
    """The sorted keys of a list, from the cache. Making those of the domains takes 10 s, once on a machine."""
    folder = storage.cache_folder("address_lists")
    path = folder / f"{name}-{importlib.metadata.version('datatrove')}.npy"
    if storage.make_private(folder):  # others can write there: what it holds is not trusted
        return _hash_list(name)
    if not path.exists():
        with storage.atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, _hash_list(name))
    return np.load(path, mmap_mode="r")


def _hash_list(name: str) -> np.ndarray:
    with tarfile.open(_address_list_folder() / LISTS, "r:gz") as archive:
        member = archive.extractfile(name)
        assert member is not None, f"{LISTS} of datatrove holds {name}"
        entries = (line.decode("utf-8", "replace").strip() for line in member)
        keys = (_opt_out_hash(entry) for entry in entries if entry and not entry.startswith("#"))
        return np.unique(np.fromiter(keys, np.uint64))


def _address_list_folder() -> Path:
    from datatrove.utils._import_utils import ASSETS_PATH

    return Path(ASSETS_PATH)
