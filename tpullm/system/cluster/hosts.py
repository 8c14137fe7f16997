"""The hosts of one training: become one of them, and what they do together: wait, exchange values, differ, fail, leave.

One process alone is one host, and then nothing here waits. With several hosts, host 0 writes files and log lines; the
others read a file after a `barrier`. `jax.experimental.multihost_utils` would need arrays of one shape and a running
JAX, and a host that fails would leave the others in a collective.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tpullm import __version__
from tpullm.system import log
from tpullm.system.cluster import channel, handshake
from tpullm.system.cluster.channel import MOST_BYTES, Channel, Message
from tpullm.system.cluster.place import SLURM, Place
from tpullm.system.errors import UserError

SECONDS_TO_JOIN = 300.0  # as `jax.distributed.initialize` waits
# What decides numbers, tokens and, when a model is evaluated on all hosts, which words are looked at.
COMPARED = ("jax", "jaxlib", "numpy", "sentencepiece", "tokenizers", "sudachipy")
THIS_MACHINE = ("127.0.0.1", "localhost")
_PIECE = MOST_BYTES // 8  # characters, which may become several bytes each

_channel: Channel | None = None
_arrived: dict[int, tuple[str, Any]] = {}  # on host 0: what the hosts gather now, its name and value, by host
_gathered: list[Any] | None = None  # the values of all hosts, until this one takes them


def join(place: Place) -> None:
    """Connect to the other hosts, then start JAX on them; before anything asks JAX for a device.

    Raises:
        UserError: hosts are missing, contradict each other, or run different code.
    """
    if place.count == 1:
        return
    name, secret = socket.gethostname(), handshake.take(os.environ)
    host, _, port = place.coordinator.rpartition(":")
    host = host.strip("[]")
    # Host 0 listens where the others may come from: everywhere, or on this machine only.
    address = "127.0.0.1" if host in THIS_MACHINE else "0.0.0.0"
    if place.is_first:
        if not secret and host not in THIS_MACHINE:
            log.warn(
                f"hosts: {handshake.VARIABLE} is not set, so whoever reaches port {port} of this machine can join; "
                "set it to the same random text on all hosts"
            )
        jax_port = handshake.free_port()
        notice = {"jax_port": jax_port}
        connected = handshake.receive(int(port), place.count, name, SECONDS_TO_JOIN, notice, secret, address)
    else:
        log.speak_as(f"host {place.index}", only_warns=True)
        own = (place.index, place.count, name)
        connected, notice = handshake.connect(host, int(port), *own, SECONDS_TO_JOIN, secret)
        jax_port = relay(host, notice["jax_port"])
    use(connected)
    agree("the code", _versions_and_code_hashes())
    _start_jax(place, jax_port, address)
    log.say(f"place: host 0 of {place.count}, by {place.source}; all: {', '.join(connected.names)}")


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
            heartbeat_timeout_seconds=86_400,
        )
    except RuntimeError as error:
        raise UserError(f"hosts: JAX can't connect the hosts ({' '.join(str(error).split())[:200]})") from error


def _versions_and_code_hashes() -> dict[str, str]:
    """What must be equal for hosts to compute the same: versions, and the hash of each source file of this package."""
    package = Path(__file__).parents[2]
    files = {str(path.relative_to(package.parent)): path.read_bytes() for path in sorted(package.rglob("*.py"))}
    versions = {name: importlib.metadata.version(name) for name in COMPARED}
    return {"tpullm": __version__, "python": platform.python_version(), **versions} | {
        name: hashlib.sha256(content).hexdigest()[:12] for name, content in files.items()
    }


def relay(host: str, port: int) -> int:
    """A port of this machine that forwards to `host:port`, and stays open when that side closes.

    Through it JAX talks to its coordinator. JAX aborts a process in C++ 0.1 to 0.3 s after that connection closes, also
    with `jax_enable_recoverability` (JAX 0.12), before the channel can say who is gone.
    """
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            near, _ = server.accept()
            threading.Thread(target=_forward_both_ways, args=(near, host, port), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return server.getsockname()[1]


def _forward_both_ways(near: socket.socket, host: str, port: int) -> None:
    while True:
        try:
            far = socket.create_connection((host, port), timeout=60)
            break
        except OSError:
            time.sleep(0.1)  # host 0 has not started JAX's coordinator yet; JAX has its own time limit
    far.settimeout(None)
    threading.Thread(target=_forward_bytes, args=(near, far), daemon=True).start()
    _forward_bytes(far, near)


def _forward_bytes(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


def leave() -> None:
    """At the end of a command that succeeded: wait for all hosts, then disconnect."""
    if _channel is None:
        return
    import jax

    barrier("the end")
    _channel.leave()
    jax.distributed.shutdown()


def use(connected: Channel) -> None:
    """Make this process one of several hosts."""
    global _channel
    _channel = connected
    _channel.handlers |= {"gather": _collect_values, "gathered": _receive_message}
    _channel.start()


def index() -> int:
    """Which host this is."""
    return _channel.index if _channel else 0


def count() -> int:
    """How many hosts there are."""
    return len(_channel.names) if _channel else 1


def is_first() -> bool:
    """Whether this host writes files and log lines."""
    return index() == 0


def connection() -> Channel | None:
    """The channel to the other hosts; None if there are none."""
    return _channel


def gather(name: str, value: Any) -> list[Any]:
    """The values (JSON) of all hosts, by index; waits for all hosts. `name` must be the same on all.

    Raises:
        HostFailed: another host failed.
    """
    global _gathered
    if _channel is None:
        return [value]
    _channel.send(0, {"kind": "gather", "name": name, "value": value})
    _channel.wait(lambda: _gathered is not None)
    values, _gathered = _gathered, None
    return values


def _collect_values(sender: int, message: channel.Message) -> None:
    """On host 0: when the values of all hosts have arrived, send them to all."""
    with _channel.changed:
        if sender in _arrived:  # a host waits for the values of all before it sends its next one
            raise ValueError("a value before all have sent theirs")
        _arrived[sender] = (message["name"], message["value"])
        if len(_arrived) < count():
            return
        names, values = zip(*(_arrived[host] for host in range(count())), strict=True)
        _arrived.clear()
    if len(set(names)) > 1:
        fail(f"the hosts wait for different things: {', '.join(sorted(set(names)))}; report this", 1)
    _channel.broadcast({"kind": "gathered", "values": list(values)})


def _receive_message(sender: int, message: channel.Message) -> None:
    global _gathered
    with _channel.changed:
        _gathered = message["values"]
        _channel.changed.notify_all()


def wait_for(event: threading.Event) -> None:
    """Wait for what happens on this host alone, a second at a time: a signal just before a wait does not end it.

    Raises:
        HostFailed: another host failed meanwhile.
    """
    while not event.wait(1.0):
        if _channel and _channel.failure:
            raise _channel.failure


def barrier(name: str) -> None:
    """Wait until all hosts are here."""
    gather(name, None)


def on_first(name: str, work: Callable, *arguments: Any) -> None:
    """Call `work` on host 0; the other hosts wait until it is done."""
    if is_first():
        work(*arguments)
    barrier(name)


def broadcast(name: str, ask: Callable[[], Any]) -> Any:
    """What `ask` returns on host 0 (JSON), on every host: for decisions that must be the same on all."""
    return gather(name, ask() if is_first() else None)[0]


def agree(what: str, value: Mapping[str, Any]) -> None:
    """Raise `UserError` if a host has another value; the line names the first key in which it differs."""
    everywhere = gather(what, _dotted_values(value))
    for host, other in enumerate(everywhere):
        for key in everywhere[0] | other:
            if everywhere[0].get(key) != other.get(key):
                raise UserError(
                    f"{what}: {_channel.called(host)} has {key} {other.get(key)!r}, "
                    f"{_channel.called(0)} has {everywhere[0].get(key)!r}; start all hosts with the same"
                )


def _dotted_values(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested dicts and lists, with values as JSON returns them."""
    found: dict[str, Any] = {}
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        nested = isinstance(item, Mapping | list | tuple) and len(item) > 0
        found |= _dotted_values(item, f"{prefix}{key}.") if nested else {f"{prefix}{key}": item if item != () else []}
    return found


def fail(message: str, code: int) -> None:
    """At the end of a command that failed: tell the other hosts, and exit without waiting for them."""
    if _channel is not None:
        _channel.fail(message, code)
        channel.end_process(message, code)


def wait_for_cause(error: BaseException) -> None:
    """After a collective failed: give the channel time to report the host that is gone, which is then the cause."""
    if _channel is not None and type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
        time.sleep(channel.SECONDS_TO_WARN + channel.SECONDS_BETWEEN_BEATS)


class FromFirst:
    """Values (JSON) of any length that host 0 sends to the others, in order, without a barrier.

    Args:
        name: what they are about; another one for each `FromFirst`.
        channel: to the other hosts. All hosts must have made their `FromFirst` before host 0 tells anything.
    """

    def __init__(self, name: str, channel: Channel):
        self._kind, self._channel = f"told {name}", channel
        self._pieces: list[str] = []
        self._whole: deque[str] = deque()
        channel.handlers[self._kind] = self._arrive

    def tell(self, value: Any) -> None:
        """On host 0: tell the others."""
        text = json.dumps(value)
        for start in range(0, len(text), _PIECE):
            message = {"kind": self._kind, "text": text[start : start + _PIECE], "ends": start + _PIECE >= len(text)}
            self._channel.broadcast(message)

    def next(self) -> Any:
        """On the others: the next value, as soon as it is there.

        Raises:
            HostFailed: another host failed.
        """
        self._channel.wait(lambda: self._whole)
        return json.loads(self._whole.popleft())

    def _arrive(self, sender: int, message: Message) -> None:
        if sender or not isinstance(message["text"], str):
            raise ValueError("no words of host 0")
        if self._channel.index == 0:
            return
        with self._channel.changed:
            self._pieces.append(message["text"])
            if message["ends"]:
                self._whole.append("".join(self._pieces))
                self._pieces = []
                self._channel.changed.notify_all()
