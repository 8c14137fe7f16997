"""Become one of several hosts: connect to the others, check that all run the same code, start JAX. And leave again.

Keeps JAX's connection to its coordinator open when host 0 is killed, so that the channel can say who is gone.

JAX aborts a process in C++ 0.1 to 0.3 s after that connection closes, also with `jax_enable_recoverability` (JAX 0.12).
"""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import socket
import threading
import time
from pathlib import Path

from tpullm import __version__
from tpullm.system import log
from tpullm.system.cluster import handshake, hosts
from tpullm.system.cluster.place import SLURM, Place
from tpullm.system.errors import UserError


def relay(host: str, port: int) -> int:
    """A port of this machine that forwards to `host:port`, and stays open when that side closes."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            near, _ = server.accept()
            threading.Thread(target=_forward_both, args=(near, host, port), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return server.getsockname()[1]


def _forward_both(near: socket.socket, host: str, port: int) -> None:
    while True:
        try:
            far = socket.create_connection((host, port), timeout=60)
            break
        except OSError:
            time.sleep(0.1)  # host 0 has not started JAX's coordinator yet; JAX has its own time limit
    far.settimeout(None)
    threading.Thread(target=_forward, args=(near, far), daemon=True).start()
    _forward(far, near)


def _forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


SECONDS_TO_JOIN = 300.0  # as `jax.distributed.initialize` waits
SECONDS_OF_A_DAY = 86_400
# What decides numbers, tokens and, when a model is evaluated on all hosts, which words are looked at.
COMPARED = ("jax", "jaxlib", "numpy", "sentencepiece", "tokenizers", "sudachipy")
THIS_MACHINE = ("127.0.0.1", "localhost")


def join(place: Place) -> None:
    """Connect to the other hosts, then start JAX on them; before anything asks JAX for a device.

    Raises:
        UserError: hosts are missing, contradict each other, or run different code.
    """
    if place.count == 1:
        return
    if not place.is_first:
        log.speak_as(f"host {place.index}", only_warns=True)
    name, own_secret = socket.gethostname(), handshake.take(os.environ)
    host, _, port = place.coordinator.rpartition(":")
    host = host.strip("[]")
    # Host 0 listens where the others may come from: everywhere, or on this machine only.
    address = "127.0.0.1" if host in THIS_MACHINE else "0.0.0.0"
    if place.is_first:
        if not own_secret and host not in THIS_MACHINE:
            log.warn(
                f"hosts: {handshake.VARIABLE} is not set, so whoever reaches port {port} of this machine can join; "
                "set it to the same random text on all hosts"
            )
        notice = {"jax_port": handshake.free_port()}
        channel = handshake.receive(int(port), place.count, name, SECONDS_TO_JOIN, notice, own_secret, address)
        jax_port = notice["jax_port"]
    else:
        channel, notice = handshake.connect(
            host, int(port), place.index, place.count, name, SECONDS_TO_JOIN, own_secret
        )
        jax_port = relay(host, notice["jax_port"])
    hosts.use(channel)
    hosts.agree("the code", _code())
    _start_jax(place, jax_port, address)
    log.say(f"place: host 0 of {place.count}, by {place.source}; all: {', '.join(channel.names)}")


def _start_jax(place: Place, port: int, address: str) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's preemption service would replace our handler of SIGTERM, which saves.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            f"127.0.0.1:{port}",
            place.count,
            place.index,
            # Under Slurm, JAX gives each process of a machine its own devices.
            cluster_detection_method=None if place.source == SLURM else "deactivate",
            coordinator_bind_address=f"{address}:{port}",
            # The channel notices a host that is gone. JAX's own heartbeats go by a clock that may be set an hour on.
            heartbeat_timeout_seconds=SECONDS_OF_A_DAY,
        )
    except RuntimeError as error:
        raise UserError(f"hosts: JAX can't connect the hosts ({' '.join(str(error).split())[:200]})") from error


def _code() -> dict[str, str]:
    """What must be equal for hosts to compute the same: versions, and the hash of each source file of this package."""
    package = Path(__file__).parents[2]
    files = {str(path.relative_to(package.parent)): path.read_bytes() for path in sorted(package.rglob("*.py"))}
    versions = {name: importlib.metadata.version(name) for name in COMPARED}
    return {"tpullm": __version__, "python": platform.python_version(), **versions} | {
        name: hashlib.sha256(content).hexdigest()[:12] for name, content in files.items()
    }


def leave() -> None:
    """At the end of a command that succeeded: wait for all hosts, then disconnect."""
    if hosts.connection() is None:
        return
    import jax

    hosts.barrier("the end")
    hosts.connection().leave()
    jax.distributed.shutdown()
