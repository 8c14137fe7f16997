"""Slurm: the verb as one job of several nodes, by sbatch, with one process a GPU, or with one node of Ray a node.

JAX recognizes the tasks of `srun` and gives each the GPU with the number of its SLURM_LOCALID
(`jax._src.clusters.SlurmCluster`); one task a node would get one GPU only. Each task sees all GPUs of its node, because
NCCL needs them for NVLink: so the job asks for GPUs by node, not by task. The nodes share the run directory and this
Python's environment. Slurm keeps the state, so `status`, `logs` and `stop` ask it.

A verb of text on several nodes runs in the batch script, on the first node, beside a step that keeps a node of Ray on
each. Slurm ends the step with the script.
"""

import math
import shlex
import subprocess
import sys
from pathlib import Path

from tpullm.launch import job as jobs
from tpullm.launch import ray_node
from tpullm.launch.job import Job
from tpullm.system import storage
from tpullm.system.cluster import handshake
from tpullm.system.errors import TRY_AGAIN, UserError

SECONDS_TO_SAVE = 600  # between SIGTERM and the end of the job's hours
# A job that ends with 75 sooner has a fault of its own; later, a node was lost, and it is queued again.
LEAST_SECONDS = 600
# The variables of Google's plugins for NCCL, where its blueprints for Slurm put them on a node.
PROFILES = ("/var/lib/tcpxo/lib64/nccl-env-profile.sh", "/usr/local/gib/scripts/set_nccl_env.sh")


def check(job: Job) -> None:
    """Refuse a job that Slurm can't run; `UserError` names the key."""
    config = job.config
    jobs.require(config, "slurm")
    if job.verb not in jobs.TEXT:
        each = f" with {config.gpus_per_node} GPUs" if config.gpus_per_node else ""
        jobs.check_devices(job, config.nodes * max(config.gpus_per_node, 1), f"nodes: {config.nodes}{each}")
    elif config.gpus_per_node:
        raise UserError(f"gpus_per_node: {job.verb} needs no GPU, and would leave some idle; leave it out")


def batch_script(job: Job) -> str:
    """The batch script."""
    config, python = job.config, job.config.python or sys.executable
    options = [
        f"--job-name={job.name}",
        f"--nodes={config.nodes}",
        f"--ntasks-per-node={max(config.gpus_per_node, 1)}",
        *([f"--gpus-per-node={config.gpus_per_node}"] if config.gpus_per_node else []),
        f"--time={math.ceil(config.max_seconds / 60)}",  # minutes
        # To the tasks, which save. Of text every finished part is kept, and its nodes work to the end.
        *([] if job.verb in jobs.TEXT else [f"--signal=TERM@{SECONDS_TO_SAVE}"]),
        *(["--exclusive"] if job.verb in jobs.TEXT else []),  # else a task has one core
        "--requeue",
        "--open-mode=append",
        f"--output={_slurm_log_folder(job).replace('%', '%%')}/%j.log",
        *config.sbatch,
    ]
    make = shlex.join([python, "-c", "from tpullm.system.cluster import handshake; print(handshake.make())"])
    verb = [f"srun {shlex.join([python, '-m', 'tpullm', job.verb, *job.arguments])}"]
    if job.uses_ray:
        verb = [
            # As in `place.py`: the first node, and a port that follows from the number of the job.
            'export RAY_ADDRESS="$(hostname):$((61440 + SLURM_JOB_ID % 4096))"',
            *(f"export {key}={value}" for key, value in ray_node.variables(f'"${handshake.VARIABLE}"').items()),
            f"srun --cpu-bind=none {shlex.join([python, '-m', 'tpullm.launch.ray_node'])} &",
            shlex.join([python, "-m", "tpullm", job.verb, *job.arguments, "--engine=ray"]),
        ]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {shlex.quote(option)}" for option in options),
            f"for profile in {' '.join(PROFILES)}; do",
            '    if [ -r "$profile" ]; then NCCL_LIB_DIR=$(dirname "$profile"); export NCCL_LIB_DIR; . "$profile"; fi',
            "done",
            *(f"export {key}={shlex.quote(value)}" for key, value in config.environment.items()),
            f"{handshake.VARIABLE}=$({make}) || exit 1",
            f"export {handshake.VARIABLE}",
            *verb,
            "code=$?",
            f'if [ "$code" = {TRY_AGAIN} ] && [ "$SECONDS" -ge {LEAST_SECONDS} ] &&',
            f'    [ "${{SLURM_RESTART_COUNT:-0}}" -lt {config.max_preemptions} ]; then',
            '    scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$code"',
            "",
        ]
    )


def _slurm_log_folder(job: Job) -> str:
    """The folder for the job's output: in the run directory, or here for a run on gs://, which Slurm can't write."""
    return job.folder if "://" not in job.run else f"launch-{job.name}"


def dry_run(job: Job) -> str:
    """The batch script, as YAML."""
    from tpullm.launch import show

    what = show.as_yaml({"command": "sbatch --parsable", "script": batch_script(job)})
    return show.comment("What `tpullm launch slurm` would submit; nothing was.") + what


def submit(job: Job) -> str:
    """Submit the job; its number."""
    storage.check_writable(storage.path(job.run))
    Path(_slurm_log_folder(job)).mkdir(parents=True, exist_ok=True)
    return _printed_by_slurm("sbatch", "--parsable", text=batch_script(job)).strip()


def status(job: Job) -> str:
    """What squeue says of the jobs of this name."""
    return _printed_by_slurm("squeue", "--me", f"--name={job.name}")


def stop(job: Job) -> None:
    """Cancel the jobs of this name."""
    _printed_by_slurm("scancel", "--me", f"--name={job.name}")


def newest_log(job: Job) -> Path | None:
    """The output of the newest job that has written a line."""
    logs = sorted(Path(_slurm_log_folder(job)).glob("*.log"), key=lambda file: file.stat().st_mtime)
    return logs[-1] if logs else None


def _printed_by_slurm(*command: str, text: str = "") -> str:
    """What a command of Slurm prints.

    Raises:
        UserError: there is no Slurm here, or it refuses; in its words.
    """
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: is not on this machine; launch from a login node of the cluster") from None
    if done.returncode:
        raise UserError(f"{command[0]}: refused ({' '.join((done.stderr or done.stdout).split())[:300]})")
    return done.stdout
