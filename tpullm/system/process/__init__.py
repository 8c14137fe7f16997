"""What a process of tpullm starts with and starts: environment variables, JAX's compilation cache, worker processes."""

import os


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
