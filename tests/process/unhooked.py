"""Calls of the C library that no audit hook sees: this module is imported before the hook is there."""

import ctypes
import socket
import struct

LIBRARY = ctypes.PyDLL(None, use_errno=False)
FORK, SOCKET, CONNECT, WRITE_OPEN, KILL = (LIBRARY[name] for name in ("fork", "socket", "connect", "open", "kill"))


def fork(report):
    """Report what fork gives: -1 if there is no other process."""
    child = FORK()
    if child == 0:
        while True:
            pass
    report(child)


def connect(report, port):
    """Report what connect gives: -1 if nobody can be reached."""
    address = struct.pack("=HH4s8s", socket.AF_INET, socket.htons(port), b"\x7f\0\0\1", b"")
    report(CONNECT(SOCKET(socket.AF_INET, socket.SOCK_STREAM, 0), address, 16))


def kill(report, pid):
    """Report what kill with signal 0 gives: -1 if there is no such process in sight."""
    report(KILL(pid, 0))


def write(report, path):
    """Report what open gives for a new file."""
    report(WRITE_OPEN(path.encode(), 0o102, 0o600))
