"""The base of the fakes of Google's APIs: a REST server on 127.0.0.1, and faults that a test asks for."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Refused(Exception):
    def __init__(self, code: int, status: str, message: str):
        super().__init__(message)
        self.code = code
        self.body = {"error": {"code": code, "status": status, "message": message, "errors": [{"message": message}]}}


@dataclass
class Fault:
    """A fault of the next request of one kind.

    Args:
        method, path: which; `path` is searched for in the request's path.
        answer: sent in place of the true one; None is no answer at all (the connection breaks).
        done: the request is carried out all the same.
    """

    method: str
    path: str
    answer: Refused | None = None
    done: bool = False


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    query: dict[str, str]
    body: dict | None


@dataclass
class Rest:
    """A server. A route: a method, a path as a regular expression, a function of the call and the path's groups."""

    routes: list[tuple[str, str, Callable]]
    faults: list[Fault] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def __enter__(self):
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"rest": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def count(self, method: str, path: str) -> int:
        return sum(call.method == method and re.search(path, call.path) is not None for call in self.calls)

    def answer(self, call: Call) -> dict | None:
        """The answer to a request; None closes the connection."""
        with self.lock:
            self.calls.append(call)
            fault = next((f for f in self.faults if f.method == call.method and re.search(f.path, call.path)), None)
            if fault:
                self.faults.remove(fault)
            made = None if fault and not fault.done else self._carry_out(call)
            if fault and fault.answer:
                raise fault.answer
            return None if fault else made

    def _carry_out(self, call: Call) -> dict:
        for method, path, function in self.routes:
            if method == call.method and (found := re.fullmatch(path, call.path)):
                return function(call, *found.groups())
        raise Refused(404, "NOT_FOUND", f"no route for {call.method} {call.path}")


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True  # else each answer takes 40 ms
    rest: Rest
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        parts = urlsplit(self.path)
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        try:
            answer = self.rest.answer(Call(self.command, parts.path, query, json.loads(text) if text else None))
        except Refused as error:
            return self._send(error.code, error.body)
        if answer is None:
            self.close_connection = True
            return self.connection.close()
        self._send(200, answer)

    do_POST = do_DELETE = do_PATCH = do_GET

    def _send(self, code: int, body: dict):
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        """Print nothing: tests read `calls`."""
