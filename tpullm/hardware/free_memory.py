"""How much memory this machine can still give to a program, as Linux says, and the limits of the program's cgroups."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# The files of a cgroup: its limit, what it uses, and in `memory.stat` what of that are files that can be read again.
_SECOND = ("memory.max", "memory.current", "inactive_file")
_FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_bytes(root: Path = Path("/")) -> int | None:
    """The bytes that are free, or soon will be if they are asked for; None where nobody says.

    Args:
        root: above `proc` and `sys`.
    """
    lines = _lines(root / "proc/meminfo")
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*free, *_left_in_cgroups(root)], default=None)


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """What the limit of each cgroup that this process is in leaves."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, own = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            folder, names = ("sys/fs/cgroup/memory", _FIRST) if controllers else ("sys/fs/cgroup", _SECOND)
            # In a container the path may be that outside of it; then the folders that are missing have no limit.
            for path in (PurePosixPath(own), *PurePosixPath(own).parents):
                yield from _left(root / folder / path.relative_to("/"), *names)


def _left(folder: Path, limit: str, used: str, files: str) -> Iterator[int]:
    limits, uses = _lines(folder / limit), _lines(folder / used)
    if limits and uses and limits[0].isdigit():  # otherwise it is `max`
        again = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.split()[0] == files]
        yield int(limits[0]) - int(uses[0]) + sum(again)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
