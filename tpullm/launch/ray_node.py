"""This machine's node of the Ray cluster of a launch: host 0 has the head, and the driver beside it.

A node that ends is started again, so machines may come and go in any order. `python -m tpullm.launch.ray_node` keeps
the node of a task of Slurm; `supervisor.py` keeps that of any other machine.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping

from tpullm.launch.child_process import Child
from tpullm.system import log
from tpullm.system.cluster import handshake, place
from tpullm.system.cluster.place import Place

SECONDS_BETWEEN_STARTS = 2.0
SECONDS_TO_END = 10.0
OBJECT_BYTES = 100_000_000  # parts leave files and return nothing; Ray would take 30 % of the memory


def variables(secret: str) -> dict[str, str]:
    """The variables of all processes of the cluster: only who has the secret may use it."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secret, "RAY_USAGE_STATS_ENABLED": "0"}


def command(here: Place) -> list[str]:
    """What runs the node of a host."""
    join = f"--address={here.coordinator}"
    which = ["--head", f"--port={here.coordinator.rpartition(':')[2]}"] if here.is_first else [join]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", *which]
    return [*start, "--block", f"--object-store-memory={OBJECT_BYTES}"]


def keep(here: Place, environment: Mapping[str, str], line: Callable[[str], None], stopping: threading.Event) -> None:
    """Run the node of a host, again and again, until `stopping` is set.

    Args:
        here: the host.
        environment: all environment variables of the node.
        line: called with each line that Ray prints.
    """
    while not stopping.is_set():
        child = Child(command(here), environment, line)
        try:
            while child.poll() is None and not stopping.wait(0.2):
                pass
            child.send(signal.SIGTERM)
            until = time.monotonic() + SECONDS_TO_END
            while child.poll() is None and time.monotonic() < until:
                time.sleep(0.1)
        finally:
            child.kill()
        stopping.wait(SECONDS_BETWEEN_STARTS)


def main() -> None:
    """Keep the node of this task until SIGTERM."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    here = place.find({}, os.environ)
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # that is the driver's
    keep(here, own | variables(os.environ[handshake.VARIABLE]), log.say, stopping)


if __name__ == "__main__":
    main()
