"""How the hosts meet: each connects to host 0, which answers with the names of all when all are there.

    a host    {"index", "count", "name", "number"}
    host 0    {"number"}
    a host    {"proof"}                                 of its first line and of both numbers
    host 0    {"answer", "proof"}                       when all are there; the proof is also of the answer

A proof is an HMAC with the secret that the hosts of one training share. The secret itself is never sent.

Anybody can connect to host 0. It reads all connections at once, each for at most `SECONDS_TO_SPEAK`, and drops whoever
says anything else or has another secret. Without a secret, whoever says the above is a host. Two hosts that contradict
each other end the start of all.
"""

import contextlib
import hmac
import json
import random
import secrets
import selectors
import socket
import time
from collections.abc import MutableMapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Annotated, Any

import pydantic
from pydantic import Field

from tpullm.system.cluster.channel import MOST_BYTES, Channel, Connection, Message
from tpullm.system.errors import TRY_AGAIN, TryAgain, UserError
from tpullm.system.log import warn

VARIABLE = "TPULLM_HOSTS_SECRET"  # not a flag: every user of a machine sees the flags of all processes
FEWEST_CHARACTERS = 16  # whoever hears one handshake can try short secrets at leisure
SECONDS_TO_SPEAK = 10.0  # for both lines of a host, which it sends at once
MOST_SPEAKING = 256  # connections that have not proven anything; one more ends the oldest of them


def make() -> str:
    """A new secret, for `VARIABLE`."""
    return secrets.token_hex(32)


def take(environment: MutableMapping[str, str]) -> bytes:
    """The secret of this process, and remove it: what it starts need not know. Empty if there is none.

    Raises:
        UserError: it is too short.
    """
    secret = environment.pop(VARIABLE, "")
    if 0 < len(secret) < FEWEST_CHARACTERS:
        raise UserError(f"{VARIABLE}: is shorter than {FEWEST_CHARACTERS} characters, so it can be guessed; use more")
    return secret.encode()


def prove(secret: bytes, *facts: Any) -> str:
    """The proof that whoever says `facts` (JSON) has the secret; without a secret an empty text."""
    return hmac.new(secret, json.dumps(facts, sort_keys=True).encode(), "sha256").hexdigest() if secret else ""


def proves(given: Any, secret: bytes, *facts: Any) -> bool:
    """Whether `given`, which may be anything, is the `proof` of the facts."""
    return hmac.compare_digest(str(given).encode(errors="replace"), prove(secret, *facts).encode())


def free_port() -> int:
    """A free TCP port, to be bound right away.

    Not one that the system would choose: in about one of a thousand starts on a busy machine the system gave such a
    port to another process in the meantime.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise UserError("hosts: no port between 20,000 and 32,000 is free; stop what listens on them")


@pydantic.dataclasses.dataclass(frozen=True, config={"strict": True})
class Hello:
    """What a host says first: its index, how many hosts it counts, its name, and a random number.

    `ValueError` if anybody says something else.
    """

    index: Annotated[int, Field(ge=0, lt=1 << 31)]
    count: Annotated[int, Field(ge=0, lt=1 << 31)]
    name: Annotated[str, Field(max_length=255, pattern=r"^( |[^\p{C}\p{Z}])*$")]  # printable
    number: Annotated[str, Field(max_length=255)]


@dataclass(eq=False)
class _Guest:
    """A connection to host 0."""

    connection: Connection
    address: str
    until: float
    number: str = field(default_factory=secrets.token_hex)
    hello: Hello | None = None


class _Reception:
    """Host 0's open port. `hosts` are the connections that may be hosts, in the order in which they proved it."""

    def __init__(self, server: socket.socket, secret: bytes):
        self._server, self._secret = server, secret
        self._server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ)
        self._speaking: list[_Guest] = []
        self.hosts: list[_Guest] = []
        self.refused = 0  # connections without the secret

    def look(self, seconds: float) -> None:
        """Read what arrives within `seconds`, and drop who said nothing for too long."""
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._accept()
            elif key.data in self._speaking or key.data in self.hosts:  # else dropped since the line above
                try:
                    self._answer(key.data)
                except (OSError, ValueError):
                    self.drop(key.data)
        for guest in [guest for guest in self._speaking if time.monotonic() > guest.until]:
            self.drop(guest)

    def _accept(self) -> None:
        try:
            peer, address = self._server.accept()
        except BlockingIOError:  # it is gone again
            return
        except OSError:  # this process has too many open files, say
            if self._speaking:
                self.drop(self._speaking[0])
            return
        guest = _Guest(Connection(peer, most_bytes=4096), address[0], time.monotonic() + SECONDS_TO_SPEAK)
        self._selector.register(guest.connection, selectors.EVENT_READ, guest)
        self._speaking.append(guest)
        if len(self._speaking) > MOST_SPEAKING:
            self.drop(self._speaking[0])

    def _answer(self, guest: _Guest) -> None:
        if (message := guest.connection.look()) is None:
            return
        if guest in self.hosts or guest.connection.data:
            raise ValueError("says more than it was asked")
        if guest.hello is None:
            guest.hello = Hello(*map(message.get, ("index", "count", "name", "number")))
            guest.connection.send({"number": guest.number})
        elif proves(message.get("proof"), self._secret, "host", *astuple(guest.hello), guest.number):
            self._speaking.remove(guest)
            self.hosts.append(guest)
        else:  # a stranger, or a host that was started with another secret
            self.refused += 1
            if self.refused <= 10:
                warn(f"hosts: {guest.address} says it is host {guest.hello.index}, without the secret; dropped")
            self.answer(guest, {"refused": f"host 0 has another {VARIABLE}; start all hosts with the same"})
            self.drop(guest)

    def answer(self, guest: _Guest, answer: Message) -> None:
        """The last message to a guest; one that is gone by now is noticed later."""
        proof = prove(self._secret, "host 0", *astuple(guest.hello), guest.number, answer)
        with contextlib.suppress(OSError):
            guest.connection.send({"answer": answer, "proof": proof})

    def refuse_all(self, error: UserError) -> UserError:
        """Tell all hosts why there is no training, and return that."""
        for guest in self.hosts:
            self.answer(guest, {"refused": str(error), "code": error.code})
        return error

    def drop(self, guest: _Guest) -> None:
        """End a connection."""
        self._selector.unregister(guest.connection)
        (self.hosts if guest in self.hosts else self._speaking).remove(guest)
        guest.connection.close()

    def close(self) -> None:
        """End all connections that are no hosts'."""
        for guest in list(self._speaking):
            self.drop(guest)
        self._selector.close()


def receive(
    port: int, count: int, name: str, seconds: float, notice: Message, secret: bytes = b"", address: str = ""
) -> Channel:
    """Host 0: wait until all other hosts are connected, then send them the names of all and `notice`.

    Args:
        secret: see `take`; empty is none.
        address: of this machine, to listen on; empty is all.

    Raises:
        UserError: the port can't be used, or two hosts contradict each other.
        TryAgain: hosts are missing after `seconds`.
    """
    try:
        server = socket.create_server((address, port), backlog=count + MOST_SPEAKING)
    except OSError as error:
        raise UserError(f"hosts.coordinator: port {port} can't be used ({error.strerror}); choose another") from None
    with server, contextlib.closing(_Reception(server, secret)) as reception:
        members = _wait_for_all(reception, count, name, seconds)
        names = [name, *(members[host].hello.name for host in range(1, count))]
        for guest in members.values():
            reception.answer(guest, {"names": names, **notice})
            guest.connection.most_bytes = MOST_BYTES
    return Channel(0, names, {host: guest.connection for host, guest in members.items()})


def _wait_for_all(reception: _Reception, count: int, name: str, seconds: float) -> dict[int, _Guest]:
    """The other hosts, by index. All are refused if one contradicts host 0 or another."""
    until = time.monotonic() + seconds
    while True:
        members: dict[int, _Guest] = {}
        for guest in reception.hosts:
            hello, taken = guest.hello, {0: name} | {host: one.hello.name for host, one in members.items()}
            if hello.count != count or hello.index >= count or hello.index in taken:
                known = hello.count == count and hello.index in taken
                why = f"which {taken[hello.index]} is already" if known else f"and host 0 counts {count}"
                told = f"hosts: {hello.name} says it is index {hello.index} of {hello.count}, {why}"
                raise reception.refuse_all(UserError(f"{told}; correct the settings"))
            members[hello.index] = guest
        if len(members) == count - 1:
            return members
        if time.monotonic() > until:
            # A machine may have been taken back before it came this far, so another start may have them all.
            missing = ", ".join(str(host) for host in range(1, count) if host not in members)
            strangers = f" ({reception.refused} without the secret were dropped)" if reception.refused else ""
            told = f"no answer from host(s) {missing} of {count} in {seconds:.0f} s{strangers}; start them all"
            raise reception.refuse_all(TryAgain(told))
        reception.look(min(0.5, max(0.0, until - time.monotonic())))


def connect(
    host: str, port: int, index: int, count: int, name: str, seconds: float, secret: bytes = b""
) -> tuple[Channel, Message]:
    """Any other host: connect to host 0; the channel, and the answer with the notice of `receive`.

    Raises:
        UserError: host 0 refuses, or has another secret.
        TryAgain: host 0 does not answer within `seconds`, or misses other hosts.
    """
    until = time.monotonic() + seconds
    while True:
        hello = Hello(index, count, name, secrets.token_hex())
        try:
            peer = socket.create_connection((host, port), timeout=max(1.0, until - time.monotonic()))
            connection, answer = _introduce_host(peer, hello, secret, until)
            break
        except (OSError, ValueError) as error:
            if time.monotonic() > until - 1:
                raise TryAgain(
                    f"hosts.coordinator: no answer from host 0 at {host}:{port} in {seconds:.0f} s ({error}); "
                    "start all hosts, and give all the address of host 0"
                ) from None
            time.sleep(0.2)
    if "refused" in answer:
        raise (TryAgain if answer.get("code") == TRY_AGAIN else UserError)(str(answer["refused"]))
    return Channel(index, answer["names"], {0: connection}), answer


def _introduce_host(peer: socket.socket, hello: Hello, secret: bytes, until: float) -> tuple[Connection, Message]:
    """Say who this host is and wait for the answer; `OSError` or `ValueError` if the other end is not host 0."""
    connection = Connection(peer, MOST_BYTES * hello.count)
    try:
        connection.send(asdict(hello))
        number = connection.receive(SECONDS_TO_SPEAK).get("number")
        connection.send({"proof": prove(secret, "host", *astuple(hello), number)})
        last = connection.receive(max(1.0, until - time.monotonic()))
        answer = last.get("answer")
        if not isinstance(answer, dict):
            raise ValueError("not what host 0 says")
        if not proves(last.get("proof"), secret, "host 0", *astuple(hello), number, answer):
            raise UserError(f"hosts: host 0 has another {VARIABLE} than host {hello.index}; set the same on all")
    except BaseException:
        connection.close()
        raise
    return connection, answer
