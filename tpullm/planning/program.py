"""The trainings of a recipe, and their programs on chips that this machine does not have: the step and the evaluation.

`traced_step` needs neither a chip nor its software, and finds layout errors. `compiled_step` is the program of the TPU
compiler (extra `tpu`) or of XLA for NVIDIA GPUs (`GPU_COMPILER`), with its memory and its collectives.
"""

import dataclasses
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, Mesh

from tpullm.data.batch import Batch
from tpullm.hardware.chips import of_kind
from tpullm.hardware.topologies import GpuHosts, Topology
from tpullm.model.mesh import EXPLICIT, arrange_devices, named_sharding, planned_mesh
from tpullm.model.mesh_fit import check_adapter, check_fits
from tpullm.model.platform import compute_dtype
from tpullm.planning.memory import architecture_of
from tpullm.planning.setting import Job
from tpullm.recipe.mesh_axes import AXES, axis_sizes
from tpullm.recipe.schema import AdapterConfig, ModelConfig, Recipe, TrainConfig, TuningConfig
from tpullm.system.errors import UserError
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import abstract_state, make_evaluation, make_step

PRETRAIN = "pretrain"
# XLA for NVIDIA GPUs has a folder of its own, which only processes that compile for GPUs have on their path. JAX loads
# every plugin that Python can import, and this one crashes beside CUDA's libraries (torch brings them) without a GPU.
GPU_COMPILER = Path(sys.prefix) / "gpu-plan"


@dataclass(frozen=True)
class Stage:
    """A training of a recipe.

    Args:
        name: `pretrain`, or that of a stage of tuning.
        key: of `config` in the recipe.
        config: the training.
        adapter: what it trains beside the parameters of the model; None trains them all.
        uncounted: what else it does that a plan leaves out, as told to the user.
    """

    name: str
    key: str
    config: TrainConfig
    adapter: AdapterConfig | None = None
    uncounted: tuple[str, ...] = ()

    def changed(self, recipe: Recipe, config: TrainConfig) -> Recipe:
        """The recipe with another training in the place of this one."""
        if self.name == PRETRAIN:
            return dataclasses.replace(recipe, pretrain=config)
        stage = dataclasses.replace(recipe.finetune[self.name], train=config)
        return dataclasses.replace(recipe, finetune=recipe.finetune | {self.name: stage})


def stage_of(recipe: Recipe, name: str = "") -> Stage:
    """A training of a recipe.

    Args:
        name: `pretrain` or of a stage of tuning, or the key of one. "" is the pretraining, or the first stage of tuning
            if the recipe starts from a published model, or says nothing of pretraining.

    Raises:
        UserError: there is no such stage.
    """
    name = name.removeprefix("finetune.").removesuffix(".train")
    if not name:
        starts = not recipe.base and recipe.pretrain != TrainConfig()
        name = PRETRAIN if starts else next(iter(recipe.finetune), PRETRAIN)
    if name == PRETRAIN:
        return Stage(name, PRETRAIN, recipe.pretrain)
    if name not in recipe.finetune:
        raise UserError(f"--stage: the recipe has no stage {name}; it has {', '.join((PRETRAIN, *recipe.finetune))}")
    settings = recipe.finetune[name]
    adapter = settings.adapter if settings.adapter.rank else None
    return Stage(name, f"finetune.{name}.train", settings.train, adapter, tuple(_uncounted_work(settings)))


def _uncounted_work(settings: TuningConfig) -> Iterator[str]:
    """What a stage does beside the step on its rows, which alone is planned."""
    if settings.prompts:
        answers = settings.policy.prompts * settings.policy.answers
        what = f"sampling {answers:,} answers of {settings.policy.tokens:,} tokens in a step"
        yield f"{what}: its cache, and its time (fsdp gathers the parameters for each token, tensor does not)"
    if settings.teacher.model:
        when = "in each step" if settings.prompts else "before the first step"
        yield f"the teacher {settings.teacher.model}, its parameters and its pass over the rows {when}"
    if settings.prompts and settings.policy.kl_weight:
        yield "the pass of the model without its adapter over the answers (policy.kl_weight)"
    if (settings.preferences or settings.judged) and settings.preference.needs_reference:
        yield "the pass of the model of the stage before over all rows, once, before the first step"
    if settings.beside:
        yield f"old text beside the answers ({', '.join(settings.beside)}), its rows in each step"


def job_of(recipe: Recipe, topology: Topology, stage: str = "", model: ModelConfig | None = None) -> Job:
    """A training of a recipe on a topology.

    Args:
        stage: of `stage_of`.
        model: resolved, if it is not that of the recipe alone.

    Raises:
        UserError: the recipe has no such stage, or does not fit the topology (its mesh, its rows, a size of its model).
    """
    planned, model = stage_of(recipe, stage), model or recipe.model.resolved(recipe.tokenizer.vocabulary_size)
    job = Job(model, planned.config, recipe.mesh, topology, planned.adapter, planned.key)
    mesh, architecture, slices = absent_mesh(job.mesh, topology), architecture_of(model, job.adapter), topology.slices
    if (data := mesh.shape["data"]) % slices:
        raise UserError(f"mesh.data: {data} can't be shared by {slices} slices; use a multiple of {slices}")
    check_fits(architecture, job.config, model.vocabulary_size, mesh, job.key, bool(recipe.base))
    if job.adapter:
        check_adapter(architecture, mesh, f"finetune.{planned.name}.adapter")
    return job


# Without these, libtpu waits for a metadata server and for the lock of another compilation.
QUIET = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def absent_mesh(shape: Mapping[str, int], topology: Topology) -> AbstractMesh:
    """The mesh of a recipe over absent chips, for tracing."""
    return planned_mesh(shape, topology.devices, AbstractDevice(topology.device_kind, 1, topology.platform))


def compiler_mesh(shape: Mapping[str, int], topology: Topology) -> Mesh:
    """The mesh of a recipe over absent chips, for the compiler: each device has its place in the network.

    Raises:
        UserError: the compiler is not installed.
    """
    from jax.experimental import topologies

    compiler_versions(topology)
    # libtpu leaves variables there by which other processes of ours would take themselves for workers of a TPU pod.
    before = dict(os.environ)
    os.environ.update(QUIET | before)
    try:
        described = topologies.get_topology_desc(**topology.described())
    finally:
        os.environ.clear()
        os.environ.update(before)
    return Mesh(arrange_devices(axis_sizes(shape, topology.devices), described.devices), AXES, axis_types=EXPLICIT)


def compiler_versions(topology: Topology) -> dict[str, str]:
    """The versions that decide how a program is compiled for a topology; `UserError` if there is no compiler for it."""
    needed, install = "", "'tpullm[tpu]'"
    if isinstance(topology, GpuHosts):
        needed = version("jaxlib")  # JAX takes no plugin of another version
        install = f"--upgrade --target {shlex.quote(str(GPU_COMPILER))} {topology.compiler}=={needed}"
    for found in distributions(name=topology.compiler, path=[str(GPU_COMPILER), *sys.path]):
        if found.version == (needed or found.version):
            return {"jax": version("jax"), topology.compiler: found.version}
    told = f"the {topology.platform.upper()} compiler is missing; install it: pip install {install}"
    raise UserError(f"{topology}: {told}")


def compiler_environment(topology: Topology) -> dict[str, str]:
    """The environment of a process that compiles for a topology."""
    path = [str(GPU_COMPILER)] * isinstance(topology, GpuHosts) + [os.environ.get("PYTHONPATH", "")]
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, path))}


def absent_options(platform: str) -> dict[str, bool]:
    """Options of a compilation for absent devices, beside those of the program (`platform.compiler_options`).

    XLA asks the GPU how much memory it needs to sort by CUDA's library; without it, XLA sorts by itself.
    """
    return {"xla_gpu_enable_cub_radix_sort": False} if platform == "gpu" else {}


def traced_step(job: Job, mesh: Mesh | AbstractMesh, evaluation: bool = False) -> jax.stages.Lowered:
    """The step of a training on `mesh`, or the evaluation of a batch, lowered for its platform."""
    # Otherwise a kernel's text names the files and lines of its source, and the hash depends on where those are.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    config, architecture = job.config, architecture_of(job.model, job.adapter)
    used = jax.set_mesh if isinstance(mesh, Mesh) else jax.sharding.use_abstract_mesh
    with used(mesh), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")  # here it only traces
        dtype, axes = compute_dtype(config.compute), architecture.trained(architecture.axes)
        optimizer = make_optimizer(config.optimizer, config.steps, axes, dtype, architecture.adapter)
        state, batch = abstract_state(architecture, optimizer, mesh), abstract_batch(config, mesh)
        frozen = architecture.frozen(architecture.at_rest(mesh, dtype))
        if evaluation:
            program = make_evaluation(architecture, dtype, config.accumulation, config.loss_chunks)
            arguments = architecture.whole(state["params"], frozen), batch
        else:
            program = make_step(architecture, optimizer, config, dtype, seed=0)
            arguments = (state, batch, frozen) if frozen else (state, batch)
        platform = mesh.abstract_mesh.abstract_device.platform
        return program.trace(*arguments).lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))


def abstract_batch(config: TrainConfig, mesh: Mesh | AbstractMesh) -> Batch:
    """The shapes, types and shardings of one global batch."""
    shape, sharding = (config.batch_size, config.sequence_length), named_sharding(mesh, "batch", "time")
    of = lambda dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # noqa: E731
    return Batch(*[of(jnp.int32)] * 4, of(jnp.float32))


class TooLarge(Exception):
    """The program needs more memory than a device has, by the compiler."""

    def __init__(self, needed_bytes: int, limit_bytes: int):
        super().__init__(needed_bytes, limit_bytes)
        self.needed_bytes, self.limit_bytes = needed_bytes, limit_bytes


def compiled_step(job: Job, mesh: Mesh, evaluation: bool = False) -> Any:
    """The executable of the step, or of the evaluation, with `memory_analysis()` and `as_text()`.

    Raises:
        TooLarge: it does not fit the memory.
    """
    kind = mesh.abstract_mesh.abstract_device
    try:
        executable = traced_step(job, mesh, evaluation).compile(compiler_options=absent_options(kind.platform))
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"total memory required .*?\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", str(error))
        if not found:
            raise
        raise TooLarge(*(int(float(gib) * 2**30) for gib in found.groups())) from error
    if kind.platform == "gpu":  # XLA for GPUs refuses nothing: it recomputes more, and runs out of memory in the run
        needed, limit = executable.memory_analysis().peak_memory_in_bytes, round(of_kind(kind.device_kind).hbm_bytes)
        if needed > limit:
            raise TooLarge(needed, limit)
    return executable
