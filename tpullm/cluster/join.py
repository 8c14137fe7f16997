"""Becoming one of several hosts: connect to the others, check that all run the same code, then start JAX."""

import hashlib
import importlib.metadata
import socket
from pathlib import Path

from tpullm import __version__, log
from tpullm.cluster import channel, hosts
from tpullm.cluster.place import SECONDS_TO_JOIN, Place
from tpullm.errors import UserError


def join(place: Place) -> None:
    """Connect to the other hosts, then have JAX do so; before anything asks JAX for a device.

    Raises:
        UserError: hosts are missing or contradict each other.
    """
    if place.count == 1:
        return
    if place.index > 0:
        log.speak_as(f"host {place.index}", only_warns=True)
    name = socket.gethostname()
    host, _, port = place.coordinator.rpartition(":")
    host = host.strip("[]")
    if place.index == 0:
        jax_port = channel.free_port()
        to_others = channel.receive(int(port), place.count, name, SECONDS_TO_JOIN, {"jax_port": jax_port})
    else:
        to_others, told = channel.connect(host, int(port), place.index, place.count, name, SECONDS_TO_JOIN)
        jax_port = channel.relay(host, told["jax_port"])
    hosts.connected(to_others)
    hosts.agree("the code", _code())
    _start_jax(place, jax_port)
    log.say(f"place: host 0 of {place.count}, by {place.source}; all: {', '.join(to_others.names)}")


def _start_jax(place: Place, port: int) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself; ours saves.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            f"127.0.0.1:{port}",
            place.count,
            place.index,
            cluster_detection_method=None if place.slurm else "deactivate",
            coordinator_bind_address=f"0.0.0.0:{port}",
        )
    except RuntimeError as error:
        raise UserError(f"hosts: JAX can't connect the hosts ({' '.join(str(error).split())[:200]})") from error


def _code() -> dict[str, str]:
    """What makes two hosts compute the same: the source files of this package and the libraries' versions."""
    package = Path(__file__).parents[1]
    files = {str(path.relative_to(package.parent)): path.read_bytes() for path in sorted(package.rglob("*.py"))}
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {"tpullm": __version__, **versions} | {
        name: hashlib.sha256(content).hexdigest()[:12] for name, content in files.items()
    }


def leave() -> None:
    """At the end of a command that succeeded: wait for all, and disconnect."""
    if hosts.connection() is None:
        return
    import jax

    hosts.barrier("the end")
    hosts.connection().leave()
    jax.distributed.shutdown()
