"""Pages whose address says what they are: datatrove's lists of domains, addresses and words (adult, gambling, malware).

datatrove's URLFilter needs two more packages, and 600 MB and more for the sets of each process. Here the 4.6 million
domains are a sorted file of 64-bit hashes in the user's cache, 36 MB, which the processes of a machine share. A look-up
takes 0.03 ms. A domain between the host and its registered domain counts too; datatrove looks for these two alone.
"""

import functools
import importlib.metadata
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpullm import storage
from tpullm.corpus.filters import opt_outs

LISTS = "url_filterblacklistsv0_3_0.tar.gz"
NOT_ALPHANUMERIC = re.compile("[^a-zA-Z0-9]+")
LEAST_SOFT_WORDS = 2
LONGEST_ADDRESS = 2000  # characters that are looked at


@dataclass(frozen=True)
class _Words:
    """Words of addresses: one of `banned`, two of `soft`, or a part that is in `parts`, and the page is dropped."""

    banned: frozenset[str]
    soft: frozenset[str]
    parts: tuple[str, ...]


def is_listed(url: str) -> bool:
    """Whether an address, its domain or a domain above it is listed, or its words are those of such pages."""
    if not url:
        return False
    url = url[:LONGEST_ADDRESS]
    host, _ = opt_outs.host_and_path(url)
    labels = host.split(".")
    above = [".".join(labels[start:]) for start in range(len(labels) - 1)]
    return opt_outs.holds(_keys("domains"), above) or opt_outs.holds(_keys("urls"), [url]) or _has_listed_words(url)


def _has_listed_words(url: str) -> bool:
    listed, words = _words(), set(NOT_ALPHANUMERIC.split(url))
    if not listed.banned.isdisjoint(words) or len(listed.soft & words) >= LEAST_SOFT_WORDS:
        return True
    joined = _normalized(url)
    return any(part in joined for part in listed.parts)


def _normalized(text: str) -> str:
    return NOT_ALPHANUMERIC.sub("", text).lower()


@functools.lru_cache(maxsize=1)
def _words() -> _Words:
    banned, soft, parts = (_list(name) for name in ("banned_words", "soft_banned_words", "banned_subwords"))
    return _Words(frozenset(banned), frozenset(soft), tuple(sorted(parts)))


def _list(name: str) -> set[str]:
    lines = (_assets() / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return {word for line in lines if line and not line.startswith("#") and (word := _normalized(line))}


@functools.lru_cache(maxsize=2)
def _keys(name: str) -> np.ndarray:
    """The sorted keys of a list, from the cache. Making those of the domains takes 10 s, once on a machine."""
    folder = storage.cache_folder("address_lists")
    path = folder / f"{name}-{importlib.metadata.version('datatrove')}.npy"
    if storage.make_private(folder):  # others can write there: what it holds is not trusted
        return _made(name)
    if not path.exists():
        with storage.atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, _made(name))
    return np.load(path, mmap_mode="r")


def _made(name: str) -> np.ndarray:
    return np.unique(np.fromiter(map(opt_outs.key, _entries(name)), np.uint64))


def _entries(name: str) -> Iterator[str]:
    with tarfile.open(_assets() / LISTS, "r:gz") as archive:
        member = archive.extractfile(name)
        assert member is not None, f"{LISTS} of datatrove holds {name}"
        for line in member:
            entry = line.decode("utf-8", "replace").strip()
            if entry and not entry.startswith("#"):
                yield entry


def _assets() -> Path:
    from datatrove.utils._import_utils import ASSETS_PATH

    return Path(ASSETS_PATH)
