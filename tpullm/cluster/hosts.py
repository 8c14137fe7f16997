"""Several hosts (processes) that train one model: how they wait for each other and find out whether they agree.

One process is one host: then nothing here waits. With several, host 0 makes what is one (files, log lines), and what it
makes is read after a `barrier`. How a process becomes one of several: `joining.py`.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from tpullm.cluster import channel
from tpullm.cluster.channel import Channel
from tpullm.errors import UserError

_channel: Channel | None = None
_turn = 0  # how often the hosts have waited for each other


def connected(to_others: Channel) -> None:
    """From now on this process is one of several hosts."""
    global _channel
    _channel = to_others
    _channel.handlers |= {"gather": _collect, "gathered": _hear}
    _channel.start()


def index() -> int:
    """Which host this is."""
    return _channel.index if _channel else 0


def count() -> int:
    """How many hosts there are."""
    return len(_channel.names) if _channel else 1


def is_first() -> bool:
    """Whether this host makes what is one."""
    return index() == 0


def connection() -> Channel | None:
    """The channel to the other hosts; None if there are none."""
    return _channel


def gather(name: str, value: Any) -> list[Any]:
    """The value (JSON) of every host, by index; all wait for each other. `name` must be the same on all.

    Raises:
        HostFailed: another host failed.
    """
    global _turn
    if _channel is None:
        return [value]
    _turn += 1
    turn = str(_turn)
    _channel.send(0, {"kind": "gather", "turn": turn, "name": name, "value": value})
    _channel.wait(lambda: turn in _gathered)
    return _gathered.pop(turn)


_arrived: dict[str, dict[int, tuple[str, Any]]] = {}  # on host 0, by turn and host
_gathered: dict[str, list[Any]] = {}


def _collect(sender: int, message: channel.Message) -> None:
    with _channel.changed:
        arrived = _arrived.setdefault(message["turn"], {})
        arrived[sender] = (message["name"], message["value"])
        complete = len(arrived) == count()
    if complete:
        names = {arrived[host][0] for host in arrived}
        if len(names) > 1:
            fail(f"the hosts wait for different things: {', '.join(sorted(names))}; report this", 1)
        del _arrived[message["turn"]]
        values = [arrived[host][1] for host in range(count())]
        _channel.broadcast({"kind": "gathered", "turn": message["turn"], "values": values})


def _hear(sender: int, message: channel.Message) -> None:
    with _channel.changed:
        _gathered[message["turn"]] = message["values"]
        _channel.changed.notify_all()


def barrier(name: str) -> None:
    """Wait until all hosts are here."""
    gather(name, None)


def by_first(name: str, work: Callable, *arguments: Any) -> None:
    """Have host 0 do something; the others wait until it is done."""
    if is_first():
        work(*arguments)
    barrier(name)


def first_says(name: str, ask: Callable[[], Any]) -> Any:
    """What host 0 finds (JSON), on every host: what decides where a program goes on must be the same on all."""
    return gather(name, ask() if is_first() else None)[0]


def agree(what: str, value: Mapping[str, Any]) -> None:
    """Refuse to go on with hosts that were started differently; the line names the first key in which they differ."""
    flat = _flat(value)
    everywhere = gather(what, flat)
    for host, other in enumerate(everywhere):
        differing = [key for key in everywhere[0] | other if everywhere[0].get(key) != other.get(key)]
        if differing:
            key, names = differing[0], _channel.names
            raise UserError(
                f"{what}: host {host} ({names[host]}) has {key} {other.get(key)!r}, "
                f"host 0 ({names[0]}) has {everywhere[0].get(key)!r}; start all hosts with the same"
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested dicts and lists, as JSON gives them back."""
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    found: dict[str, Any] = {}
    for key, item in pairs:
        nested = isinstance(item, Mapping | list | tuple) and len(item) > 0
        found |= _flat(item, f"{prefix}{key}.") if nested else {f"{prefix}{key}": item if item != () else []}
    return found


def fail(message: str, code: int) -> None:
    """At the end of a command that did not: tell the others, and end without waiting for them."""
    if _channel is not None:
        _channel.fail(message, code)
        channel.end_process(message, code)


def wait_for_cause(error: BaseException) -> None:
    """Give the channel time to say that another host is gone, when a collective failed: that is why, then."""
    if _channel is not None and type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
        time.sleep(channel.SECONDS_SILENT + channel.SECONDS_BETWEEN_BEATS)
