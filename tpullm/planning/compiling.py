"""Compile a step and an evaluation in another process, so that its memory use, or its end, does not affect this one.

`python -m tpullm.planning.compiling` is that process. It reads a `Job` from its standard input and writes an
`Executable` as JSON to its standard output.
"""

import gzip
import json
import os
import pickle
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from jax.sharding import Mesh

from tpullm.hardware.topologies import Slices
from tpullm.planning.program import TooLarge, compiled_step, compiler_environment, compiler_mesh
from tpullm.planning.setting import Job
from tpullm.system import storage
from tpullm.system.errors import UserError


@dataclass(frozen=True)
class Executable:
    """The compiler's result for a program.

    Args:
        text: the scheduled program; empty if it does not fit the memory.
        peak_bytes: peak memory of a device; if it does not fit, the memory that it would need.
        limit_bytes: memory of a device that a program may use, if the compiler refused it for that; else 0.
        places: the coordinates of each device in its slice, and its number on its chip if a chip has several; of GPUs
            none.
        seconds: duration of the compilation.
        date: of the compilation, ISO 8601.
        evaluation_bytes: peak memory of a device in an evaluation, without the optimizer's state; 0 if the step does
            not fit.
    """

    text: str
    peak_bytes: int
    limit_bytes: int
    places: tuple[tuple[int, ...], ...]
    seconds: float
    date: str
    evaluation_bytes: int


def read_executable(path: Path) -> Executable | None:
    """The result in that file; None if there is none, or if it can't be read."""
    try:
        return _executable_from_json(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError, TypeError, KeyError):
        return None


def write_executable(path: Path, executable: Executable) -> None:
    """Keep a result for `read_executable`."""
    with storage.atomic_file(path) as temporary:
        temporary.write_bytes(gzip.compress(json.dumps(asdict(executable)).encode()))


def _executable_from_json(text: bytes) -> Executable:
    fields = json.loads(text)
    return Executable(**fields | {"places": tuple(map(tuple, fields["places"]))})


def compile_apart(job: Job, name: str) -> Executable:
    """Compile in another process.

    Args:
        name: of the program, for error messages.

    Raises:
        UserError: the compiler is missing, was killed or failed.
    """
    wanted = compiler_environment(job.topology) | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "tpullm.planning.compiling"]
    done = subprocess.run(command, input=pickle.dumps(job), env=wanted, capture_output=True)
    if done.returncode == 0 and done.stdout:
        return _executable_from_json(done.stdout)
    said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
    if done.returncode < 0:
        raise UserError(
            f"{name}: the compiler was killed by signal {-done.returncode}, most likely for want of memory (it takes "
            "1 to 4 GiB); close other programs, or leave out --compile"
        )
    raise UserError(said[-1] if done.returncode == 2 else f"{name}: the compiler failed: {said[-1][:500]}")


def compile_here(job: Job) -> Executable:
    """Compile the step, and the evaluation if the step fits."""
    start, mesh = time.monotonic(), compiler_mesh(job.mesh, job.topology)
    text, peak, limit, evaluation = "", 0, 0, 0
    try:
        executable = compiled_step(job, mesh)
        text, memory = executable.as_text(), executable.memory_analysis()
        peak = memory.peak_memory_in_bytes
        if memory.host_temp_size_in_bytes:  # the peak includes it; all allocations are a little more than the true peak
            peak = getattr(memory, "total_allocation_bytes", peak)  # JAX 0.10 does not say
    except TooLarge as error:
        peak, limit = error.needed_bytes, error.limit_bytes
    else:
        try:
            evaluation = compiled_step(job, mesh, evaluation=True).memory_analysis().peak_memory_in_bytes
        except TooLarge as error:
            evaluation = error.needed_bytes
    places = _places(mesh, job.topology) if isinstance(job.topology, Slices) else ()
    date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    return Executable(text, peak, limit, places, round(time.monotonic() - start, 1), date, evaluation)


def _places(mesh: Mesh, topology: Slices) -> tuple[tuple[int, ...], ...]:
    several, dimensions = topology.chip.devices_per_chip > 1, len(topology.shape)
    of = lambda device: (*device.coords[:dimensions], *([device.core_on_chip] if several else []))  # noqa: E731
    return tuple(map(of, mesh.devices.flat))


if __name__ == "__main__":
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a compiler prints is no part of the answer
    try:
        json.dump(asdict(compile_here(pickle.load(sys.stdin.buffer))), answer)
        answer.close()
    except UserError as mistake:
        sys.stderr.write(f"{mistake}\n")
        sys.exit(2)
