"""Which host of a command this process is. The first source that applies decides:

    1. flags    --hosts.coordinator, .count, .index
    2. a TPU    its metadata
    3. Batch    the lines of BATCH_HOSTS_FILE
    4. Slurm    the tasks of a step (srun)
    5. nothing  one host

The tasks of a Slurm array are no hosts: users run one recipe in each. Nothing here imports JAX, since launchers need
their place without it. `GCE_METADATA_HOST` names another metadata server than Google's.
"""

import argparse
import contextlib
import os
import re
import socket
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpullm.system.errors import UserError

# Where host 0 listens, unless TPULLM_PORT is set; on the second if the transport between slices has the first. The TPU
# runtime uses 8431 and 8471 to 8479, the transport 8080, 8081 or MEGASCALE_PORT.
PORTS = (8482, 8483)

HELP = (
    "Several hosts: start the same command on each, in a run directory that all share, with --hosts.coordinator "
    "HOST:PORT (the address and a free port of host 0), --hosts.count N and --hosts.index I (from 0). On a TPU pod, in "
    "a Google Batch job with a hosts file and under srun the hosts find each other; --hosts.count 1 is one host, "
    "whatever the environment says."
)

FLAGS = {"coordinator": str, "count": int, "index": int}
SLURM = "the variables of Slurm"

TRIES = 6  # when a machine starts, the server may come up after the program


@dataclass(frozen=True)
class Place:
    """Which of several processes this one is.

    Args:
        index: of this process, from 0.
        count: of all processes.
        source: what says so, for log lines.
        coordinator: `HOST:PORT` of host 0; empty for one host.
    """

    index: int = 0
    count: int = 1
    source: str = "no sign of others (looked for flags, TPU, Google Batch, Slurm)"
    coordinator: str = ""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the results."""
        return self.index == 0


ALONE = Place()


def take_flags(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The flags `--hosts.*` of a command line, and the other arguments: the recipe must not differ by process.

    Raises:
        UserError: a flag has no value, or its value is not a number.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    for name, kind in FLAGS.items():
        parser.add_argument(f"--hosts.{name}", dest=name, type=kind)
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}") from None
    return {name: value for name, value in vars(found).items() if value is not None}, rest


def find(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Place:
    """Which host this process is, by the first source of the table above that applies.

    Raises:
        UserError: the source is incomplete or contradicts itself.
    """
    found = (source(environment) for source in (_from_tpu, _from_hosts_file, _from_slurm))
    place = _from_flags(flags) or next(filter(None, found), ALONE)
    if not 0 <= place.index < place.count:
        raise UserError(f"hosts: {place.source} say index {place.index} of {place.count}; use 0 to count - 1")
    return place


def _from_flags(flags: Mapping[str, Any]) -> Place | None:
    if not flags:
        return None
    source = "the flags --hosts.*"
    if flags.get("count") == 1 and not flags.get("index"):
        return Place(source=source)
    if missing := [name for name in FLAGS if name not in flags]:
        given = ", ".join(f"--hosts.{name}" for name in flags)
        raise UserError(f"hosts.{missing[0]}: is missing beside {given}; give all three, or --hosts.count 1")
    _, colon, port = flags["coordinator"].rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UserError(f"hosts.coordinator: {flags['coordinator']} is not HOST:PORT; give the address of host 0")
    return Place(source=source, **flags)


def _from_tpu(environment: Mapping[str, str]) -> Place | None:
    """The list of workers of a GKE pod, or the metadata of a TPU machine; hosts are numbered slice by slice.

    As `jax._src.clusters.cloud_tpu_cluster` reads them.
    """
    if "tpu" not in (environment.get("JAX_PLATFORMS") or "tpu") or not may_have_tpu(environment):
        return None
    if "TPU_WORKER_HOSTNAMES" in environment:
        workers, own = environment["TPU_WORKER_HOSTNAMES"].split(","), environment.get("TPU_WORKER_ID", "0")
        return _place_in_slices("the variables of a TPU pod", workers, own, environment)
    try:
        if not (own := attribute("agent-worker-number")):
            return None  # a Google machine without a TPU
        # Each is a name, or name:id:address.
        workers = [worker.split(":")[-1] for worker in attribute("worker-network-endpoints").split(",")]
        lines = [line.partition(":") for line in attribute("tpu-env").splitlines()]
    except OSError as error:
        raise UserError(f"hosts: the TPU's metadata can't be read ({error}); give --hosts.*") from error
    slices = {key.strip(): value.strip().strip("'") for key, _, value in lines if key.startswith("MEGASCALE_")}
    return _place_in_slices("the TPU's metadata", workers, own, slices | environment)


def _place_in_slices(source: str, workers: list[str], own: str, variables: Mapping[str, str]) -> Place:
    """The place of a worker of one of several slices; host 0 is the first worker of the first slice."""
    slices, of_slice = variables.get("MEGASCALE_NUM_SLICES") or 1, variables.get("MEGASCALE_SLICE_ID") or 0
    host, _, port = variables.get("MEGASCALE_COORDINATOR_ADDRESS", "").partition(":")
    # The transport between slices listens on host 0 as well.
    taken = {port, variables.get("MEGASCALE_PORT")}
    free = next(port for port in _cluster_ports(variables) if str(port) not in taken)
    if not all(str(number).isdigit() for number in (own, slices, of_slice)):
        raise UserError(f"hosts: {source} say worker {own} of slice {of_slice} of {slices}; give --hosts.*")
    index, count = int(own) + int(of_slice) * len(workers), len(workers) * int(slices)
    return Place(index, count, source, f"{host or workers[0]}:{free}")


def _cluster_ports(variables: Mapping[str, str]) -> tuple[int, ...]:
    own = variables.get("TPULLM_PORT")
    return (int(own), *PORTS) if own else PORTS


def metadata(key: str) -> str:
    """A value, such as `instance/attributes/agent-worker-number`; empty if there is none.

    Raises:
        OSError: no server answers.
    """
    server = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    address, headers = f"http://{server}/computeMetadata/v1/{key}", {"Metadata-Flavor": "Google"}
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for number in range(TRIES):
        try:
            with direct.open(urllib.request.Request(address, headers=headers), timeout=5.0) as answer:
                return answer.read().decode()
        except OSError as error:
            if getattr(error, "code", None) == 404:
                return ""
            problem = error
        time.sleep(0.1 * 2**number)
    raise problem


def attribute(key: str) -> str:
    """A value set when this machine was created; empty if there is none."""
    return metadata(f"instance/attributes/{key}")


def may_have_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this machine may have a TPU, a PCI device made by Google; without importing JAX."""
    told = environment.get("GCE_METADATA_HOST") or environment.get("TPU_WORKER_HOSTNAMES")
    return bool(told) or _has_pci_device("0x1ae0")


def may_have_gpu() -> bool:
    """Whether this machine may have an NVIDIA GPU, its own or that of the Windows around it; without importing JAX."""
    # A container may hide the PCI devices, and then still has the driver's own file.
    return _has_pci_device("0x10de") or any(Path(file).exists() for file in ("/dev/nvidiactl", "/dev/dxg"))


def _has_pci_device(vendor: str) -> bool:
    """Whether there is a PCI device of this maker."""
    return any(own.read_text().strip() == vendor for own in Path("/sys/bus/pci/devices").glob("*/vendor"))


def _from_hosts_file(environment: Mapping[str, str]) -> Place | None:
    """The tasks of a Google Batch job, one a machine, whose task group lists its machines (`requireHostsFile`).

    Batch does not promise that tasks and lines are in the same order, so the line with this host's name is its index.
    """
    place = _by_names("the variables of Google Batch", ("BATCH_TASK_INDEX", "BATCH_TASK_COUNT"), environment)
    if place is None or place.count == 1:
        return place
    file = Path(environment.get("BATCH_HOSTS_FILE", ""))
    if not file.is_file():
        raise UserError(
            f"hosts: BATCH_TASK_COUNT is {place.count} and there is no BATCH_HOSTS_FILE; set requireHostsFile in the "
            "job's task group, or give --hosts.count 1 if every task trains by itself"
        )
    names = file.read_text(encoding="utf-8").split()
    if len(names) != place.count:
        raise UserError(
            f"hosts: {file} names {len(names)} hosts and BATCH_TASK_COUNT is {place.count}; set taskCountPerNode: 1"
        )
    own = {socket.gethostname(), socket.getfqdn()}
    with contextlib.suppress(OSError):
        own |= {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None)}
    own |= {name.split(".")[0] for name in own if not name.replace(".", "").isdigit()}
    found = [index for index, name in enumerate(names) if {name, name.split(".")[0]} & own]
    if len(found) != 1:
        raise UserError(f"hosts: {socket.gethostname()} is {len(found)} times in {file}; give --hosts.*")
    return replace(place, index=found[0], coordinator=f"{names[0]}:{_cluster_ports(environment)[0]}")


def _from_slurm(environment: Mapping[str, str]) -> Place | None:
    """The tasks of a step (srun). A script that `sbatch` starts is one process, though it has SLURM_PROCID too.

    Address and port as in `jax._src.clusters.SlurmCluster`: the first node of the list, and a port that follows from
    the number of the job.
    """
    if (place := _by_names(SLURM, ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), environment)) is None:
        return None
    first = re.match(r"([^,[]*)(?:\[([^],-]*))?", environment.get("SLURM_STEP_NODELIST", ""))
    port = 61_440 + int(environment.get("SLURM_JOB_ID", 0)) % 4096
    return replace(place, coordinator=f"{first[1]}{first[2] or ''}:{port}")


def _by_names(source: str, names: tuple[str, str], environment: Mapping[str, str]) -> Place | None:
    if any(name not in environment for name in names):
        return None
    index, count = (environment[name] for name in names)
    if not (index.isdigit() and count.isdigit()):
        raise UserError(f"{' and '.join(names)}: are {index!r} and {count!r}, and no numbers; unset them")
    return Place(int(index), int(count), source)
