"""Compile a step and an evaluation in another process, so that its memory use, or its end, does not affect this one.

`python -m tpullm.planning.compiling FILE` is that process. It reads a `Job` from its standard input and writes an
`Executable` as JSON to FILE, which it creates only when it is complete.
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

from tpullm.hardware.topologies import Topology
from tpullm.planning.program import TooLarge, compiled, compiler_mesh
from tpullm.recipe.schema import AdapterConfig, ModelConfig, TrainConfig
from tpullm.system.errors import UserError


@dataclass(frozen=True)
class Job:
    """A step to compile, on a mesh over a topology.

    Args:
        adapter: what is trained beside the parameters of the model; None trains them all.
        key: of `config` in the recipe.
    """

    model: ModelConfig
    config: TrainConfig
    mesh: dict[str, int]
    topology: Topology
    adapter: AdapterConfig | None = None
    key: str = "pretrain"


@dataclass(frozen=True)
class Executable:
    """The compiler's result for a program.

    Args:
        text: the scheduled program; empty if it does not fit the memory.
        peak_bytes: peak memory of a device; if it does not fit, the memory that it would need.
        limit_bytes: memory of a device that a program may use, if the compiler refused it for that; else 0.
        places: the coordinates of each device in its slice; of GPUs none.
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


def read(path: Path) -> Executable | None:
    """The result in that file; None if there is none, or if it can't be read."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            fields = json.load(file)
        return Executable(**fields | {"places": tuple(map(tuple, fields["places"]))})
    except (OSError, EOFError, ValueError, TypeError, KeyError):
        return None


def compile_apart(job: Job, path: Path, name: str) -> Executable:
    """Compile in another process, which writes the result to `path`.

    Args:
        name: of the program, for error messages.

    Raises:
        UserError: the compiler is missing, was killed or failed, or the result can't be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent}: can't be made ({error.strerror}); set XDG_CACHE_HOME to another place"
        ) from None
    wanted = os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "tpullm.planning.compiling", str(path)]
    done = subprocess.run(command, input=pickle.dumps(job), env=wanted, capture_output=True)
    if done.returncode == 0 and (found := read(path)):
        return found
    said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
    if done.returncode < 0:
        raise UserError(
            f"{name}: the compiler was killed by signal {-done.returncode}, most likely for want of memory (it takes "
            "1 to 4 GiB); close other programs, or leave out --compile"
        )
    if done.returncode == 2:
        raise UserError(said[-1])
    raise UserError(f"{name}: the compiler failed: {said[-1][:500]}")


def _compile(job: Job) -> Executable:
    start, mesh = time.monotonic(), compiler_mesh(job.mesh, job.topology)
    text, peak, limit, evaluation = "", 0, 0, 0
    try:
        executable = compiled(job.model, job.config, mesh, job.adapter)
        text, memory = executable.as_text(), executable.memory_analysis()
        peak = memory.peak_memory_in_bytes
        if memory.host_temp_size_in_bytes:  # the peak includes it; all allocations are a little more than the true peak
            peak = getattr(memory, "total_allocation_bytes", peak)  # JAX 0.10 does not say
    except TooLarge as error:
        peak, limit = error.needed_bytes, error.limit_bytes
    else:
        try:
            program = compiled(job.model, job.config, mesh, job.adapter, evaluation=True)
            evaluation = program.memory_analysis().peak_memory_in_bytes
        except TooLarge as error:
            evaluation = error.needed_bytes
    dimensions, on_tpu = len(job.topology.shape), job.topology.platform == "tpu"
    places = tuple(tuple(device.coords[:dimensions]) for device in mesh.devices.flat) if on_tpu else ()
    date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    return Executable(text, peak, limit, places, round(time.monotonic() - start, 1), date, evaluation)


def _main(path: Path) -> int:
    job = pickle.load(sys.stdin.buffer)
    try:
        executable = _compile(job)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with gzip.open(unfinished, "wt", encoding="utf-8") as file:
            json.dump(asdict(executable), file)
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        sys.stderr.write(f"{path.parent}: the compiler's result can't be written there ({error.strerror}); make room\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
