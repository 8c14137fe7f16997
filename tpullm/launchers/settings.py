"""The settings of a launch: one frozen dataclass, filled from a file of `configs/launch/` and the command line."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from tpullm.errors import UserError

LEAST_HOURS = 0.1
MOST_HOURS = 336  # 14 days: Google Batch allows no more (cloud.google.com/batch/docs/set-timeouts)


@dataclass(frozen=True)
class LaunchConfig:
    """The machines on which a verb runs. Each target needs some of these keys; its file in `configs/launch/` has them.

    Args:
        name: name of all resources. Empty is the recipe's name and the verb, such as `quickstart-pretrain`.
        project: the Google Cloud project that pays.
        zone: zone of the machines, such as `us-west4-a`. Its region is the part before the last dash.
        accelerator: type of the TPU slices, such as `v5litepod-16`, as Google names it. (tpu-vm)
        slices: number of slices in one training. (tpu-vm)
        machine: machine type, such as `a3-highgpu-8g`. (compute, batch)
        nodes: number of machines. They run one training or share one stage. (compute, batch, slurm)
        provisioning: how machines are paid: spot, on_demand or reserved. `spot` is cheapest, but Google may take the
            machines back at any time. `reserved` uses your reservation.
        reservation: name of the reservation, for `reserved`.
        runtime_version: system image of a TPU machine. Empty is Google's for its generation. (tpu-vm)
        image: image of the boot disk or the container. (compute, batch) Empty is the target's own.
        disk_gb: size of the boot disk, GB. (compute, batch)
        python: path of a Python on the machines that has all dependencies. Empty installs one.
        volumes: mounts: {source: folder of `/mnt/disks/`}. A source is `gs://BUCKET/FOLDER` or `nfs://SERVER/FOLDER`.
            (batch)
        service_account: service account of the machines. Empty is the project's default one, which may change much more
            than the bucket.
        network: network of the machines. Empty is the project's default.
        subnetwork: subnetwork of the machines. Empty is the network's own.
        gpu_network: name of the networks between the GPUs of several machines. `launch compute networks` makes them.
            Empty leaves each machine one network card. (compute)
        external_ip: give the machines addresses on the internet. Without them the subnetwork needs Private Google
            Access, and a mirror or an image for Python packages.
        environment: environment variables of the verb. No secrets: everyone who may see the machines can read them.
        max_hours: hours that a machine may run. Then it ends, even if nobody watches: the verb saves its state a few
            minutes earlier, and with --watch another attempt resumes. 72 is a long weekend. A request for TPUs that has
            not been granted after this time is given up.
        max_preemptions: number of times in a row that lost machines are replaced. Machines are lost when they are taken
            back or can't be created.
        processes: number of processes on this machine. (local)
        devices: CPU devices of each process. 0 is one. GPUs are divided evenly. (local)
        gpus_per_node: GPUs of each machine, with one process a GPU. 0 is one process a machine, on its CPU. (slurm)
        sbatch: more options of `sbatch`, such as `[--partition=a3, --account=mine]`. (slurm)
    """

    name: str = ""
    project: str = ""
    zone: str = ""
    accelerator: str = ""
    slices: int = 1
    machine: str = ""
    nodes: int = 1
    provisioning: Literal["spot", "on_demand", "reserved"] = "spot"
    reservation: str = ""
    runtime_version: str = ""
    image: str = ""
    disk_gb: int = 200
    python: str = ""
    volumes: dict[str, str] = field(default_factory=dict)
    service_account: str = ""
    network: str = ""
    subnetwork: str = ""
    gpu_network: str = ""
    external_ip: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    max_hours: float = 72.0
    max_preemptions: int = 50
    processes: int = 2
    devices: int = 0
    gpus_per_node: int = 0
    sbatch: list[str] = field(default_factory=list)

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


def add_arguments(parser) -> None:
    """`--config FILE` and one option for every key."""
    import jsonargparse

    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="a YAML file of configs/launch/")
    parser.add_class_arguments(LaunchConfig)


def from_arguments(arguments: Any) -> LaunchConfig:
    """The settings of a parsed command line."""
    return LaunchConfig(**{key.name: getattr(arguments, key.name) for key in dataclasses.fields(LaunchConfig)})


def require(config: LaunchConfig, target: str, *keys: str) -> None:
    """Refuse settings that lack a key of the target or have an impossible value; `UserError` names the key."""
    for key in keys:
        if not getattr(config, key):
            raise UserError(f"{key}: is needed to launch on {target}; give --{key}, or set it in a file of --config")
    if config.zone and (config.zone.count("-") < 2 or len(config.zone.rpartition("-")[2]) != 1):
        raise UserError(f"zone: {config.zone} is not a zone, such as us-west4-a; give the region's letter too")
    for key in ("slices", "nodes", "processes", "disk_gb"):
        if getattr(config, key) < 1:
            raise UserError(f"{key}: {getattr(config, key)} is too small; use 1 or more")
    if not LEAST_HOURS <= config.max_hours <= MOST_HOURS:  # NaN too
        raise UserError(f"max_hours: {config.max_hours:g} is not possible; use {LEAST_HOURS} to {MOST_HOURS}")
    if min(config.max_preemptions, config.devices, config.gpus_per_node) < 0:
        raise UserError("max_preemptions, devices and gpus_per_node: can't be below 0")
    if (config.provisioning == "reserved") != bool(config.reservation):
        raise UserError("reservation: goes with provisioning: reserved; give both or none")
