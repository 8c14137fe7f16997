"""A job: a verb with its recipe, one run directory and one name. Nothing here needs a network."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from tpullm import storage
from tpullm.errors import UserError
from tpullm.hardware import accelerators, machines
from tpullm.hardware.gpu_machines import GPU_MACHINES
from tpullm.launchers import code
from tpullm.launchers.settings import LaunchConfig
from tpullm.mesh import axes
from tpullm.recipe import parsing as recipes
from tpullm.recipe.schema import ALONE, Recipe
from tpullm.run import question_sets

# How a verb is distributed: its processes join as hosts (`cluster/join.py`), or share its work (`cluster/shares.py`).
JOINING = ("run", "pretrain", "finetune", "evaluate")
SHARING = ("collect", "tokenize")
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
    def hosts(self) -> int:
        """Machines of one attempt. Each reports how the verb ended."""
        config = self.config
        return accelerators.find(config.accelerator).hosts * config.slices if config.accelerator else config.nodes

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
            return accelerators.find(config.accelerator).dollars_an_hour * config.slices
        return machines.find(config.machine).dollars_of(config.nodes)

    def attempt_name(self, attempt: int) -> str:
        """The name of an attempt's resources. Each attempt has its own, so a late request cannot hit another one."""
        return f"{self.name}-{attempt}"

    def labels(self, attempt: int) -> dict[str, str]:
        """The labels of each resource of an attempt."""
        return {"tpullm": self.name, RUN_LABEL: self.run_hash, "tpullm-attempt": str(attempt)}

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
        machine = machines.find(self.config.machine) if self.config.machine else None
        if machine and machine.gpus:
            spec["gpus"] = {"machine": machine.name, "name": GPU_MACHINES[machine.gpu].name, "count": machine.gpus}
        return spec

    def extras(self) -> str:
        """The extras of the wheel that a machine's devices, sources and trackers need, such as `cuda,gcp,mlflow`."""
        of_devices = machines.find(self.config.machine).extras if self.config.machine else "tpu,gcp"
        of_sources = {"domains" for source in self.recipe.corpus.sources if source.kind in question_sets.PACKAGES}
        stages = self.recipe.finetune.values()
        named = {question_sets.package_of(name) for stage in stages for name in stage.examples}
        named |= {reward.get("name") for stage in stages for reward in stage.rewards}
        of_sources |= {"domains" for name in ("law", "medicine") if name in named}
        of_sources |= {"reasoning-gym"} & {str(name).replace("_", "-") for name in named}
        return ",".join([of_devices, *sorted(of_sources), *self.recipe.trackers])


def make(target: str, config: LaunchConfig, command: list[str]) -> Job:
    """The job for a command line `VERB …`.

    Raises:
        UserError: the verb can't be distributed, there is no recipe, or no resource can have the name.
    """
    if not command:
        raise UserError("launch: what is to run? Give a verb after --, such as: -- pretrain --config FILE --run RUN")
    verb, arguments = command[0], command[1:]
    if verb not in JOINING + SHARING:
        possible = ", ".join(JOINING + SHARING)
        raise UserError(f"{verb}: is not a verb that can be distributed; those are {possible}")
    if any(argument.startswith(("--hosts.", "--share.")) for argument in arguments):
        raise UserError("--hosts.* and --share.*: launch gives them to each process; leave them out")
    recipe = recipes.of_command_line(arguments)
    name = config.name or re.sub(r"[^a-z0-9]+", "-", f"{recipe.name}-{verb}".lower()).strip("-")
    name = name if config.name or name[:1].isalpha() else f"tpullm-{name}"
    if not CLOUD_NAME.fullmatch(name):
        raise UserError(f"name: {name} can't name resources; use up to 48 of a-z, 0-9 and -, beginning with a letter")
    return Job(target, name, verb, tuple(arguments), recipe, config)


def check_cloud(job: Job) -> None:
    """Refuse a run directory or sources on this machine, which other machines can't read; `UserError` names the key."""
    if not job.run.startswith("gs://"):
        raise UserError(f"run: {job.run} is on this machine; give --run gs://BUCKET/FOLDER, which all machines see")
    for key, path in _paths(job):
        if path and not path.startswith(("gs://", *(f"{mount}/" for mount in job.config.volumes.values()))):
            raise UserError(f"{key}: {path} is on this machine; copy it to gs:// and name it there")


def check_mesh(job: Job) -> None:
    """Refuse a mesh that does not fit the devices of all machines; `UserError` names them."""
    config = job.config
    if config.accelerator:
        devices = accelerators.find(config.accelerator).chips * config.slices
        slices = f"{config.slices} x " if config.slices > 1 else ""
        which = f"accelerator: {slices}{config.accelerator}"
    else:
        devices = machines.find(config.machine).devices * config.nodes
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
        axes.axis_sizes(job.recipe.mesh, devices)
    except UserError as error:
        raise UserError(f"{error} ({which})") from None


def _paths(job: Job) -> list[tuple[str, str]]:
    """Key and path of each input of the verb."""
    found, built_in = [], ("tenki", "tenki_casual", *question_sets.PACKAGES)
    if job.verb in ("run", "collect"):
        found += [("text", job.recipe.text)]
        found += [
            ("corpus.sources", source.path)
            for source in job.recipe.corpus.sources
            if source.kind not in (*built_in, "python") and "://" not in source.path
        ]
    if job.verb in ("run", "pretrain", "finetune"):
        found += [("base", job.recipe.base)]
    if job.verb in ("run", "pretrain"):
        found += [("branch", job.recipe.branch)]
    for name, stage in job.recipe.finetune.items() if job.verb in ("run", "finetune") else ():
        for key in ("conversations", *ALONE):
            named = [path for path in getattr(stage, key) if question_sets.package_of(path) not in built_in]
            found += [(f"finetune.{name}.{key}", path) for path in named]
        found += [(f"finetune.{name}.rewards", path) for path in stage.reward_files]
        found += [(f"finetune.{name}.chat_template", stage.chat_template)]
        found += [(f"finetune.{name}.adapter.start", stage.adapter.start)]
        found += [(f"finetune.{name}.teacher.model", stage.teacher.model)]
    return found
