"""The order of the data of large corpora: seconds and memory of a fresh process until its first batch; rows a second.

    python benchmarks/order.py store       10 million documents, 10 billion tokens, in a store on disk
    python benchmarks/order.py simulated   2 billion documents in 20 languages: a table of lengths and a reader of zeros

The lengths are lognormal (median 600 tokens, sigma 1.0, mean 990), as those of web pages about are. The tokens of the
store are a file of zeros without blocks on the disk, of which `begins` and `ids` are read as of any other.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS, LENGTH = 8, 8192  # of a batch of one host
MEDIAN, SIGMA, LONGEST, LANGUAGES = 600, 1.0, 200_000, 20
BATCHES = 30


def lengths(documents: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN), SIGMA, documents)
    return np.clip(drawn, 2, LONGEST).astype(np.int64)


def write(folder: Path, documents: int) -> Path:
    """A store whose documents stand one after the other in a file of zeros."""
    from tpullm.data import token_files
    from tpullm.data.token_store import FILES, DocumentWriter
    from tpullm.system import storage

    store = folder / "store"
    store.mkdir()
    writer, tokens, ids = DocumentWriter(store), 0, np.random.default_rng(1)
    for first in range(0, documents, 1 << 20):
        own = lengths(min(1 << 20, documents - first), first)
        numbers = ids.integers(0, 2**63, len(own)).astype(np.uint64)
        writer.add(tokens + np.cumsum(own) - own, own, numbers, np.zeros(len(own), np.int64))
        tokens += int(own.sum())
    writer.close()
    with open(folder / "tokens.npy", "wb") as file:
        file.truncate(2 * tokens)
    listed = token_files.TokenFile(folder / "tokens.npy", "<u2", 0, tokens, 2 * tokens)
    storage.write_json(store / FILES, {"vocabulary_size": 1 << 15, "files": [token_files.to_json(listed)]})
    return store


class Simulated:
    """Two billion documents, as far as the order asks of them."""

    def __init__(self, documents: int = 2 * 10**9):
        from tpullm.data.batch import Lengths

        tokens = np.arange(2, LONGEST)
        share = np.exp(-(np.log(tokens / MEDIAN) ** 2) / (2 * SIGMA**2)) / tokens
        of_languages = 1 / np.arange(1, LANGUAGES + 1)
        counts = np.outer(of_languages / of_languages.sum(), documents * share / share.sum())
        counts = np.random.default_rng(0).poisson(counts)  # also of the rare lengths
        tokens, counts = np.tile(tokens, LANGUAGES)[counts.ravel() > 0], counts[counts > 0]
        self.lengths = Lengths(tokens, np.cumsum(counts) - counts, counts)

    def read(self, documents: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(counts.sum(), np.int32), np.ones(counts.sum(), np.float32)


def peak_mib() -> int:
    """Of this program. `getrusage` would count the process that started it."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024


def first_batch(what: str) -> dict:
    """Seconds of this process until its first batch, its peak memory then, and rows a second of later batches."""
    from tpullm.data.stream import Stream
    from tpullm.data.token_store import TokenStore

    imported = time.perf_counter()
    documents = Simulated() if what == "simulated" else TokenStore(what)
    opened = time.perf_counter()
    stream = Stream({"web": documents}, {"web": 1.0}, 8 * ROWS, LENGTH, 0, own_rows=np.arange(ROWS))
    stream.batch_at(0)
    done, peak = time.perf_counter(), peak_mib()
    for step in range(1, BATCHES + 1):
        batch = stream.batch_at(1000 * step)
    packed = stream.packings["web"]
    return {
        "documents": packed.lengths.documents, "groups": len(packed.lengths.tokens),
        "kinds": len(packed.kind_starts) - 1, "rows": packed.rows, "fill": round(packed.fill, 5),
        "pieces": int(batch.segment_ids.max(axis=1).sum()),
        "open_seconds": round(opened - imported, 2), "first_batch_seconds": round(done - opened, 2),
        "peak_mib": peak, "rows_per_second": round(BATCHES * ROWS / (time.perf_counter() - done)),
    }  # fmt: skip


def fresh(what: str) -> None:
    began = time.perf_counter()
    answered = subprocess.run([sys.executable, __file__, "first", what], stdout=subprocess.PIPE, check=True)
    took = round(time.perf_counter() - began, 2)
    print(json.dumps(json.loads(answered.stdout) | {"process_seconds": took}))


def main(what: str, *given: str) -> None:
    if what == "first":
        print(json.dumps(first_batch(*given)))
    elif what == "simulated":
        fresh(what)
    else:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            store = write(Path(folder), 10**7)
            told = {"write_seconds": round(time.perf_counter() - began, 1)}
            print(json.dumps(told | {"peak_mib": peak_mib()}))
            fresh(str(store))
            fresh(str(store))


if __name__ == "__main__":
    main(*sys.argv[1:])
