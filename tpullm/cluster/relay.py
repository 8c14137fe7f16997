"""Keeps JAX's connection to its coordinator open when host 0 is killed, so that the channel can say who is gone.

JAX aborts a process in C++ 0.1 to 0.3 s after that connection closes, also with `jax_enable_recoverability` (JAX 0.12).
"""

import contextlib
import socket
import threading
import time


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
