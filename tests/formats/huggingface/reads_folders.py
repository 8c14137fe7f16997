"""A process that runs verbs on folders: JSON in, a command line in each line; JSON out, how each ended.

It is one process for all, since importing JAX takes 3 s. Nothing else in it takes memory.
"""

import contextlib
import io
import json
import re
import sys
import time
import traceback
from pathlib import Path

from tpullm.cli import main as cli
from tpullm.system.process import limited


def said_by(arguments: list[str]) -> dict:
    """How a command line ends: its exit code or a traceback, what it printed, seconds, and bytes of memory so far."""
    out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
    except BaseException:
        code = traceback.format_exc()[-2000:]
    end = {"code": code or 0, "out": out.getvalue()[:20_000], "err": err.getvalue()[:20_000]}
    return end | {"seconds": round(time.monotonic() - began, 1), "memory": memory()}


def memory() -> int:
    """The most bytes of memory that this process had. `ru_maxrss` would begin with those of the process it is from."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def main() -> None:
    """Until the input ends."""
    limited.CPU_SECONDS = 4  # else each loop takes 20 s of a test
    results = sys.stdout
    for line in sys.stdin:
        print(json.dumps(said_by(json.loads(line))), file=results, flush=True)


if __name__ == "__main__":
    main()
