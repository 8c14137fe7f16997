"""Errors that exit with one line instead of a traceback, and their exit codes."""

import errno
import os
import re


class UserError(Exception):
    """An error that the user can correct: the message says what, where (file, key, line) and what to do.

    The command line prints it without a traceback and exits with `code`.
    """

    code = 2

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the line alone (IPython asks an exception for this)."""
        return [f"{type(self).__name__}: {self}"]


TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: no error in the command, which can resume


class TryAgain(UserError):
    """A failure outside that may pass, such as an outage of the storage: the same command can resume later."""

    code = TRY_AGAIN


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived, and the work was saved: the command line prints the message and exits with 130."""


class UnfitNode(UserError):
    """A node of a cluster can't make parts as the driver does; finished parts are right."""


class WrongBits(UserError):
    """A device computes or keeps other bits than it should. Where the verb is supervised, it counts as its own fault:
    it is started again, and after three starts without progress the machines are given back."""

    code = 1


class HostFailed(UserError):
    """Another host failed or is gone; the command line exits with its exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def correctable(error: BaseException) -> str | None:
    """The line for an error that the user can correct, whichever library raised it; None for any other error."""
    if isinstance(error, UserError):
        return str(error) if error.code == UserError.code else None
    if (where := _where_disk_failed(error, (errno.ENOSPC, errno.EDQUOT), "No space left on device")) is not None:
        return f"no space left on the device{f' ({where})' if where else ''}; free some and run the same command again"
    if isinstance(error, PermissionError | FileExistsError | NotADirectoryError | IsADirectoryError):
        # Of a file that is renamed, the second name is the place; the first is a temporary one.
        return f"{_place(error.filename2 or error.filename)}: {error.strerror.lower()}; choose another place"
    if isinstance(error, FileNotFoundError) and error.filename is None and not _is_folder_here():
        return "the current folder was removed; go to another one"
    if isinstance(error, FileNotFoundError) and str(error.filename).startswith(("/proc/", "/sys/")):
        return f"{error.filename}: can't be made here; choose another place"
    if (where := _where_disk_failed(error, (errno.EROFS,), "Read-only file system")) is not None:
        return f"{where or 'a disk'}: read-only file system; choose another place"
    text = str(error)
    if isinstance(error, MemoryError) or isinstance(error, RuntimeError) and re.search("[Oo]ut of memory", text):
        asked = re.search(r"[Oo]ut of memory\D*allocat\D*(\d+) bytes", text)
        size = f" ({int(asked[1]) / 1e9:,.1f} GB at once)" if asked else ""
        return f"out of memory{size}; use a smaller batch_size, sequence_length or model, or raise accumulation"
    if isinstance(error, RuntimeError) and (option := re.search(r"No such compile option: '(\w+)'", text)):
        return f"compiler: XLA has no option {option[1]} here; leave it out, or look for its name in this version"
    if isinstance(error, OSError) and "AF_UNIX path too long" in text:  # the sockets of worker processes
        return "the temporary folder's path is too long; set TMPDIR to a shorter one, such as /tmp"
    return None


def _where_disk_failed(error: BaseException | None, numbers: tuple[int, ...], says: str) -> str | None:
    """Where a disk failed so, as reported by Python, TensorStore or a worker process; empty if that is not known."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers or says in str(error):
            quoted = re.search(r'"(/[^"]+)"', str(error))  # as TensorStore names a file
            names = [getattr(error, name, None) for name in ("filename2", "filename")]  # of a copy, the second is new
            return _place(next(filter(None, names), quoted[1] if quoted else ""))
        error = error.__cause__ or error.__context__
    return None


def _place(name: str) -> str:
    """The place of a file that is written under a temporary name beside it (`storage/atomic.py`)."""
    return re.sub(r"/\.([^/]+)\.[0-9a-f]{8}\.partial$", r"/\1", str(name)) if name else ""


def _is_folder_here() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True
