"""The metadata server of one machine, on 127.0.0.1: its attributes, its token, its notices."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Metadata:
    """A server; a context manager.

    Args:
        name: of the machine.
        attributes: that it was given.
        token: of its service account.
    """

    def __init__(self, name: str, attributes: dict[str, str] | None = None, token: str = "none"):
        self.values = {
            "name": name,
            "hostname": "127.0.0.1",
            "preempted": "FALSE",
            "maintenance-event": "NONE",
            "service-accounts/default/token": json.dumps({"access_token": token, "expires_in": 3599}),
            **{f"attributes/{key}": value for key, value in (attributes or {}).items()},
        }
        handler = type("Handler", (_Handler,), {"values": self.values})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def warn(self) -> None:
        self.values["preempted"] = "TRUE"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True  # else each answer takes 40 ms
    values: dict[str, str]

    def do_GET(self):
        key = self.path.removeprefix("/computeMetadata/v1/instance/")
        found = self.headers.get("Metadata-Flavor") == "Google" and key in self.values
        text = self.values[key].encode() if found else b""
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        """Quiet."""
