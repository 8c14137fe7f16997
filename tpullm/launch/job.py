"""A launch as data: its settings, and the job that they and a verb's command line make. Nothing here needs a network.

`LaunchConfig` is filled from a file of `configs/launch/` and the command line. A `Job` is a verb with its recipe, one
run directory and one name.
"""

import hashlib
import importlib.resources
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval

from tpullm.hardware import machines
from tpullm.launch import code
from tpullm.recipe import mesh_axes
from tpullm.recipe import parsing as recipes
from tpullm.recipe.fields import NonNegativeInt, PositiveInt
from tpullm.recipe.schema import ALONE, Recipe
from tpullm.run.pypi import PYPI
from tpullm.run.stages import QUESTION_PACKAGES, question_set
from tpullm.system import storage
from tpullm.system.cluster.place import Place
from tpullm.system.errors import UserError

# 14 days: Google Batch allows no more (cloud.google.com/batch/docs/set-timeouts).
Hours = Annotated[float, Interval(ge=0.1, le=336)]


@dataclass(frozen=True)
class LaunchConfig:
    """The machines on which a verb runs. Each target needs some of these keys; its file in `configs/launch/` has them.

    Args:
        name: name of all resources. Empty is the recipe's name and the verb, such as `quickstart-pretrain`.
        project: the Google Cloud project that pays.
        zone: zone of the machines, such as `us-west4-a`. Its region is the part before the last dash.
        accelerator: type of the TPU slices, such as `v5litepod-16`, as Google names it. (tpu-vm, gke)
        slices: number of slices in one training. (tpu-vm, gke)
        machine: machine type, such as `a3-highgpu-8g`. (batch, gke)
        nodes: number of machines. They run one training, or they are the Ray cluster of `collect` or `tokenize`.
            (batch, slurm, gke)
        provisioning: how machines are paid: spot, on_demand, reserved or flex_start. `spot` is cheapest, but Google may
            take the machines back at any time. `reserved` uses your reservation. `flex_start` waits for capacity and
            keeps it for at most seven days. (gke)
        reservation: name of the reservation, for `reserved`.
        runtime_version: system image of a TPU machine. Empty is Google's for its generation. (tpu-vm)
        image: image of the boot disk or the container. (batch, gke) Empty is the target's own.
        disk_gb: size of the boot disk, GB. (batch)
        python: path of a Python on the machines that has all dependencies. Empty installs one.
        volumes: mounts: {source: folder of `/mnt/disks/`}. A source is `gs://BUCKET/FOLDER` or `nfs://SERVER/FOLDER`.
            (batch)
        queue: name of Kueue's local queue, which starts the JobSet when there is room. Empty is no queue. (gke)
        context: context of kubectl's configuration, so which cluster. Empty is the current one. (gke)
        namespace: Kubernetes namespace. (gke)
        service_account: service account of the machines. Empty is the project's default one, which may change much more
            than the bucket.
        network: network of the machines. Empty is the project's default.
        subnetwork: subnetwork of the machines. Empty is the network's own.
        external_ip: give the machines addresses on the internet. Without them the subnetwork needs Private Google
            Access, and a mirror or an image for Python packages.
        environment: environment variables of the verb. No secrets: everyone who may see the machines can read them.
        max_hours: hours that a machine may run. Then it ends, even if nobody watches: the verb saves its state a few
            minutes earlier, and with --watch another attempt resumes. 72 is a long weekend. A request for TPUs that has
            not been granted after this time is given up.
        max_preemptions: number of times in a row that lost machines are replaced. Machines are lost when they are taken
            back or can't be created.
        max_restarts: number of times that JobSet restarts all machines after a fault of the verb. Lost machines are
            not counted. (gke)
        processes: number of processes on this machine. (local)
        devices: CPU devices of each process. 0 is one. GPUs are divided evenly. (local)
        gpus_per_node: GPUs of each machine, with one process a GPU. 0 is one process a machine, on its CPU. (slurm)
        sbatch: more options of `sbatch`, such as `[--partition=a3, --account=mine]`. (slurm)
    """

    name: str = ""
    project: str = ""
    zone: str = ""
    accelerator: str = ""
    slices: PositiveInt = 1
    machine: str = ""
    nodes: PositiveInt = 1
    provisioning: Literal["spot", "on_demand", "reserved", "flex_start"] = "spot"
    reservation: str = ""
    runtime_version: str = ""
    image: str = ""
    disk_gb: PositiveInt = 200
    python: str = ""
    volumes: dict[str, str] = field(default_factory=dict)
    queue: str = ""
    context: str = ""
    namespace: str = "default"
    service_account: str = ""
    network: str = ""
    subnetwork: str = ""
    external_ip: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    max_hours: Hours = 72.0
    max_preemptions: NonNegativeInt = 50
    max_restarts: NonNegativeInt = 3
    processes: PositiveInt = 2
    devices: NonNegativeInt = 0
    gpus_per_node: NonNegativeInt = 0
    sbatch: list[str] = field(default_factory=list)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """What no type can say: a key, and what is wrong with it."""
        if self.zone and not re.fullmatch(r"[^-]*-.*-.", self.zone):
            yield "zone", f"{self.zone} is not a zone, such as us-west4-a; give the region's letter too"
        if (self.provisioning == "reserved") != bool(self.reservation):
            yield "reservation", "goes with provisioning: reserved; give both or none"
        for name in self.environment:  # each stands in a script on the machine
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
                yield "environment", f"{name!r} is no name of a variable; use letters, digits and _"
        for option in self.sbatch:  # each is a line of the batch script
            if not re.fullmatch(r"-[^\x00-\x1f\x7f]*", option):
                yield "sbatch", f"{option!r} is no option of sbatch; begin with - and stay in one line"

    @property
    def region(self) -> str:
        """The region of the zone."""
        return self.zone.rpartition("-")[0]

    @property
    def max_seconds(self) -> int:
        """How long a machine may run, in seconds."""
        return round(self.max_hours * 3600)

    @property
    def network_paths(self) -> dict[str, str]:
        """The network and the subnetwork as Compute Engine names them. Empty: the project's default network."""
        network = {"network": f"global/networks/{self.network}"} if self.network else {}
        subnetwork = f"regions/{self.region}/subnetworks/{self.subnetwork}"
        return network | ({"subnetwork": subnetwork} if self.subnetwork else {})


def require(config: LaunchConfig, target: str, *keys: str) -> None:
    """Refuse settings that lack a key of the target; `UserError` names it."""
    for key in keys:
        if not getattr(config, key):
            raise UserError(f"{key}: is needed to launch on {target}; give --{key}, or set it in a file of --config")


# How a verb is distributed: its processes join as hosts (`system/cluster/hosts.py`), or its one process has its parts
# made by a Ray cluster of the machines (`system/process/parts.py`).
JOINING = ("run", "pretrain", "finetune", "evaluate")
TEXT = ("collect", "tokenize")
RUN_LABEL = "tpullm-run"  # holds `Job.run_hash`
# What the machines' account may be used for: Cloud Storage, logs, measurements. Its roles may allow less, not more.
SCOPES = ("devstorage.read_write", "logging.write", "monitoring.write")
CLOUD_NAME = re.compile(r"[a-z]([-a-z0-9]{0,46}[a-z0-9])?")  # of Google's 63 characters, 15 for `-ATTEMPT-INDEX`


@dataclass(frozen=True)
class Job:
    """One launch.

    Args:
        target: where the verb runs, such as `tpu-vm`.
        name: name of all its resources.
        verb: such as `pretrain`.
        arguments: of the verb, as the user gave them.
        recipe: that the arguments make.
        config: settings of the launch.
    """

    target: str
    name: str
    verb: str
    arguments: tuple[str, ...]
    recipe: Recipe
    config: LaunchConfig

    @property
    def run(self) -> str:
        """The run directory."""
        return self.recipe.run.rstrip("/")

    @property
    def folder(self) -> str:
        """The folder of the launch in the run directory: specifications, attempts, logs."""
        return f"{self.run}/launch/{self.name}"

    @property
    def run_hash(self) -> str:
        """The hash that marks the resources of this run: a label can't hold a path."""
        return hashlib.sha256(self.run.encode()).hexdigest()[:16]

    @property
    def wheel(self) -> str:
        """The path in the run directory for the wheel of this code."""
        return f"{self.run}/launch/code/{code.wheel().name}"

    @property
    def spec_path(self) -> str:
        """The path for `spec`, by the hash of its content: the specification of an attempt never changes."""
        return f"{self.folder}/jobs/{storage.hash_json(self.spec())[:12]}.json"

    @property
    def machine(self) -> machines.Machine:
        """The machine type; `UserError` if there is none of that name."""
        return machines.find(self.config.machine)

    @property
    def hosts(self) -> int:
        """Machines of one attempt. Each reports how the verb ended."""
        config = self.config
        return machines.find_slice(config.accelerator).hosts * config.slices if config.accelerator else config.nodes

    @property
    def uses_ray(self) -> bool:
        """Whether the machines are a Ray cluster; the processes of one machine need none."""
        return self.verb in TEXT and self.config.nodes > 1

    @property
    def scopes(self) -> list[str]:
        """The scopes of the machines' account. The agent of Batch calls an API whose only scope is that of all APIs."""
        names = ("cloud-platform",) if self.target == "batch" else SCOPES
        return [f"https://www.googleapis.com/auth/{name}" for name in names]

    @property
    def dollars_an_hour(self) -> float | None:
        """The list price of the machines of an attempt, on demand; None is not known."""
        config = self.config
        if config.accelerator:
            return machines.find_slice(config.accelerator).dollars_an_hour * config.slices
        return self.machine.dollars_of(config.nodes)

    def attempt_name(self, attempt: int) -> str:
        """The name of an attempt's resources. Each attempt has its own, so a late request cannot hit another one."""
        return f"{self.name}-{attempt}"

    def labels(self, attempt: int) -> dict[str, str]:
        """The labels of each resource of an attempt."""
        return {"tpullm": self.name, RUN_LABEL: self.run_hash, "tpullm-attempt": str(attempt)}

    def metadata(self, attempt: int) -> dict[str, str]:
        """The metadata attributes of a machine: its start-up script, and what that has to know."""
        return {
            "startup-script": importlib.resources.files("tpullm.launch").joinpath("startup.sh").read_text("utf-8"),
            "tpullm-job": self.spec_path,
            "tpullm-attempt": str(attempt),
            "tpullm-wheel": self.wheel,
            "tpullm-sha256": code.wheel().sha256,
            "tpullm-extras": self.extras(),
            "tpullm-python": self.config.python,
            "tpullm-seconds": str(self.config.max_seconds),
        }

    def spec(self) -> dict[str, Any]:
        """The specification that the machines read: all that `supervisor.py` needs to run the verb."""
        spec = {
            "name": self.name,
            "verb": self.verb,
            "run": self.run,
            "folder": self.folder,
            "recipe": recipes.dump(self.recipe),
            "environment": self.config.environment,
        }
        if self.config.machine and (machine := self.machine).gpus:
            spec["gpus"] = {"machine": machine.name, "name": machine.gpu_name, "count": machine.gpus}
        return spec

    def extras(self) -> str:
        """The extras of the wheel that a machine's devices, sources and trackers need, such as `cuda,gcp,mlflow`."""
        of_devices = self.machine.extras if self.config.machine else "tpu,gcp"
        of_sources = {"domains" for source in self.recipe.corpus.sources if QUESTION_PACKAGES.get(source.kind)}
        stages = self.recipe.finetune.values()
        named = {question_set(name) for stage in stages for name in stage.examples}
        named |= {reward.get("name") for stage in stages for reward in stage.rewards}
        of_sources |= {"domains" for name in ("licences", "medicine") if name in named}
        of_sources |= {"reasoning-gym"} & {str(name).replace("_", "-") for name in named}
        gguf = bool(self.recipe.export.gguf) or self.recipe.base.startswith(PYPI) or self.recipe.base.endswith(".gguf")
        engines = [*["gguf"] * gguf, *["ray"] * self.uses_ray]
        return ",".join([of_devices, *engines, *sorted(of_sources), *self.recipe.trackers])


def make(target: str, config: LaunchConfig, command: list[str]) -> Job:
    """The job for a command line `VERB …`.

    Raises:
        UserError: the verb can't be distributed, there is no recipe, or no resource can have the name.
    """
    if not command:
        raise UserError("launch: what is to run? Give a verb after --, such as: -- pretrain --config FILE --run RUN")
    verb, arguments = command[0], command[1:]
    if verb not in JOINING + TEXT:
        raise UserError(f"{verb}: is not a verb that can be distributed; those are {', '.join(JOINING + TEXT)}")
    if any(argument.startswith("--hosts.") for argument in arguments):
        raise UserError("--hosts.*: launch gives them to each process; leave them out")
    recipe = recipes.of_command_line(arguments)
    name = config.name or re.sub(r"[^a-z0-9]+", "-", f"{recipe.name}-{verb}".lower()).strip("-")
    name = name if config.name or name[:1].isalpha() else f"tpullm-{name}"
    if not CLOUD_NAME.fullmatch(name):
        raise UserError(f"name: {name} can't name resources; use up to 48 of a-z, 0-9 and -, beginning with a letter")
    return Job(target, name, verb, tuple(arguments), recipe, config)


def verb_flags(verb: str, place: Place) -> list[str]:
    """The flags `--hosts.*` of a verb whose hosts join, and the engine of one that has a Ray cluster."""
    if verb in TEXT:
        return ["--engine=ray"] * (place.count > 1)
    flags = [f"--hosts.index={place.index}", f"--hosts.count={place.count}"]
    return flags + ([f"--hosts.coordinator={place.coordinator}"] if place.count > 1 else [])


def check_cloud(job: Job) -> None:
    """Refuse a run directory or sources on this machine, which other machines can't read; `UserError` names the key."""
    if not job.run.startswith("gs://"):
        raise UserError(f"run: {job.run} is on this machine; give --run gs://BUCKET/FOLDER, which all machines see")
    for key, path in _input_paths(job):
        if path and not path.startswith(("gs://", *(f"{mount}/" for mount in job.config.volumes.values()))):
            raise UserError(f"{key}: {path} is on this machine; copy it to gs:// and name it there")


def check_mesh(job: Job) -> None:
    """Refuse a mesh that does not fit the devices of all machines; `UserError` names them."""
    config = job.config
    if config.accelerator:
        devices = machines.find_slice(config.accelerator).chips * config.slices
        which = f"accelerator: {f'{config.slices} x ' if config.slices > 1 else ''}{config.accelerator}"
    else:
        devices = job.machine.devices * config.nodes
        which = f"machine: {config.nodes} x {config.machine}"
    check_devices(job, devices, which)


def check_devices(job: Job, devices: int, which: str) -> None:
    """Refuse a mesh that does not fit a number of devices.

    Args:
        job: with the recipe.
        devices: of all processes.
        which: the keys that say so, for the message.

    Raises:
        UserError: it names the mesh and the devices.
    """
    try:
        mesh_axes.axis_sizes(job.recipe.mesh, devices)
    except UserError as error:
        raise UserError(f"{error} ({which})") from None


def _input_paths(job: Job) -> Iterator[tuple[str, str]]:
    """Key and path of each input of the verb."""
    recipe, built_in = job.recipe, ("tenki", "tenki_casual", *QUESTION_PACKAGES)
    if job.verb in ("run", "collect"):
        yield "text", recipe.text
        for source in recipe.corpus.sources:
            if source.kind not in ("tenki", "python", "licences", "medicine") and "://" not in source.path:
                yield "corpus.sources", source.path
    if job.verb in ("run", "pretrain", "finetune"):
        yield "base", "" if recipe.base.startswith(PYPI) else recipe.base
    if job.verb in ("run", "pretrain"):
        yield "branch", recipe.branch
    for name, stage in recipe.finetune.items() if job.verb in ("run", "finetune") else ():
        for source in recipe.laws if "law" in stage.examples else ():
            yield "corpus.sources", source.path
        for key in ("conversations", *ALONE):
            for path in getattr(stage, key):
                if question_set(path) not in built_in:
                    yield f"finetune.{name}.{key}", path
        for path in stage.reward_files:
            yield f"finetune.{name}.rewards", path
        yield f"finetune.{name}.chat_template", stage.chat_template
        yield f"finetune.{name}.adapter.start", stage.adapter.start
        yield f"finetune.{name}.teacher.model", stage.teacher.model
