"""What is launched: a verb with its recipe, for one run directory, under one name. Nothing here needs a network."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from tpullm.errors import UserError
from tpullm.hardware import accelerators, machines
from tpullm.launchers import code
from tpullm.launchers.settings import LaunchConfig
from tpullm.mesh import axes
from tpullm.recipe import parsing as recipes
from tpullm.recipe.schema import Recipe

# How a verb is distributed: its processes join each other (`joining.py`), or share the work by index (`sharing.py`).
JOINING = ("run", "pretrain", "finetune", "evaluate")
SHARING = ("collect", "tokenize")
RUN_LABEL = "tpullm-run"  # holds `Job.run_hash`
CLOUD_NAME = re.compile(r"[a-z]([-a-z0-9]{0,46}[a-z0-9])?")  # room for `-ATTEMPT` and for what targets add, of 63


@dataclass(frozen=True)
class Job:
    """One launch.

    Args:
        target: where, such as `tpu-vm`.
        name: of all that is made for it.
        verb: what runs.
        arguments: of the verb as it was given, without the words of the shell.
        recipe: what they come to.
        config: how it is launched.
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
        """Where the launch keeps its state, in the run directory: code, attempts, logs."""
        return f"{self.run}/launch/{self.name}"

    @property
    def run_hash(self) -> str:
        """What says on a resource whose it is; a label can't hold a path."""
        return hashlib.sha256(self.run.encode()).hexdigest()[:16]

    @property
    def wheel(self) -> str:
        """Where this code is put."""
        return f"{self.run}/launch/code/{code.wheel().name}"

    @property
    def sheet_path(self) -> str:
        """Where `sheet` is put: by its content, so that an attempt's sheet stays as it was."""
        return f"{self.folder}/jobs/{code.hash_of(self.sheet())}.json"

    @property
    def hosts(self) -> int:
        """Machines of one attempt. Each reports how the verb ended."""
        config = self.config
        return accelerators.find(config.accelerator).hosts * config.slices if config.accelerator else config.nodes

    def attempt_name(self, attempt: int) -> str:
        """The name of an attempt's resources. Each attempt has its own, so a late request cannot hit another one."""
        return f"{self.name}-{attempt}"

    def labels(self, attempt: int) -> dict[str, str]:
        """The labels of each resource of an attempt."""
        return {"tpullm": self.name, RUN_LABEL: self.run_hash, "tpullm-attempt": str(attempt)}

    def sheet(self) -> dict[str, Any]:
        """What the machines read: all that `host.py` needs to run the verb."""
        return {
            "name": self.name,
            "verb": self.verb,
            "run": self.run,
            "folder": self.folder,
            "recipe": recipes.dump(self.recipe),
            "environment": self.config.environment,
        }

    def requirement(self) -> str:
        """How the code is installed on a machine: the extras that its devices need beside the wheel."""
        return machines.find(self.config.machine).extras if self.config.machine else "tpu,gcp"


def make(target: str, config: LaunchConfig, command: list[str]) -> Job:
    """The job of a command line `VERB …`.

    Raises:
        UserError: a verb that can't be distributed, no recipe, or a name that no resource can have.
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
    """Refuse what machines elsewhere can't see: a run directory or sources on this one; `UserError` names the key."""
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
    try:
        axes.axis_sizes(job.recipe.mesh, devices)
    except UserError as error:
        raise UserError(f"{error} ({which})") from None


def _paths(job: Job) -> list[tuple[str, str]]:
    """The paths that the verb reads, with the recipe's keys of them."""
    found = []
    if job.verb in ("run", "collect"):
        found += [("text", job.recipe.text)]
        found += [
            ("corpus.sources", source.path)
            for source in job.recipe.corpus.sources
            if source.kind not in ("tenki", "python") and "://" not in source.path
        ]
    if job.verb in ("run", "pretrain", "finetune"):
        found += [("base", job.recipe.base)]
    if job.verb in ("run", "finetune") and job.recipe.finetune:
        found += [("finetune.conversations", path) for path in job.recipe.finetune.conversations if path != "tenki"]
        found += [("finetune.chat_template", job.recipe.finetune.chat_template)]
    return found
