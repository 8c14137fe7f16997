"""The proof of a recipe: its step, compiled for an absent slice, with the compiler's memory, time and collectives.

The evaluation between steps is compiled too, for its memory. What the compiler said is kept in
`~/.cache/tpullm/proofs`, by the hash of the program before compilation, the slice, the options
(`LIBTPU_INIT_ARGS` too) and the versions. So a trace of 3 s tells whether a proof is older than the code. Everything
else is made anew from the kept text.
"""

import hashlib
import math
import os
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from tpullm.hardware.topologies import GpuHosts, Topology, memory_holder
from tpullm.model.platform import compiler_options
from tpullm.planning import gpu_schedule, tpu_schedule
from tpullm.planning.compiling import Executable, compile_apart, read_executable, write_executable
from tpullm.planning.findings import Finding, Look, axes_of, find_faults
from tpullm.planning.memory import architecture_of, device_bytes, global_state
from tpullm.planning.program import absent_mesh, absent_options, compiler_versions, job_of, traced_step
from tpullm.planning.setting import Job, setting_of
from tpullm.planning.timeline import Item, part_of
from tpullm.recipe.mesh_axes import AXES, axis_sizes
from tpullm.recipe.schema import ModelConfig, Recipe
from tpullm.system.errors import UserError
from tpullm.system.storage import cache_folder, make_private, shrink

# Two threads that trace at once can fail in JAX ("Store occupied"; 0.12). Compilation runs in other processes.
TRACING = threading.Lock()
MOST_BYTES = 256 << 20  # of the cache; a program takes a quarter of a MiB


@dataclass(frozen=True)
class Traffic:
    """The collectives of one kind in a step, on one device.

    Args:
        axes: the mesh axes that they go over, such as `fsdp` or `fsdp+tensor`; `slices` is the data center network.
        kind: one of `instructions.KINDS`.
        bytes: of their outputs.
        seconds: in which they use the links.
        exposed_seconds: in which the device waits for them.
    """

    axes: str
    kind: str
    bytes: int
    seconds: float
    exposed_seconds: float


@dataclass(frozen=True)
class Proof:
    """The compiler's result for a recipe's step, as plain values: `from_json` is the inverse of `asdict`.

    Args:
        recipe: its name.
        topology: as `str(Topology)`.
        mesh: devices along each axis.
        program: hash of the program before compilation; recipes with the same hash are the same program.
        versions: of `jax` and the compiler.
        date: of the compilation, ISO 8601.
        refused: why the program does not fit, in one line that names the key to change; empty if it fits. If it does
            not fit, the times below are 0.
        limit_bytes: memory of one device that a program may use.
        peak_bytes: peak memory of one device in a step, or the memory that a refused program would need.
        evaluation_bytes: peak memory of one device in an evaluation, the optimizer's state included; 0 if the step does
            not fit.
        state_bytes: memory of all parameters and of the optimizer's state, which are part of the peak.
        tokens: of one step, all devices together.
        step_seconds: predicted time of a step.
        seconds: the same by part (`attention`, `feed-forward`, `loss`, `optimizer`, ..., `waiting` for collectives).
        traffic: collectives, the most expensive first.
        findings: what should be changed, the most expensive first.
        compile_seconds: duration of the compilation.
    """

    recipe: str
    topology: str
    mesh: dict[str, int]
    program: str
    versions: dict[str, str]
    date: str
    refused: str
    limit_bytes: int
    peak_bytes: int
    evaluation_bytes: int
    state_bytes: int
    tokens: int
    step_seconds: float
    seconds: dict[str, float]
    traffic: tuple[Traffic, ...]
    findings: tuple[Finding, ...]
    compile_seconds: float

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Proof":
        """The proof from the result of `asdict`, also after it was written as JSON and read."""
        traffic, findings = (
            (Traffic(**one) for one in fields["traffic"]),
            (Finding(**one) for one in fields["findings"]),
        )
        return cls(**dict(fields) | {"traffic": tuple(traffic), "findings": tuple(findings)})


def prove(
    recipe: Recipe,
    topology: Topology,
    tell: Callable[[str], None] = lambda line: None,
    stage: str = "",
    model: ModelConfig | None = None,
) -> Proof:
    """Compile the step of a recipe for a topology in another process, or read the result of an earlier compilation.

    Args:
        recipe: its `mesh`, `model` and training are used; its own `topology` is not.
        tell: gets a log line when a compilation begins, and one with its seconds when it ends.
        stage, model: of `program.job_of`.

    Raises:
        UserError: the recipe does not fit the mesh, or the compiler is missing or was killed.
    """
    versions = compiler_versions(topology)
    job = job_of(recipe, topology, stage, model)
    program = program_hash(job, versions)
    path, name = proof_cache_file(program), f"{recipe.name} for {topology}"
    if why := make_private(path.parent):
        raise UserError(f"{why}: no proof can be trusted there; set XDG_CACHE_HOME to a folder of your own")
    executable = read_executable(path)
    if executable is None:
        tell(f"{name}: compiling, a minute or two")
        executable = compile_apart(job, name)
        write_executable(path, executable)
        tell(f"{name}: compiled in {executable.seconds:.0f} s")
        shrink(path.parent, MOST_BYTES)
    return proof_of(recipe.name, job, program, versions, executable)


def program_hash(job: Job, versions: Mapping[str, str]) -> str:
    """The hash of the compiler's inputs; it takes 3 s.

    They are the traced programs, what the compiler is told of the slice, the options of the program and of the
    environment, and the versions.
    """
    mesh = absent_mesh(job.mesh, job.topology)
    with jax.sharding.use_abstract_mesh(mesh):
        options = compiler_options(job.config.compiler) | absent_options(job.topology.platform)
    with TRACING:
        programs = [fingerprint(traced_step(job, mesh, evaluation).as_text()) for evaluation in (False, True)]
    given = os.environ.get("LIBTPU_INIT_ARGS", "").split() if job.topology.platform == "tpu" else []
    told = [given, *(sorted(of.items()) for of in (job.topology.described(), options, versions))]
    return hashlib.sha256(repr([*programs, *told]).encode()).hexdigest()[:16]


_FUNCTION = re.compile(r"^  func\.func (?:public |private )?@([\w.]+)(.*?)^  \}$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"@([\w.]+)")


def fingerprint(text: str) -> str:
    """The hash of a lowered function's text (StableHLO), independent of the names of functions: 64 hexadecimal digits.

    What the process traced before decides how JAX names functions and which equal functions it shares. So a function is
    hashed by its text, in which the hash of each called function replaces its name.
    """
    bodies, known = dict(_FUNCTION.findall(text)), {}
    hashed = lambda text: hashlib.sha256(text.encode()).hexdigest()  # noqa: E731

    def of(name: str) -> str:
        if name not in known:
            inner = _NAME.sub(lambda called: of(called[1]) if called[1] in bodies else called[0], bodies[name])
            known[name] = hashed(inner)
        return known[name]

    return hashed(" ".join(_FUNCTION.sub("", text).split()) + of("main"))


def proof_cache_file(program: str) -> Path:
    """The file in the cache for the compiler's result for a program."""
    return cache_folder("proofs") / f"{program}.json.gz"


def proof_of(name: str, job: Job, program: str, versions: dict[str, str], executable: Executable) -> Proof:
    """The proof of a compiled step: its time from its schedule, or why it does not fit."""
    sizes = axis_sizes(job.mesh, job.topology.devices)
    whole = global_state(job.model, job.config.optimizer, job.adapter)
    parameters, optimizer = (device_bytes(kind, sizes) for kind in (whole.parameters + whole.frozen, whole.optimizer))
    limit = executable.limit_bytes or round(job.topology.chip.hbm_bytes)
    evaluation = executable.evaluation_bytes and executable.evaluation_bytes + round(optimizer)
    if evaluation > limit:  # then it is what needs the most: the step fits
        executable = replace(executable, text="", peak_bytes=evaluation)
    look, state = look_at(job, executable), round(parameters + optimizer)
    return Proof(
        recipe=name,
        topology=str(job.topology),
        mesh=dict(zip(AXES, sizes, strict=True)),
        program=program,
        versions=versions,
        date=executable.date,
        refused="" if executable.text else why_not_fit(job, executable, state, limit),
        limit_bytes=limit,
        peak_bytes=executable.peak_bytes,
        evaluation_bytes=evaluation,
        state_bytes=state,
        tokens=job.config.batch_size * job.config.sequence_length,
        step_seconds=look.seconds,
        seconds=seconds_by_part(look.items),
        traffic=traffic_of(look),
        findings=find_faults(look) if executable.text else (),
        compile_seconds=executable.seconds,
    )


def look_at(job: Job, executable: Executable) -> Look:
    """The program with its schedule, and what is expected of it."""
    setting = setting_of(job)
    data, *others = setting.sizes
    within = dict(zip(AXES, (data // job.topology.slices, *others), strict=True))  # the program of one slice
    filled, items = 1 / setting.fullness, []
    if executable.text and isinstance(job.topology, GpuHosts):
        items = gpu_schedule.schedule_on_gpu(executable.text, job.topology, filled)
    elif executable.text:
        items = tpu_schedule.schedule_on_tpu(executable.text, job.topology, executable.places, filled)
    shapes, stacks = architecture_of(job.model).shapes, job.model.stacks
    stacked, alone = ({k: v for k, v in shapes.items() if (k in stacks) == of} for of in (True, False))
    layers = [math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(stacked)]  # used one at a time
    others = [math.prod(leaf.shape) for leaf in jax.tree.leaves(alone)]
    return Look(
        items=items,
        text=executable.text,
        mesh=within,
        largest_parameter=max(layers + others) // setting.along("tensor"),
        tokens=setting.tokens,
        vocabulary=job.model.vocabulary_size // setting.along("tensor"),
    )


def seconds_by_part(items: list[Item]) -> dict[str, float]:
    """Seconds of a step by part, the longest first."""
    parts: Counter[str] = Counter()
    for item in items:
        parts[part_of(item)] += item.seconds
    return dict(parts.most_common())


def traffic_of(look: Look) -> tuple[Traffic, ...]:
    """All collectives by axes and kind, the most expensive first; those between slices have the axis `slices`."""
    grouped: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in look.items:
        if item.collective and item.collective.devices():
            grouped[axes_of(item.collective.devices(), look.mesh), item.collective.kind].append(item)
        elif item.instruction.opcode == "send":
            grouped["slices", "all-reduce"].append(item)
    found = []
    for (axes, kind), items in grouped.items():
        seconds = [sum(item.busy_seconds for item in items), sum(item.seconds for item in items)]
        found += [Traffic(axes, kind, sum(item.times * item.bytes for item in items), *seconds)] if axes else []
    return tuple(sorted(found, key=lambda one: (-one.exposed_seconds, -one.seconds)))


def why_not_fit(job: Job, executable: Executable, state_bytes: int, limit_bytes: int) -> str:
    """Why the program does not fit: the missing memory, the largest kind of it, and the key to change."""
    rest = executable.peak_bytes - state_bytes
    setting = setting_of(job)
    key, optimizer = "take more chips (topology)", job.config.optimizer
    if state_bytes > rest:
        what = f"parameters and optimizer ({state_bytes / 2**30:.1f})"
        if job.adapter and job.adapter.quantize_base != "nf4":
            key = f"set {job.key.replace('.train', '.adapter.quantize_base')} to nf4, or take more chips"
        elif not job.adapter and optimizer.kind != "adafactor" and optimizer.moments == "float32":
            key = f"set {job.key}.optimizer.moments to bfloat16, or take more chips"
    else:
        what = f"activations and gathered parameters ({rest / 2**30:.1f})"
        if setting.rows // setting.accumulation // setting.along("data", "fsdp", "expert") > 1:
            key = f"set {job.key}.accumulation to {2 * job.config.accumulation}"
        elif job.model.remat != "full":
            key = "set model.remat to full"
        else:
            key = "give mesh.sequence or mesh.tensor more devices, or take more chips"
    # If the step did not fit, the evaluation was not compiled.
    moment = " in an evaluation" if executable.evaluation_bytes else ""
    holder = memory_holder(job.topology)
    needed = f"{executable.peak_bytes / 2**30:.1f} GiB a {holder} of {limit_bytes / 2**30:.1f}{moment}"
    return f"does not fit: {needed}, by the compiler; largest are {what}: {key}"
