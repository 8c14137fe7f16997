"""Two machines are a Ray cluster for a verb of text: by the start-up script, and by Slurm's batch script."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray_kills

from tests.conftest import ROOT, wait_until
from tests.launch.conftest import CLOUD
from tests.launch.fake_metadata import Metadata
from tpullm.cli import launch
from tpullm.launch import google_batch, job, ray_node, slurm
from tpullm.launch.job import LaunchConfig
from tpullm.launch.record import HostExit, Record
from tpullm.run import manifest
from tpullm.system.cluster import handshake
from tpullm.system.cluster.place import Place


def test_host_0_has_the_head_and_the_others_join_it():
    first, other = (ray_node.command(Place(index, 3, "a test", "first.zone:8482")) for index in (0, 2))
    assert first[1:6] == ["-m", "ray.scripts.scripts", "start", "--head", "--port=8482"]
    assert other[1:5] == ["-m", "ray.scripts.scripts", "start", "--address=first.zone:8482"]
    assert "--block" in first and "--block" in other
    assert ray_node.variables("s") == {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "s", "RAY_USAGE_STATS_ENABLED": "0"
    }  # fmt: skip


def test_a_node_that_ends_is_started_again_until_its_host_ends(monkeypatch):
    """And a node that runs then is ended."""
    starts, stopping = [], threading.Event()
    program = "import sys, time; print('node', sys.argv[1], flush=True); time.sleep(60 * (sys.argv[1] == '3'))"

    def command(here):
        starts.append(here)
        return [sys.executable, "-c", program, str(len(starts))]

    def line(text):
        if text == "node 3":
            stopping.set()

    monkeypatch.setattr(ray_node, "command", command)
    monkeypatch.setattr(ray_node, "SECONDS_BETWEEN_STARTS", 0.01)
    began = time.monotonic()
    ray_node.keep(Place(1, 2, "a test", "a:1"), os.environ, line, stopping)
    assert len(starts) == 3 and time.monotonic() - began < 50


def make_recipe(folder: Path) -> Path:
    """Of 6 MB in 4 parts, without what takes long: less is made by the driver itself."""
    return ray_kills.make_documents(folder, 40_000, 10_000, plain=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.ci
def test_two_tasks_of_batch_make_one_cluster_and_end_together(bucket, tmp_path):
    """Each is the start-up script with its supervisor; both "machines" are this one."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    work = job.make(
        "batch",
        LaunchConfig(**CLOUD, machine="n2-standard-8", nodes=2, python=sys.executable),
        ["collect", "--config", str(make_recipe(tmp_path)), "--run", f"{bucket}/run"],
    )
    launch.upload_launch(work)
    runnable = google_batch.requests(work, 1)[0].body["taskGroups"][0]["taskSpec"]["runnables"][0]
    own = {"TPULLM_PORT": str(free_port()), "BATCH_TASK_COUNT": "2", "JAX_PLATFORMS": "cpu"}
    own |= {name: os.environ[name] for name in ("PATH", "STORAGE_EMULATOR_HOST")} | runnable["environment"]["variables"]
    metadata, tasks = Metadata("any"), []
    try:
        for index in (1, 0):
            hosts = tmp_path / f"hosts-{index}"
            hosts.write_text(
                "\n".join([socket.gethostname(), "other"] if index == 0 else ["127.0.0.2", socket.gethostname()])
            )
            told = {
                "BATCH_TASK_INDEX": str(index),
                "BATCH_HOSTS_FILE": str(hosts),
                "GCE_METADATA_HOST": metadata.address,
            }
            told |= {"TPULLM_HOME": str(tmp_path / f"home-{index}")}
            command = ["sh", "-c", runnable["script"]["text"]]
            tasks.append(subprocess.Popen(command, env=own | told, cwd=tmp_path))
        assert [task.wait(400) for task in tasks] == [0, 0]
    finally:
        for task in tasks:
            task.terminate()
        metadata.close()
    record = Record(work.folder)
    first, second = sorted(record.exits(1), key=lambda ended: ended.host)
    assert first.code == 0 and first.line.startswith("documents: 40,000 with ")
    assert second == HostExit(1, 0, f"host 0 ended: {first.line}")
    text = "".join((record.attempt_folder(1) / "logs" / name).read_text() for name in record.logs(1))
    assert re.search(r"ray: [12] node\(s\), \d+ CPUs", text) and record.secret(1, 0) not in text
    assert (bucket / "run" / "documents" / manifest.FILE).exists()


SRUN = """#!/bin/bash
[ "$1" = --cpu-bind=none ] && shift
for task in 0 1; do
    SLURM_PROCID=$task SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=$(hostname) SLURM_STEP_ID=0 "$@" &
    echo $! >>"$TASKS"
done
wait
"""


@pytest.mark.ci
def test_two_nodes_of_slurm_make_one_cluster(tmp_path):
    """With a stand-in for srun, both of whose nodes are this machine."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    command = ["collect", "--config", str(make_recipe(tmp_path)), "--run", str(tmp_path / "run")]
    text = slurm.batch_script(job.make("slurm", LaunchConfig(nodes=2), command))
    own = {"SLURM_JOB_ID": str(os.getpid()), "TASKS": str(tmp_path / "tasks"), "PYTHONPATH": str(ROOT)}
    own["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    try:
        with open(tmp_path / "log", "w") as log:  # a pipe would be open until the step ends
            code = subprocess.run(["bash", "-c", text], env=os.environ | own, stderr=log, timeout=400).returncode
    finally:  # as Slurm does when the script has ended
        tasks = [int(line) for line in (tmp_path / "tasks").read_text().split()]
        for task in tasks:
            os.kill(task, signal.SIGTERM)
    said = (tmp_path / "log").read_text()
    assert code == 0 and re.search(r"ray: [12] node\(s\), ", said), said
    assert (tmp_path / "run/documents" / manifest.FILE).exists()
    wait_until(lambda: not [task for task in tasks if Path(f"/proc/{task}").exists()])


def test_the_batch_script_keeps_a_node_of_ray_beside_the_verb_which_alone_decides_how_it_ends():
    work = job.make("slurm", LaunchConfig(nodes=4), ["tokenize", "quickstart", "--run", "runs/x"])
    lines = slurm.batch_script(work).splitlines()
    assert "#SBATCH --exclusive" in lines and not any("--signal" in line for line in lines)
    at = lines.index(f"srun --cpu-bind=none {sys.executable} -m tpullm.launch.ray_node &")
    assert lines[at + 1 : at + 3] == [
        f"{sys.executable} -m tpullm tokenize quickstart --run runs/x --engine=ray",
        "code=$?",
    ]
    assert f'export RAY_AUTH_TOKEN="${handshake.VARIABLE}"' in lines
    alone = slurm.batch_script(job.make("slurm", LaunchConfig(), ["tokenize", "quickstart", "--run", "runs/x"]))
    assert "ray" not in alone.lower() and f"srun {sys.executable} -m tpullm tokenize quickstart" in alone
