"""The proof of a recipe: its very step, compiled for a slice that is not here, and what the compiler says of it."""

import hashlib
import math
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh

from tpullm.errors import UserError
from tpullm.hardware.slices import Topology
from tpullm.mesh.axes import AXES, axis_sizes
from tpullm.model.platform import compiler_options
from tpullm.planning.compiling import Executable, Job, compile_apart, read
from tpullm.planning.findings import Finding, Look, axes_of, find
from tpullm.planning.fingerprint import fingerprint
from tpullm.planning.program import absent_mesh, traced
from tpullm.planning.resting import of_device, resting
from tpullm.planning.schedule import Item, Torus, schedule
from tpullm.planning.setting import setting_of
from tpullm.planning.step_parts import part_of
from tpullm.process.compile_cache import cache_folder, shrink
from tpullm.recipe.schema import Recipe
from tpullm.training.fits import check_fits
from tpullm.training.state import Architecture

# Two threads that trace at once can meet in JAX's own stores ("Store occupied"; 0.12). They compile in other processes.
TRACING = threading.Lock()
MOST_BYTES = 256 << 20  # of what is kept, a quarter of a MiB a program


@dataclass(frozen=True)
class Traffic:
    """What one kind of collective moves in a step, on one device.

    Args:
        axes: the mesh axes that its devices differ in, such as `fsdp` or `fsdp+tensor`; `slices` is the data center's
            network.
        kind: one of `hlo.KINDS`.
        bytes: of all that come out of it.
        seconds: of the links.
        exposed_seconds: of these, in which the device does nothing else.
    """

    axes: str
    kind: str
    bytes: int
    seconds: float
    exposed_seconds: float


@dataclass(frozen=True)
class Proof:
    """What the compiler says of a recipe's step. Plain values only: `to_json` and `from_json` are each other's inverse.

    Args:
        recipe: its name.
        topology: as `str(Topology)`.
        mesh: devices along each axis.
        program: hash of the program before it is compiled; two recipes of one hash are one program.
        versions: of `jax` and `libtpu`.
        date: of the compilation, ISO 8601.
        refused: why the compiler gave no program, in one line that says which key to change; then all below is 0 but
            `peak_bytes`, where the compiler said what it would need. Empty if there is a program.
        limit_bytes: memory of one device that a program may use.
        peak_bytes: most that is held at once.
        state_bytes: of these, parameters and what the optimizer keeps.
        tokens: of one step, all devices together.
        step_seconds: predicted.
        seconds: the same by part (`attention`, `feed-forward`, `loss`, `optimizer`, ..., `waiting` for collectives).
        traffic: collectives, those that cost most first.
        findings: what should be otherwise, what costs most first.
        compile_seconds: that the compilation took.
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
    state_bytes: int
    tokens: int
    step_seconds: float
    seconds: dict[str, float]
    traffic: tuple[Traffic, ...]
    findings: tuple[Finding, ...]
    compile_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Dicts, lists, strings and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Proof":
        """What `to_json` gave, after a way through JSON."""
        lists = {
            "traffic": tuple(Traffic(**one) for one in fields["traffic"]),
            "findings": tuple(Finding(**one) for one in fields["findings"]),
        }
        return cls(**dict(fields) | lists)


def prove(recipe: Recipe, topology: Topology, tell: Callable[[str], None] = lambda line: None) -> Proof:
    """Compile the step of a recipe for a topology, in a process of its own, or find that it was.

    Args:
        recipe: its `mesh`, `model` and `pretrain` are used; its own `topology` is not.
        tell: is given a line for people when a compilation begins, and with its seconds when it ends.

    Raises:
        UserError: the recipe does not fit the mesh, the TPU compiler is missing, or it was killed for want of memory.
    """
    versions = compiler_versions()
    job = job_of(recipe, topology)
    program = program_hash(job, versions)
    path, name = kept_at(program), f"{recipe.name} for {topology}"
    executable = read(path)
    if executable is None:
        tell(f"{name}: compiling, a minute or two")
        executable = compile_apart(job, path, name)
        tell(f"{name}: compiled in {executable.seconds:.0f} s")
        shrink(path.parent, MOST_BYTES)
    return _proof(recipe.name, job, program, versions, executable)


def job_of(recipe: Recipe, topology: Topology) -> Job:
    """What a recipe's pretraining compiles; `UserError` if the mesh can't hold it."""
    model = recipe.model.resolved(recipe.tokenizer.vocabulary_size)
    if not model.vocabulary_size:
        raise UserError("tokenizer.vocabulary_size: 0 is known only after tokenizing; give a number to plan with")
    job = Job(model, recipe.pretrain, dict(recipe.mesh), topology)
    check_fits(Architecture(model), job.config, model.vocabulary_size, _absent(job), "pretrain")
    return job


def program_hash(job: Job, versions: Mapping[str, str]) -> str:
    """Of all that the compiler is given: the traced step, the slice, the options, the versions. Takes a trace, 2 s."""
    mesh = _absent(job)
    with jax.sharding.use_abstract_mesh(mesh):
        options = compiler_options()
    with TRACING:
        program = fingerprint(traced(job.model, job.config, mesh).as_text())
    told = [program, str(job.topology), sorted(options.items())]
    return hashlib.sha256(repr([*told, sorted(versions.items())]).encode()).hexdigest()[:16]


def kept_at(program: str) -> Path:
    """Where what the compiler says of a program is kept."""
    return cache_folder("proofs") / f"{program}.json.gz"


def compiler_versions() -> dict[str, str]:
    """Of what decides how a program is compiled; `UserError` if there is no TPU compiler."""
    try:
        return {name: version(name) for name in ("jax", "libtpu")}
    except PackageNotFoundError as error:
        raise UserError("the TPU compiler is missing; install it: pip install 'tpullm[tpu]'") from error


def _absent(job: Job) -> AbstractMesh:
    return absent_mesh(job.mesh, job.topology)


def _proof(name: str, job: Job, program: str, versions: dict[str, str], executable: Executable) -> Proof:
    look = look_at(job, executable)
    sizes = axis_sizes(job.mesh, job.topology.chips)
    rests = resting(job.model, job.config.optimizer)
    state = round(sum(of_device(kind, sizes) for kind in (rests.parameters, rests.optimizer)))
    limit = executable.limit_bytes or round(job.topology.chip.hbm_bytes)
    return Proof(
        recipe=name,
        topology=str(job.topology),
        mesh=dict(zip(AXES, sizes, strict=True)),
        program=program,
        versions=versions,
        date=executable.date,
        refused="" if executable.text else _refusal(job, executable, state, limit),
        limit_bytes=limit,
        peak_bytes=executable.peak_bytes,
        state_bytes=state,
        tokens=job.config.batch_size * job.config.sequence_length,
        step_seconds=look.seconds,
        seconds=by_part(look.items),
        traffic=traffic_of(look),
        findings=find(look) if executable.text else (),
        compile_seconds=executable.seconds,
    )


def look_at(job: Job, executable: Executable) -> Look:
    """The program, its schedule and what is expected of it."""
    torus = Torus(job.topology, executable.places)
    setting = setting_of(job.model, job.config, job.mesh, job.topology)
    data, *others = setting.sizes
    within = dict(zip(AXES, (data // job.topology.slices, *others), strict=True))  # a program is that of one slice
    return Look(
        items=schedule(executable.text, torus, 1 / setting.fullness) if executable.text else [],
        text=executable.text,
        mesh=within,
        largest_parameter=_largest_parameter(job) // setting.along("tensor"),
        tokens=setting.tokens,
        vocabulary=job.model.vocabulary_size // setting.along("tensor"),
    )


def _largest_parameter(job: Job) -> int:
    """Numbers in the largest parameter that is used at once."""
    shapes = Architecture(job.model).shapes
    layers = [math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(shapes["layers"])]
    others = [math.prod(leaf.shape) for leaf in jax.tree.leaves({**shapes, "layers": {}})]
    return max(layers + others)


def by_part(items: list[Item]) -> dict[str, float]:
    """Seconds of a step by part, the longest first."""
    parts: Counter[str] = Counter()
    for item in items:
        parts[part_of(item)] += item.seconds
    return dict(parts.most_common())


def traffic_of(look: Look) -> tuple[Traffic, ...]:
    """All collectives by kind and axis, those first that cost most; what crosses slices goes by `slices`."""
    grouped: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in look.items:
        if item.collective and item.collective.devices():
            grouped[axes_of(item.collective.devices(), look.mesh), item.collective.kind].append(item)
        elif item.instruction.opcode == "send":
            grouped["slices", "all-reduce"].append(item)
    found = [_traffic(axes, kind, items) for (axes, kind), items in grouped.items() if axes]
    return tuple(sorted(found, key=lambda one: (-one.exposed_seconds, -one.seconds)))


def _traffic(axes: str, kind: str, items: list[Item]) -> Traffic:
    sizes = [item.collective.bytes if item.collective else item.instruction.shapes[0].bytes for item in items]
    return Traffic(
        axes,
        kind,
        sum(item.times * size for item, size in zip(items, sizes, strict=True)),
        sum(item.busy_seconds for item in items),
        sum(item.seconds for item in items),
    )


def _refusal(job: Job, executable: Executable, state_bytes: int, limit_bytes: int) -> str:
    """Why it does not fit: by how much, what is largest, which key to change."""
    rest = executable.peak_bytes - state_bytes
    if state_bytes > rest:
        what, key = f"parameters and optimizer ({state_bytes / 2**30:.1f})", _key_for_state(job)
    else:
        what, key = f"activations and gathered parameters ({rest / 2**30:.1f})", _key_for_activations(job)
    needed = f"{executable.peak_bytes / 2**30:.1f} GiB a chip of {limit_bytes / 2**30:.1f}"
    return f"does not fit: {needed}, by the TPU compiler; largest are {what}: {key}"


def _key_for_state(job: Job) -> str:
    optimizer = job.config.optimizer
    if optimizer.kind != "adafactor" and optimizer.moments == "float32":
        return "set pretrain.optimizer.moments to bfloat16, or take more chips"
    return "take more chips (topology)"


def _key_for_activations(job: Job) -> str:
    setting = setting_of(job.model, job.config, job.mesh, job.topology)
    if setting.rows // setting.accumulation // setting.along("data", "fsdp", "expert") > 1:
        return f"set pretrain.accumulation to {2 * job.config.accumulation}"
    if job.model.remat != "full":
        return "set model.remat to full"
    return "give mesh.sequence or mesh.tensor more devices, or take more chips"
