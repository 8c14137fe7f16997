"""Parts as tasks of a Ray cluster: that of RAY_ADDRESS, or one of this machine that ends with the verb.

Ray knows which nodes there are, which come and which are gone, and makes a task again whose worker or node was lost
(docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html). An error of a part itself is not tried again: it is raised
here. Each node needs this code, the same versions of its libraries and the run directory, which a worker process checks
before its first part: another version could make other bytes.
"""

import contextlib
import functools
import hashlib
import importlib.util
import logging
import os
import pickle
import platform
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from typing import Any

from tpullm.system import log, storage
from tpullm.system.errors import TryAgain, UnfitNode, UserError

# Of a worker: seen are 0.2 to 0.3 GiB with parts of 2 MB. Its child for foreign files may take 1 GiB for a moment.
MEMORY_BYTES = 1 << 30
# Of a part whose worker or node was lost. Machines may be taken back every hour; a part that always ends its worker
# must end the verb.
RETRIES = 50
SECONDS_TO_CONNECT = 120.0  # the driver may start before the head of its cluster
SECONDS_TO_SEE = 30.0  # NFS shows a new file late
SECONDS_TO_CANCEL = 10.0
SEEN = ".engine"  # a file of the run directory with a text that only this driver knows
INSTALL = "install what the driver has: the same wheel, pip install 'tpullm[ray]'"


class Cluster:
    """A Ray cluster; this process connects to it with the first tasks.

    Args:
        run: the run directory.
    """

    def __init__(self, run: Path):
        if importlib.util.find_spec("ray") is None:
            raise UserError("engine: ray is not installed; pip install 'tpullm[ray]', or use --engine processes")
        self._run, self._token, self._is_connected = run, uuid.uuid4().hex, False

    @contextlib.contextmanager
    def tasks(self, title: str) -> Iterator["Tasks"]:
        """Where to submit parts; if the block raises, running ones are cancelled.

        Raises:
            TryAgain: the cluster is gone.
        """
        self._connect()
        import ray

        options = {"num_cpus": 1, "memory": MEMORY_BYTES, "max_retries": RETRIES, "name": title}
        node = (str(self._run), self._token, tuple(versions().items()))
        tasks = Tasks(ray.remote(**options)(_remote(node, os.getcwd())))
        try:
            yield tasks
        except BaseException as error:
            tasks.cancel()
            if isinstance(error, ray.exceptions.RayTaskError):
                raise _explained(error) from (None if isinstance(error.cause, UserError) else error)
            if isinstance(error, ray.exceptions.RayError):
                raise TryAgain(f"engine: {log.one_line(str(error), 300)}; the same command resumes") from error
            raise

    def _connect(self) -> None:
        if self._is_connected:
            return
        address = os.environ.get("RAY_ADDRESS", "local")
        if ":" in address and "//" not in address:
            _wait_for_port(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
        import ray

        storage.write_text(self._run / SEEN, self._token)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            # Without the lines of all nodes: Ray sends those of other programs too (all of /tmp/tpu_logs).
            found = ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise TryAgain(f"engine: no Ray cluster at {address} ({log.one_line(str(error), 300)})") from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray's ends the process without cleaning up
        self._is_connected = True
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        check_memory(nodes)
        where = f"; http://{found.dashboard_url}" if found.dashboard_url else ""
        log.say(f"ray: {len(nodes)} node(s), {sum(node.get('CPU', 0) for node in nodes):,.0f} CPUs{where}")

    def leave(self) -> None:
        """Disconnect. A cluster that was started here ends."""
        if self._is_connected:
            import ray

            ray.shutdown()
        (self._run / SEEN).unlink(missing_ok=True)
        self._is_connected = False


def check_memory(nodes: Sequence[Mapping[str, float]]) -> None:
    """`UserError` if there are nodes with cores, but none has the memory of a task: Ray would wait for one for ever.

    Args:
        nodes: the resources of each node, as Ray counts them.
    """
    found = [node.get("memory", 0) for node in nodes if node.get("CPU", 0) >= 1]
    if found and max(found) < MEMORY_BYTES:
        needs = (
            f"a task needs {MEMORY_BYTES / 2**30:.0f} GiB of memory, and the largest node has {max(found) / 2**30:.1f}"
        )
        raise UserError(f"engine: {needs}; start nodes with more, or a larger --memory")


def _wait_for_port(address: str) -> None:
    """Wait until the head of a cluster listens: Ray itself would try for minutes, and print a line every few seconds.

    Raises:
        TryAgain: nobody listens.
    """
    host, _, port = address.rpartition(":")
    until = time.monotonic() + SECONDS_TO_CONNECT
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), 5.0).close()
        except (OSError, ValueError) as error:
            if time.monotonic() > until or isinstance(error, ValueError):
                raise TryAgain(f"engine: no Ray cluster at {address} ({error}); set RAY_ADDRESS") from None
        time.sleep(1.0)


class Tasks:
    """Submits parts.

    Args:
        task: a remote function, of a pickled function and its part.
    """

    def __init__(self, task: Any):
        self._task, self._running = task, set()

    def submit(self, function: Callable[[Any], None], part: Any) -> Future:
        """Have a part made; the future raises what it raised."""
        reference = self._task.remote(pickle.dumps((function, part)))
        self._running.add(reference)
        future = reference.future()
        future.add_done_callback(lambda _: self._running.discard(reference))
        return future

    def cancel(self) -> None:
        """End what runs, and wait for it: a stage that failed removes its files."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            running = list(self._running)
            for reference in running:
                ray.cancel(reference, force=True)
            ray.wait(running, num_returns=len(running), timeout=SECONDS_TO_CANCEL)


def _remote(node: tuple, folder: str) -> Callable[[bytes], None]:
    """The function of a task. Ray pickles an inner function by value, so a node without tpullm says what it lacks."""

    def part(packed: bytes) -> None:
        import contextlib
        import os
        import pickle

        from tpullm.system.process import ray_tasks

        with contextlib.suppress(OSError):  # paths in the recipe may be relative
            os.chdir(folder)
        ray_tasks.check_node(*node)
        function, own = pickle.loads(packed)
        function(own)

    return part


def _explained(error: Any) -> BaseException:
    """What a part raised, as if it were raised here."""
    cause = error.cause
    if isinstance(cause, ModuleNotFoundError) and cause.name:
        return UnfitNode(f"engine: a node of the cluster has no {cause.name.partition('.')[0]}; {INSTALL}")
    if isinstance(cause, ImportError):
        return UnfitNode(
            f"engine: a node of the cluster can't import the code ({log.one_line(str(cause), 300)}); {INSTALL}"
        )
    return cause if isinstance(cause, BaseException) else error


@functools.cache
def versions() -> dict[str, str]:
    """What the bytes of a part depend on: this code, Python, and the libraries that tpullm requires."""
    folder, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(path for kind in ("*.py", "*.yaml") for path in folder.rglob(kind)):
        name = path.relative_to(folder).as_posix()
        if not name.startswith("configs/"):  # a link in a checkout
            digest.update(f"{name}\0".encode() + path.read_bytes())
    found = {"tpullm": digest.hexdigest()[:12], "Python": platform.python_version()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        for line in metadata.requires("tpullm") or []:
            if "extra ==" not in line:
                name = re.match(r"[\w.-]+", line)[0]
                with contextlib.suppress(metadata.PackageNotFoundError):
                    found[name] = metadata.version(name)
    return found


@functools.cache
def check_node(run: str, token: str, expected: tuple[tuple[str, str], ...]) -> None:
    """Refuse a node that sees another run directory than the driver, or has other versions; once in a process.

    Raises:
        UnfitNode: one line names the node and what differs.
    """
    name = f"engine: node {socket.gethostname()}"
    for package, version in expected:
        if (here := versions().get(package, "no version")) != version:
            raise UnfitNode(f"{name} has {package} {here}, the driver has {version}; {INSTALL}")
    seen, until = storage.path(run) / SEEN, time.monotonic() + SECONDS_TO_SEE
    while True:
        with contextlib.suppress(FileNotFoundError):
            if seen.read_text(encoding="utf-8") == token:
                return
        if time.monotonic() > until:
            raise UnfitNode(f"{name} does not see {run} as the driver does; give --run a folder of all nodes, or gs://")
        time.sleep(1.0)
