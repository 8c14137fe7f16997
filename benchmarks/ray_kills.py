"""Kills workers, nodes and drivers of a Ray cluster while documents are collected and tokenized: the same bytes?

    python benchmarks/ray_kills.py                                     20,000 documents, some kills: 3 minutes
    python benchmarks/ray_kills.py --documents 2000000 --plain --part-bytes 0 --workers 20 --nodes 5 --drivers 3
    python benchmarks/ray_kills.py --documents 200000 --part-bytes 0 --compare 3      MB/s beside processes, in turns

The cluster is a head and three nodes of this machine, each with a processor; a killed node is replaced by a new one. A
kill is SIGKILL at a random moment: of a worker at work, of all processes of a node, or of the command, which is then
given again. The documents are random lines of a text file, with their number.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "docs" / "en" / "inside.md"
LINES = 4  # of a document
PER_FILE = 10_000
NODES = 3  # beside the head
BYTES_OF_OBJECTS = 80_000_000
AGES = ("finished", "seconds")  # of a manifest


def make_documents(
    folder: Path, count: int, per_file: int, text: Path = TEXT, language: str = "en", plain: bool = False
) -> Path:
    """Write JSON Lines and a recipe of them; the recipe.

    Args:
        folder: where.
        count: of documents.
        per_file: documents of a file.
        text: where lines are taken from.
        language: of the text.
        plain: one line a document, without filters and without looking for near copies, which take most of the time.
    """
    lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines() if len(line.strip()) > 30]
    choices = random.Random(0)
    (folder / "in").mkdir(parents=True)
    for first in range(0, count, per_file):
        with open(folder / "in" / f"{first:09}.jsonl", "w", encoding="utf-8") as file:
            for number in range(first, min(first + per_file, count)):
                document = "\n".join([*(choices.choice(lines) for _ in range(1 if plain else LINES)), f"{number}"])
                file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
    source = {"name": "lines", "kind": "jsonl", "path": str(folder / "in"), "licence": "made", "language": language}
    recipe = {"name": "kills", "corpus": {"sources": [source]}, "tokenizer": {"vocabulary_size": 4000, "words": "none"}}
    recipe["tokenizer"]["sample_characters"] = 1_000_000
    recipe["corpus"]["near_duplicates"] = source["filter"] = not plain
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder / "recipe.yaml"


class Cluster:
    """A head and nodes on this machine. A context manager: nothing is left of it."""

    def __init__(self, cores: int = 1, nodes: int = NODES):
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a short path: it has sockets
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment = os.environ | own | {"PYTHONPATH": str(ROOT)}
        self._cores, self._count, self.nodes = cores, nodes, []

    def __enter__(self) -> "Cluster":
        self.nodes = [self._start("--head", f"--port={self.address.split(':')[1]}", f"--temp-dir={self.folder}")]
        self.nodes += [self.add_node() for _ in range(self._count)]
        return self

    def __exit__(self, *_: Any) -> None:
        for node in self.nodes:
            self.kill_node(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def add_node(self) -> subprocess.Popen:
        return self._start(f"--address={self.address}")

    def _start(self, *words: str) -> subprocess.Popen:
        own = [f"--num-cpus={self._cores}", "--block", f"--object-store-memory={BYTES_OF_OBJECTS}", *words]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *own]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, env=self.environment, start_new_session=True, **quiet)

    def processes(self, node: subprocess.Popen) -> dict[int, str]:
        """The processes of a node, which are its session, and their titles."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getsid(int(folder.name)) == node.pid:
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        return found

    def workers(self) -> list[int]:
        """The workers that are at work."""
        shown = [item for node in self.nodes for item in self.processes(node).items()]
        idle = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
        return [pid for pid, title in shown if title.startswith("ray::") and not title.startswith(idle)]

    def kill_node(self, node: subprocess.Popen) -> None:
        """Kill all processes of a node at once."""
        for pid in self.processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()


# The driver alone plans, so what it sets holds for all.
SMALL = """
import sys
from tpullm.cli import main
from tpullm.corpus import collect, reduce
from tpullm.corpus.files import source_files
from tpullm.data import tokenizing
source_files.BUNDLE_BYTES = {part_bytes}
collect.PARALLEL_BYTES = collect.PARALLEL_ENTRY_BYTES = tokenizing.PARALLEL_BYTES = 0
tokenizing.SAMPLE_PARALLEL_BYTES = 0
reduce.GROUP_DOCUMENTS, reduce.RANGE_ENTRIES = 2_000, 20_000
sys.exit(main.entry())
"""


def command(verb: str, recipe: Path, run: Path, part_bytes: int, *words: str) -> list[str]:
    """The command of a verb. Parts of a source have `part_bytes`, and groups of them few documents; 0: as ever."""
    program = ["-c", SMALL.format(part_bytes=part_bytes)] if part_bytes else ["-m", "tpullm"]
    return [sys.executable, *program, verb, "--config", str(recipe), "--run", str(run), *words]


def make_alone(recipe: Path, run: Path, part_bytes: int) -> float:
    """Collect and tokenize by the processes of this machine; the seconds."""
    began = time.monotonic()
    for verb in ("collect", "tokenize"):
        subprocess.run(command(verb, recipe, run, part_bytes), env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    return time.monotonic() - began


def make_killed(
    cluster: Cluster, recipe: Path, run: Path, part_bytes: int, kills: list[str], seconds: float
) -> dict[str, Any]:
    """Collect and tokenize by a cluster whose processes are killed in the order of `kills`, every `seconds` or so."""
    choices, began, done, given = random.Random(1), time.monotonic(), [], 0
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
    moment = began + 20 + choices.uniform(0, 2 * seconds)  # nodes need some seconds to begin
    most = 0
    for verb, kept in (("collect", len(kills) // 3), ("tokenize", 0)):
        driver = None
        while driver is None or driver.poll() is None or driver.returncode in (-signal.SIGKILL, 75):
            if driver is None or driver.poll() is not None:
                driver = subprocess.Popen(command(verb, recipe, run, part_bytes, "--engine", "ray"), env=environment)
                given += 1
            time.sleep(0.2)
            if len(kills) > kept and time.monotonic() > moment:
                moment = time.monotonic() + choices.uniform(0, 2 * seconds)
                most = max(most, memory(cluster))
                if kill(cluster, kills[0], driver, choices):
                    done.append(f"{kills.pop(0)} in {verb}")
        if driver.returncode:
            sys.exit(f"{verb} ended with {driver.returncode}")
    return {"killed": done, "not killed": kills, "commands": given, "seconds": round(time.monotonic() - began, 1)} | {
        "most bytes of the cluster": most
    }


def kill(cluster: Cluster, what: str, driver: subprocess.Popen, choices: random.Random) -> bool:
    """Kill a worker, a node or the driver; False if there is none now."""
    if what == "worker":
        if not (workers := cluster.workers()):
            return False
        os.kill(choices.choice(workers), signal.SIGKILL)
    elif what == "node":
        index = choices.randrange(1, len(cluster.nodes))
        cluster.kill_node(cluster.nodes[index])
        cluster.nodes[index] = cluster.add_node()
    else:
        driver.kill()
    print(f"killed: {what}", flush=True)
    return True


def memory(cluster: Cluster) -> int:
    """Bytes that the cluster's processes have to themselves."""
    total = 0
    for node in cluster.nodes:
        for pid in cluster.processes(node):
            with contextlib.suppress(OSError, IndexError, ValueError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))
    return total


def contents(run: Path) -> dict[str, Any]:
    """All that is in a run directory, but for the time that it took and the name of the directory."""
    files = {str(path.relative_to(run)): path for path in sorted(run.rglob("*")) if path.is_file()}
    found: dict[str, Any] = {}
    for name, path in files.items():
        if name.endswith("manifest.json"):
            value = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {key: value[key] for key in value if key not in AGES}
        elif name not in ("recipe.yaml", ".lock"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def compare(folder: Path, recipe: Path, part_bytes: int, times: int) -> dict[str, Any]:
    """MB/s of collect and tokenize by processes and by a Ray cluster of as many workers, in turns."""
    size, rates = sum(path.stat().st_size for path in (folder / "in").iterdir()) / 1e6, {"processes": [], "ray": []}
    cores = len(os.sched_getaffinity(0))
    with Cluster(cores, 0) as cluster:
        time.sleep(15)
        for number in range(2 * times):
            engine, run = list(rates)[number % 2], folder / f"compared-{number}"
            environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
            began = time.monotonic()
            for verb in ("collect", "tokenize"):
                subprocess.run(command(verb, recipe, run, part_bytes, "--engine", engine), env=environment, check=True)
            rates[engine].append(round(size / (time.monotonic() - began), 3))
            shutil.rmtree(run)
    ratio = statistics.median(rates["ray"]) / statistics.median(rates["processes"])
    return {"MB/s": rates, "ratio of the medians": round(ratio, 3)}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Print what was found as one line of JSON; exit code 1 if a byte differs or a kill was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--part-bytes", type=int, default=100_000, help="of a part of the source; 0: as ever")
    parser.add_argument("--text", type=Path, default=TEXT, help="a text file, whose lines are taken")
    parser.add_argument("--language", default="en", help="of the text")
    parser.add_argument("--plain", action="store_true", help="one line a document, no filters, no near copies")
    parser.add_argument("--workers", type=int, default=3, help="workers to kill")
    parser.add_argument("--nodes", type=int, default=1, help="nodes to kill")
    parser.add_argument("--drivers", type=int, default=1, help="drivers to kill")
    parser.add_argument("--compare", type=int, default=0, help="compare the speed so many times; kill nothing")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        per_file = PER_FILE if given.part_bytes == 0 else 500
        own = {"text": given.text, "language": given.language, "plain": given.plain}
        recipe = make_documents(folder, given.documents, per_file, **own)
        if given.compare:
            found = compare(folder, recipe, given.part_bytes, given.compare)
        else:
            alone = make_alone(recipe, folder / "alone", given.part_bytes)
            kills = ["worker"] * given.workers + ["node"] * given.nodes + ["driver"] * given.drivers
            random.Random(2).shuffle(kills)
            with Cluster() as cluster:
                seconds = 0.6 * alone / len(kills)
                found = make_killed(cluster, recipe, folder / "killed", given.part_bytes, kills, seconds)
            found |= {"same bytes": contents(folder / "alone") == contents(folder / "killed")}
            found |= {"seconds without Ray": round(alone, 1)}
    found["documents"] = given.documents
    print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    result = main()
    sys.exit(0 if result.get("same bytes", True) and not result.get("not killed") else 1)
