"""The address that the server listens on, and uvicorn with bounds on what a client may cost before it is authorized."""

import asyncio
import errno
import ipaddress
import json
import os
import socket
import threading

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from tpullm.serving.refusal import Refusal
from tpullm.system.errors import UserError
from tpullm.system.log import one_line, say

MOST_HEADER_BYTES = 32 << 10
MOST_CONNECTIONS = 512
REQUEST_SECONDS = 60  # for a whole request to arrive
STALL_SECONDS = 60  # for a client to read what was sent
KEEP_SECONDS = 30  # that a connection may be without a request
LINGER_SECONDS = 2  # for a client that is refused while it sends to read why
STOP_SECONDS = 5  # for answers to end when the server stops


def bound_socket(host: str, port: int) -> socket.socket:
    """A listening socket; `UserError` if the address can't be used. Clients wait until the server is there."""
    where = f"--host {host} --port {port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UserError(f"{where}: no such address ({error.strerror}); use one of this machine") from None
    family, _, _, _, address = found[0]
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # `::` is every address of this machine
    try:
        return socket.create_server(address, family=family, backlog=128, dualstack_ipv6=both)
    except OSError as error:
        what = "another program listens there" if error.errno == errno.EADDRINUSE else os.strerror(error.errno).lower()
        raise UserError(f"{where}: {what}; choose another --port or --host") from None


def is_local_listener(listener: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


class Listening:
    """Answers requests in a thread of its own, from `start` to `stop`."""

    def __init__(self, app: ASGIApp, listener: socket.socket):
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",  # the application logs, and so does `BoundedProtocol`
            access_log=False,
            proxy_headers=False,  # anybody can send them
            server_header=False,
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
            timeout_keep_alive=KEEP_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="listens", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self, first) -> None:
        """Call `first` in the thread of the event loop, then end when all connections are closed, or soon."""
        if self._server.started and self._thread.is_alive():
            self._server.servers[0].get_loop().call_soon_threadsafe(first)
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS + 5)


class ClosedInStages:
    """A transport whose `close` lets a client that still sends read its answer.

    To close a socket that has bytes nobody read resets the connection, and a client may then lose the answer that is on
    its way (RFC 9112, section 9.6). So first our side ends alone, and what comes is dropped; the rest ends when the
    client has ended, or after `LINGER_SECONDS`.
    """

    def __init__(self, transport: asyncio.Transport, protocol: "BoundedProtocol"):
        self._transport, self._protocol = transport, protocol
        self.lingers = False  # whether only the client's side is open

    def __getattr__(self, name: str):
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing is sent any more, and what comes is dropped."""
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        """Send what is left and close, in stages if the client still sends."""
        if self.is_closing():
            return
        if self._protocol.conn.their_state not in (h11.SEND_BODY, h11.ERROR):
            self._transport.close()
            return
        self.lingers = True
        self._protocol.end_work()
        self._transport.write_eof()
        self._transport.resume_reading()
        self._protocol.loop.call_later(LINGER_SECONDS, self._transport.close)


class BoundedProtocol(H11Protocol):
    """A connection. A request must arrive in time, and a client must read its answer; else the connection ends."""

    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _since = 0.0  # when the connection began, or its last answer ended

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for a request."""
        super().connection_made(ClosedInStages(transport, self))
        self._wait()
        self._since = self.loop.time()
        if len(self.connections) <= MOST_CONNECTIONS:
            return
        refused = [one for one in self.connections if one.transport.lingers]
        if refused:
            min(refused, key=lambda one: one._since).transport.abort()
        else:
            # The one that has kept us waiting for a whole request the longest makes room. This one has not asked yet.
            waits = [one for one in self.connections if one.conn.their_state in (h11.IDLE, h11.SEND_BODY)]
            oldest = min(waits, key=lambda one: one._since)
            oldest._refuse(Refusal(f"{MOST_CONNECTIONS} connections are open; try again later", status=503))

    def connection_lost(self, exc: Exception | None) -> None:
        """End all timers."""
        self._arrived()
        self.resume_writing()
        super().connection_lost(exc)

    def end_work(self) -> None:
        """Tell the application that nobody waits for its answer, if it is not through."""
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        """A request must be whole in time from its first byte on."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._wait()
        else:
            self._arrived()

    def on_response_complete(self) -> None:
        """The next request may take its time to come, as long as `KEEP_SECONDS`."""
        super().on_response_complete()
        self._since = self.loop.time()
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._arrived()
        elif self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._wait()

    def _wait(self) -> None:
        if self._late is None and not self.transport.is_closing():
            late = Refusal(f"the request did not arrive within {REQUEST_SECONDS} s", status=408)
            self._late = self.loop.call_later(REQUEST_SECONDS, self._refuse, late)

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has too many headers."""
        self._refuse(Refusal("this is not a request of HTTP/1.1, or its headers are too long"))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer without the application, if there is no answer yet; then close the connection."""
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            say(one_line(f"{self.client[0] if self.client else '?'}: {refusal.status} {refusal}"))
            body = json.dumps(refusal.body()).encode()
            headers = {"content-type": "application/json", "connection": "close", "content-length": str(len(body))}
            reason = STATUS_PHRASES[refusal.status]
            response = h11.Response(status_code=refusal.status, headers=list(headers.items()), reason=reason)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()
