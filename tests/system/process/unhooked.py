"""Calls of the C library that no audit hook sees: this module is imported before the hook is there."""

import ctypes
import socket
import struct
import sys

LIBRARY = ctypes.PyDLL(None)
if sys.platform == "linux":
    ERROR_NUMBER = LIBRARY["__errno_location"]
    ERROR_NUMBER.restype = ctypes.POINTER(ctypes.c_int)
ADDRESS = struct.pack("=HH4s8s", socket.AF_INET, socket.htons(9), b"\x7f\0\0\1", b"")
CALLS = {
    "fork": ("fork",),
    "socket": ("socket", socket.AF_INET, socket.SOCK_STREAM, 0),
    "connect": ("connect", 0, ADDRESS, 16),
    "kill": ("kill", 0, 0),
    "memory that stays": ("shmget", 0, 4096, 0o1600),
    "queue that stays": ("msgget", 0, 0o1600),
    "memory file": ("memfd_create", b"x", 0),
    "program": ("execve", b"/bin/true", None, None),
    "trace": ("ptrace", 16, 1, None, None),
    "signals of a file": ("fcntl", 0, 8, 1),
    "pipes": ("pipe", ctypes.create_string_buffer(8)),
    "namespace": ("unshare", 0x20000),
    "limit of another": ("prlimit", 1, 0, None, ctypes.create_string_buffer(16)),
    "priority": ("setpriority", 0, 0, 5),
    "terminal": ("ioctl", 0, 0x5412, b"x"),
    "filter": ("prctl", 4, 1, 0, 0, 0),
    "system call": ("syscall", 425, 1, ctypes.create_string_buffer(256)),  # io_uring_setup
}
FILES = {
    "write": ("open", 0o102, 0o600),
    "append": ("open", 0o2001, 0o600),
    "empty": ("truncate", 0),
    "remove": ("unlink",),
    "folder": ("mkdir", 0o700),
    "mode": ("chmod", 0o777),
}

FUNCTIONS = {of[0]: LIBRARY[of[0]] for of in [*CALLS.values(), *FILES.values()] if sys.platform == "linux"}


def call(report, what, path=""):
    """Report what a call gives and its error number."""
    name, *arguments = FILES[what] if path else CALLS[what]
    found = FUNCTIONS[name](*([path.encode()] if path else []), *arguments)
    report([found, ERROR_NUMBER().contents.value])


def alone(report, pid):
    """Report whether this process reads another's memory or environment."""
    for file in ("environ", "mem", "fd/0"):
        try:
            with open(f"/proc/{pid}/{file}", "rb") as opened:
                return report(bool(opened.read(1)) or file)
        except OSError:
            continue
    report("nothing")
