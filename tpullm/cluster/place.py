"""How a process finds its place: which host of a training it is, or which share of a verb's work it does.

Hosts train one model together and join each other before anything asks JAX for a device; shares work each on its own
(`sharing.py`). What says so, the first that does:

                hosts                                         shares of collect and tokenize
    1. flags    --hosts.coordinator, .count, .index           --share.count, .index
    2. a TPU    its metadata                                  -
    3. Batch    the lines of BATCH_HOSTS_FILE                 BATCH_TASK_INDEX, BATCH_TASK_COUNT
    4. Slurm    the tasks of a step (srun)                    the tasks of a step (srun)
    5. nothing  one host                                      all of the work

The tasks of a Slurm array are not shares: they are what a user tries many recipes with. One process by itself connects
to nothing, and JAX is not imported for it.
"""

import argparse
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpullm import log
from tpullm.cluster import metadata
from tpullm.cluster.shares import ALL, Share
from tpullm.errors import UserError

SECONDS_TO_JOIN = 300.0  # as `jax.distributed.initialize` waits


# Where host 0 listens, if TPULLM_PORT does not say otherwise: a TPU's runtime has 8431 and 8471 to 8479, the transport
# between slices 8080 or 8081, or what it is told; JAX itself would take 8482.
PORTS = (8482, 8483)


HELP = (
    "Several hosts: start the same command on each, in a run directory that all share, with --hosts.coordinator "
    "HOST:PORT (the address and a free port of host 0), --hosts.count N and --hosts.index I (from 0). On a TPU pod, in "
    "a Google Batch job with a hosts file and under srun they find each other; --hosts.count 1 is one host, whatever "
    "the surroundings say."
)


SHARE_HELP = (
    "Several processes, on one machine or many, can share the work: start the same command as each of them, in a run "
    "directory that all see, with --share.count N and --share.index I (from 0). The tasks of a Google Batch job and of "
    "srun find their shares by themselves; --share.count 1 is all of the work, whatever the surroundings say."
)


FLAGS = {"hosts": {"coordinator": str, "count": int, "index": int}, "share": {"count": int, "index": int}}


@dataclass(frozen=True)
class Place:
    """Which host this process is.

    Args:
        source: how that was found, for people.
        index: of this host, from 0.
        count: of all hosts.
        coordinator: `HOST:PORT` of host 0; empty for one host.
        slurm: JAX shares the devices of a machine between its processes.
    """

    source: str
    index: int = 0
    count: int = 1
    coordinator: str = ""
    slurm: bool = False


def take_flags(group: str, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The flags `--GROUP.*` of a command line, and the rest of it: they differ by process, and are no part of a recipe.

    Raises:
        UserError: a flag without a value, or whose value is no number.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    for name, kind in FLAGS[group].items():
        parser.add_argument(f"--{group}.{name}", dest=name, type=kind)
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}") from None
    return {name: value for name, value in vars(found).items() if value is not None}, rest


def find_place(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Place:
    """Which host this is: what the first of the table above says that says anything.

    Raises:
        UserError: what was found is incomplete or contradicts itself.
    """
    place = (
        _from_flags(flags)
        or _from_tpu(environment)
        or _from_batch(environment)
        or _from_slurm(environment)
        or Place("no sign of others (looked for flags, TPU, Google Batch, Slurm)")
    )
    if not 0 <= place.index < place.count:
        raise UserError(f"hosts: {place.source} say index {place.index} of {place.count}; use 0 to count - 1")
    return place


def find_share(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Share:
    """Which share this is: the first of the flags, Google Batch and Slurm that says so; else all of the work.

    Raises:
        UserError: what was found is incomplete or contradicts itself.
    """
    share = _share_from_flags(flags) or _share_from_batch(environment) or _share_from_slurm(environment) or ALL
    if not 0 <= share.index < share.count:
        raise UserError(f"share: {share.source} say index {share.index} of {share.count}; use 0 to count - 1")
    return share


def _share_from_flags(flags: Mapping[str, Any]) -> Share | None:
    if not flags:
        return None
    if "count" not in flags or ("index" not in flags and flags["count"] != 1):
        missing, given = ("index", "count") if "count" in flags else ("count", "index")
        raise UserError(f"share.{missing}: is missing beside --share.{given}; give both, or --share.count 1")
    return Share(flags.get("index", 0), flags["count"], "the flags --share.*")


def _share_from_batch(environment: Mapping[str, str]) -> Share | None:
    names = ("BATCH_TASK_INDEX", "BATCH_TASK_COUNT")
    return _share_from_variables(environment, names, environment.get("BATCH_JOB_UID", ""))


def _share_from_slurm(environment: Mapping[str, str]) -> Share | None:
    """The tasks of a step: a script that `sbatch` starts has SLURM_PROCID and SLURM_NTASKS too, and is one process."""
    job = (environment.get(f"SLURM_{name}", "") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    return _share_from_variables(environment, ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), ".".join(job))


def _share_from_variables(environment: Mapping[str, str], names: tuple[str, str], job: str) -> Share | None:
    if any(name not in environment for name in names):
        return None
    index, count = (environment[name] for name in names)
    source = f"{names[0]} and {names[1]}"
    if not (index.isdigit() and count.isdigit()):
        raise UserError(f"share: {source} are {index!r} and {count!r}, and no numbers; give --share.count 1")
    return Share(int(index), int(count), source, job)


def introduce(share: Share) -> None:
    """Say which share this is, if there are several, now and before each line."""
    if share.count > 1:
        log.speak_as(f"share {share.index}")
        log.say(f"place: share {share.index} of {share.count} (from 0), by {share.source}")


def _from_flags(flags: Mapping[str, Any]) -> Place | None:
    if not flags:
        return None
    if flags.get("count") == 1 and not flags.get("index"):
        return Place("the flags --hosts.*")
    if missing := [name for name in ("coordinator", "count", "index") if name not in flags]:
        given = ", ".join(f"--hosts.{name}" for name in flags)
        raise UserError(f"hosts.{missing[0]}: is missing beside {given}; give all three, or --hosts.count 1")
    _, colon, port = flags["coordinator"].rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UserError(f"hosts.coordinator: {flags['coordinator']} is not HOST:PORT; give the address of host 0")
    return Place("the flags --hosts.*", flags["index"], flags["count"], flags["coordinator"])


def _from_tpu(environment: Mapping[str, str]) -> Place | None:
    """The list of workers of a GKE pod, or the metadata of a TPU machine; slices are numbered one after another.

    As `jax._src.clusters.cloud_tpu_cluster` reads them.
    """
    if "tpu" not in (environment.get("JAX_PLATFORMS") or "tpu"):
        return None
    if "TPU_WORKER_HOSTNAMES" in environment:
        workers, own = environment["TPU_WORKER_HOSTNAMES"].split(","), environment.get("TPU_WORKER_ID", "0")
        return _in_slices("the variables of a TPU pod", workers, own, environment)
    if not may_have_tpu(environment):
        return None
    try:
        own = metadata.attribute("agent-worker-number")
        if not own:
            return None  # a Google machine without a TPU
        # Each is a name, or name:id:address.
        workers = [worker.split(":")[-1] for worker in metadata.attribute("worker-network-endpoints").split(",")]
        lines = [line.partition(":") for line in metadata.attribute("tpu-env").splitlines()]
    except OSError as error:
        raise UserError(f"hosts: the TPU's metadata can't be read ({error}); give --hosts.*") from error
    slices = {key.strip(): value.strip().strip("'") for key, _, value in lines if key.startswith("MEGASCALE_")}
    return _in_slices("the TPU's metadata", workers, own, slices | environment)


def _in_slices(source: str, workers: list[str], own: str, variables: Mapping[str, str]) -> Place:
    """The place of a worker of one of several slices; the first slice's first worker is host 0."""
    slices, of_slice = variables.get("MEGASCALE_NUM_SLICES") or 1, variables.get("MEGASCALE_SLICE_ID") or 0
    host, _, port = variables.get("MEGASCALE_COORDINATOR_ADDRESS", "").partition(":")
    # The slices' own transport listens on host 0 as well.
    taken = {port, variables.get("MEGASCALE_PORT")}
    free = next(port for port in _ports(variables) if str(port) not in taken)
    if not all(str(number).isdigit() for number in (own, slices, of_slice)):
        raise UserError(f"hosts: {source} say worker {own} of slice {of_slice} of {slices}; give --hosts.*")
    index, count = int(own) + int(of_slice) * len(workers), len(workers) * int(slices)
    return Place(source, index, count, f"{host or workers[0]}:{free}")


def _ports(variables: Mapping[str, str]) -> tuple[int, ...]:
    own = variables.get("TPULLM_PORT")
    return (int(own), *PORTS) if own else PORTS


def may_have_tpu(environment: Mapping[str, str]) -> bool:
    """Whether there can be a TPU here, without importing JAX: it is a PCI device of Google's."""
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    told = environment.get("GCE_METADATA_HOST") or environment.get("TPU_WORKER_HOSTNAMES")
    return bool(told) or any(vendor.read_text().strip() == "0x1ae0" for vendor in vendors)


def _from_batch(environment: Mapping[str, str]) -> Place | None:
    """Tasks of a Google Batch job, one a machine; `requireHostsFile` of the task group has it list the machines.

    Nothing says that tasks and lines are in the same order, so a host's place is that of its name in the file.
    """
    count = environment.get("BATCH_TASK_COUNT", "1")
    if count == "1" or "BATCH_TASK_INDEX" not in environment:
        return None
    file = Path(environment.get("BATCH_HOSTS_FILE", ""))
    if not file.is_file():
        raise UserError(
            f"hosts: BATCH_TASK_COUNT is {count} and there is no BATCH_HOSTS_FILE; set requireHostsFile in the job's "
            "task group, or give --hosts.count 1 if every task trains by itself"
        )
    names = file.read_text(encoding="utf-8").split()
    if str(len(names)) != count:
        raise UserError(
            f"hosts: {file} names {len(names)} hosts and BATCH_TASK_COUNT is {count}; set taskCountPerNode: 1"
        )
    own = {socket.gethostname(), socket.getfqdn(), *_addresses(socket.gethostname())}
    own |= {name.split(".")[0] for name in own if not name.replace(".", "").isdigit()}
    found = [index for index, name in enumerate(names) if {name, name.split(".")[0]} & own]
    if len(found) != 1:
        raise UserError(f"hosts: {socket.gethostname()} is {len(found)} times in {file}; give --hosts.*")
    return Place("Google Batch", found[0], len(names), f"{names[0]}:{_ports(environment)[0]}")


def _addresses(name: str) -> set[str]:
    try:
        return {entry[4][0] for entry in socket.getaddrinfo(name, None)}
    except OSError:
        return set()


def _from_slurm(environment: Mapping[str, str]) -> Place | None:
    if "SLURM_PROCID" not in environment or environment.get("SLURM_NTASKS", "1") == "1":
        return None
    from jax._src.clusters import SlurmCluster

    return _detected("Slurm", SlurmCluster) if SlurmCluster.is_env_present() else None


def _detected(source: str, cluster) -> Place:
    count = cluster.get_process_count()
    if count == 1:
        return Place(source)
    address = cluster.get_coordinator_address(timeout_secs=int(SECONDS_TO_JOIN), override_coordinator_port=None)
    return Place(source, cluster.get_process_id(), count, address, source == "Slurm")
