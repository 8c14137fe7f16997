"""Takes from a process what a program that nobody trusts does not need. docs/en/threat_model.md says what holds.

`leave_the_machine` gives up root, the network and the sight of other processes. `confine` adds limits, and takes all
calls of Linux but those by which Python computes, reads files and prints: a filter of the kernel (seccomp) can't be
taken back, binds root too, and sees what no hook of Python does. A call that it refuses fails with EPERM: processes and
threads, the network, signals to others, changes of files, memory that outlives its process (System V), limits, devices.
It has no names of files; `interpreter_rules` take all of them but Python's own (Landlock, which needs neither root nor
namespaces). Where the kernel has no filter, an audit hook of Python refuses what it sees.

Sources: seccomp(2) and linux/seccomp.h, linux/filter.h, landlock(7) and linux/landlock.h; the numbers are those of
asm/unistd.h of both machines.
"""

import contextlib
import ctypes
import errno
import importlib.util
import os
import platform
import signal
import struct
import sys
import sysconfig
from typing import Any

from tpullm.system.process.child import limit

_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # AUDIT_ARCH_* of linux/audit.h; a column below
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO

# Each call with its number on x86_64 and on aarch64; -1: there is no such call.
_PERMITTED = """
read 0 63, write 1 64, close 3 57, fstat 5 80, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132, mremap 25 216, madvise 28 233,
pread64 17 67, readv 19 65, writev 20 66, stat 4 -1, lstat 6 -1, newfstatat 262 79, statx 332 291, access 21 -1,
faccessat 269 48, faccessat2 439 439, readlink 89 -1, readlinkat 267 78, getdents64 217 61, getcwd 79 17,
getrandom 318 278, clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101,
gettimeofday 96 169, time 201 -1, times 100 153, getrusage 98 165, getrlimit 97 163, sysinfo 99 179, uname 63 160,
poll 7 -1, ppoll 271 73, select 23 -1, pselect6 270 72, futex 202 98, sched_yield 24 124, sched_getaffinity 204 123,
getcpu 309 168, getpid 39 172, getppid 110 173, gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176,
getegid 108 177, getgroups 115 158, exit 60 93, exit_group 231 94, restart_syscall 219 128, set_robust_list 273 99,
rseq 334 293
"""
# Landlock's calls (the same on both machines), its rights to execute and read files and to list folders, the number of
# rights of each of its versions, and what Python loads or reads beside its own library.
_CREATE_RULES, _ADD_RULE, _RESTRICT = 444, 445, 446
_READ, _LIST = 1 << 0 | 1 << 2 | 1 << 3, 1 << 3
_RIGHTS_OF_VERSION = (13, 14, 15, 15, 16)
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
_OF_TIME = ("/usr/share/zoneinfo", "/etc/localtime")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_WRITING_CALLS = _WRITES | 0o20000000  # __O_TMPFILE
# Calls that are permitted if an argument has none of some bits: its number, and the bits. Those of `fcntl` are above
# F_GETFL, among them F_SETOWN and F_SETSIG, which send signals to others.
_GUARDED = {
    "open": ((2, -1), 1, _WRITING_CALLS),
    "openat": ((257, 56), 2, _WRITING_CALLS),
    "fcntl": ((72, 25), 1, ~3 & 0xFFFFFFFF),
}
# Instructions: load a word of the call; go on or skip, by a comparison with the word; end.
_LOAD, _IF_EQUAL, _IF_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data
NOBODY = 65_534
_NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000  # CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET of linux/sched.h
_DIE_WITH_PARENT, _DUMPABLE = 1, 4  # PR_SET_PDEATHSIG, PR_SET_DUMPABLE of linux/prctl.h
_REFUSED = ("os", "socket", "subprocess", "ctypes", "shutil", "tempfile", "pty", "fcntl", "resource", "mmap", "signal")
_READS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr")


def leave_the_machine(own: str) -> None:
    """Give up root, the network, and the sight of other processes, for as much as the kernel permits.

    Afterwards this is the first process of its namespace, and none of its user may read its memory.

    Args:
        own: the package whose files need not be read again.
    """
    _become_nobody(own)
    with contextlib.suppress(AttributeError, OSError):  # no Linux
        library = ctypes.CDLL(None)
        if library.unshare(_NAMESPACES) == 0:
            if child := os.fork():
                os.waitpid(child, 0)
                os._exit(0)
            library.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        library.prctl(_DUMPABLE, 0, 0, 0, 0)


def _become_nobody(own: str) -> None:
    """Give up root, unless `nobody` can't read Python's library, or a package that was imported beside `own`."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] not in (own, "tpullm")]
    needed = {path for module in modules if os.path.exists(path := getattr(module, "__file__", None) or "")}
    with contextlib.suppress(OSError):
        if os.getuid() == 0:
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
            readable = all(os.access(path, os.R_OK, effective_ids=True) for path in needed)
            os.seteuid(0)
            os.setegid(0)
            if readable:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)


def confine(kept: set[int], seconds: int, memory_bytes: int, rules: int = 0) -> None:
    """Leave this process the descriptors `kept`, 0, 1 and 2, some time and memory, and what computing needs.

    Args:
        rules: a descriptor of `interpreter_rules`, if it may open nothing else; 0 is none.
    """
    os.setsid()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    edges = [2, *sorted(kept | ({rules} if rules else set())), 1 << 16]
    for before, after in zip(edges, edges[1:], strict=False):
        os.closerange(before + 1, after)
    os.chdir("/")
    reserved = 1 << 30
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        reserved = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    if rules:  # not before: they take /proc too
        _see_interpreter_alone(rules)
    limit("RLIMIT_AS", reserved + memory_bytes, for_good=True)
    limit("RLIMIT_CPU", seconds + 1, for_good=True)  # for what does not end at the signal of the next limit
    limit("RLIMIT_CPU", seconds)
    for name in ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NPROC"):
        limit(name, 0, for_good=True)
    if not permit_only_computing():
        sys.addaudithook(_refuse_audit_event)


def _refuse_audit_event(event: str, arguments: tuple) -> None:
    """The audit hook, where the kernel has no filter: what a function has no need of is an error in it.

    It stops libraries that use `ctypes` too, such as numpy.
    """
    opens_to_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    if opens_to_write or event.split(".")[0] in _REFUSED and event not in _READS:
        raise PermissionError(f"{event} is not permitted here")


def interpreter_rules() -> int:
    """A descriptor of rules by which nothing can be opened but Python's own library, what it loads, and numpy.

    Files of the user, other packages and /proc (the memory and the environment of other processes) are none of that.

    Raises:
        OSError: the system has no Landlock (Linux 5.13 and later have it, if it is not turned off).
    """
    if not can_be_filtered():  # the numbers are those of its machines
        raise OSError(errno.ENOSYS, "no Landlock")
    library = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: Any) -> int:
        if (result := library.syscall(ctypes.c_long(number), *arguments)) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    version = call(_CREATE_RULES, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    handled = ctypes.c_uint64((1 << _RIGHTS_OF_VERSION[min(version, len(_RIGHTS_OF_VERSION)) - 1]) - 1)
    rules = call(_CREATE_RULES, ctypes.byref(handled), ctypes.c_size_t(8), ctypes.c_uint32(0))
    library_folder = os.path.realpath(sysconfig.get_path("stdlib"))
    own = [entry.path for entry in os.scandir(library_folder) if not entry.name.endswith("-packages")]
    numpy = importlib.util.find_spec("numpy")
    own += [path for place in (numpy.submodule_search_locations if numpy else ()) for path in (place, f"{place}.libs")]
    places = [(library_folder, _LIST), *((path, _READ) for path in own)]
    places += [(path, _READ) for path in (*_SYSTEM_LIBRARIES, *_OF_TIME)]
    for path, rights in [place for place in places if os.path.exists(place[0])]:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            allowed = rights if os.path.isdir(path) else rights & ~_LIST
            rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, place))
            call(_ADD_RULE, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint32(0))
        finally:
            os.close(place)
    return rules


def _see_interpreter_alone(rules: int) -> None:
    """Open nothing but what the rules have, for good; `OSError` if that fails."""
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(_NO_NEW_PRIVILEGES, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    if library.syscall(ctypes.c_long(_RESTRICT), ctypes.c_int(rules), ctypes.c_uint32(0)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(rules)


def can_be_filtered() -> bool:
    """Whether the filter knows this system and machine, and its kernel has filters."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES or sys.maxsize <= 1 << 32:
        return False
    # A kernel that has filters looks for the one at address 0 (seccomp(2)).
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    none = ctypes.c_ulong(0)
    return prctl(_SET_SECCOMP, ctypes.c_ulong(_FILTER), none, none, none) == -1 and ctypes.get_errno() == errno.EFAULT


def permit_only_computing() -> bool:
    """Install the filter, for good; False if the system, the machine or the kernel has none."""
    if not can_be_filtered():
        return False
    instructions = _filter_instructions(*_MACHINES[platform.machine()])
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
    program = ctypes.create_string_buffer(struct.pack("HP", len(instructions), ctypes.addressof(code)))  # sock_fprog
    prctl = ctypes.CDLL(None).prctl
    if prctl(_NO_NEW_PRIVILEGES, *map(ctypes.c_ulong, (1, 0, 0, 0))):
        return False
    return prctl(_SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.byref(program)) == 0


def _filter_instructions(machine: int, column: int) -> list[tuple[int, int, int, int]]:
    """The filter: each instruction has a code, how many to skip if it holds and if it does not, and a number."""
    end = [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    found = [(_LOAD, 0, 0, _MACHINE_AT), (_IF_EQUAL, 1, 0, machine), end[1], (_LOAD, 0, 0, _NUMBER_AT)]
    for numbers, argument, bits in _GUARDED.values():
        if numbers[column] >= 0:
            lower_half = _ARGUMENTS_AT + 8 * argument
            found += [(_IF_EQUAL, 0, 4, numbers[column]), (_LOAD, 0, 0, lower_half), (_IF_BITS, 1, 0, bits), *end]
    for name_and_numbers in _PERMITTED.split(","):
        number = int(name_and_numbers.split()[1 + column])
        if number >= 0:
            found += [(_IF_EQUAL, 0, 1, number), end[0]]
    return [*found, end[1]]
