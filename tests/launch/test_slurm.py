"""`launch slurm`: the batch script, run as Slurm runs it, and questions to Slurm; with stand-ins for its commands."""

import os
import re
import shlex
import subprocess

import pytest
import yaml

from tests.conftest import TINY
from tpullm.cli.main import main
from tpullm.launch import job, slurm
from tpullm.launch.job import LaunchConfig
from tpullm.system.errors import UserError

# What it was called with, and its standard input.
TOOL = 'printf "%s\\n" "{name} $*" >>"$CALLS"\ncat >>"$CALLS.stdin"\n{text}\n'
TEXTS = {
    "sbatch": "echo 4711",
    "squeue": "echo 'JOBID PARTITION NAME'",
    "scancel": "",
    "scontrol": "",
    "srun": 'env | grep -E "^(NCCL_|TPULLM_HOSTS|A=)" >"$CALLS.environment"; exit "${CODE:-0}"',
}


def make(verb="pretrain", run="runs/x", arguments=(), **config) -> job.Job:
    command = [verb, "--config", str(TINY), "--run", str(run), *arguments]
    return job.make("slurm", LaunchConfig(**config), command)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    (tmp_path / "tools").mkdir()
    for name, text in TEXTS.items():
        program = tmp_path / "tools" / name
        program.write_text("#!/bin/bash\n" + TOOL.format(name=name, text=text))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return lambda: (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []


def options(work: job.Job) -> dict[str, str]:
    lines = re.findall("^#SBATCH (.*)$", slurm.batch_script(work), re.MULTILINE)
    words = [word for line in lines for word in shlex.split(line)]
    return dict(word.partition("=")[::2] for word in words)


@pytest.mark.parametrize("nodes, gpus", [(1, 0), (16, 0), (2, 1), (16, 8)])
def test_every_gpu_has_a_process(nodes, gpus):
    """JAX gives a task the device of its SLURM_LOCALID, so fewer tasks would leave GPUs idle and more would fail."""
    found = options(make(nodes=nodes, gpus_per_node=gpus))
    assert found["--nodes"] == str(nodes) and found["--ntasks-per-node"] == str(gpus or 1)
    assert found.get("--gpus-per-node") == (str(gpus) if gpus else None)
    assert not [option for option in found if "per-task" in option], "a task that sees one GPU has no NVLink to others"


def test_jax_gives_a_task_the_gpu_of_its_local_number(monkeypatch):
    """What the number of tasks relies on."""
    from jax._src.clusters import ClusterEnv

    values = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "16", "SLURM_PROCID": "11"}
    for name, value in (values | {"SLURM_LOCALID": "3", "SLURM_STEP_NUM_TASKS": "16"}).items():
        monkeypatch.setenv(name, value)
    *_, devices = ClusterEnv.auto_detect_unset_distributed_params("a:1", 16, 11, None, None, 10)
    assert devices == [3]


def test_the_hours_the_log_and_more_options():
    found = options(make(run="runs/100% of it", max_hours=1.51, sbatch=["--partition=a3", "--comment=two words"]))
    assert found["--time"] == "91", "whole minutes, not fewer"
    assert found["--signal"] == "TERM@600" and found["--output"] == "runs/100%% of it/launch/tiny-pretrain/%j.log"
    assert found["--partition"] == "a3" and found["--comment"] == "two words"
    assert options(make(run="gs://b/x"))["--output"] == "launch-tiny-pretrain/%j.log"


def run_script(work: job.Job, tmp_path, seconds=0, **variables) -> int:
    text = slurm.batch_script(work).replace("#!/bin/bash\n", f"#!/bin/bash\nSECONDS={seconds}\n")
    (tmp_path / "script").write_text(text)
    own = os.environ | {"SLURM_JOB_ID": "4711"} | variables
    return subprocess.run(["bash", "script"], env=own, cwd=tmp_path, stdin=subprocess.DEVNULL).returncode


def test_the_tasks_share_a_secret_and_have_the_variables_and_googles_settings_of_nccl(cluster, tmp_path, monkeypatch):
    work = make(environment={"A": "it's $HOME"}, arguments=["--name", "a 'b' $c"])
    secrets = set()
    for _ in range(2):
        assert run_script(work, tmp_path) == 0
        found = dict(line.split("=", 1) for line in (tmp_path / "calls.environment").read_text().splitlines())
        assert found["A"] == "it's $HOME" and len(found["TPULLM_HOSTS_SECRET"]) == 64
        secrets.add(found["TPULLM_HOSTS_SECRET"])
    assert len(secrets) == 2, "each start has its own"
    assert cluster()[0].endswith(f"-m tpullm pretrain --config {TINY} --run runs/x --name a 'b' $c")
    profile = tmp_path / "lib64" / "nccl-env-profile.sh"
    profile.parent.mkdir()
    profile.write_text("export NCCL_NET=FasTrak NCCL_TUNER=$NCCL_LIB_DIR/tuner\n")
    monkeypatch.setattr(slurm, "PROFILES", ("/no/such/file", str(profile)))
    assert run_script(make(), tmp_path) == 0
    found = (tmp_path / "calls.environment").read_text().splitlines()
    assert "NCCL_NET=FasTrak" in found and f"NCCL_TUNER={profile.parent}/tuner" in found


@pytest.mark.parametrize(
    "code, seconds, before, again",
    [
        (75, 3600, "", True),
        (75, 3600, "1", True),
        (75, 3600, "2", False),
        (75, 60, "", False),
        (0, 3600, "", False),
        (1, 3600, "", False),
        (130, 3600, "", False),
    ],
)
def test_a_job_that_lost_a_node_is_queued_again(cluster, tmp_path, code, seconds, before, again):
    """Not one that was stopped, that has a fault of its own, or that lost its nodes too often."""
    counted = {"SLURM_RESTART_COUNT": before} if before else {}
    assert run_script(make(max_preemptions=2), tmp_path, seconds, CODE=str(code), **counted) == code
    assert ("scontrol requeue 4711" in cluster()) is again


def words(tmp_path, *own):
    return ["launch", "slurm", *own, "--", "pretrain", "--config", str(TINY), "--run", str(tmp_path / "run")]


def test_a_job_is_submitted_where_its_run_can_be_written_asked_for_and_stopped(
    cluster, bucket, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main([*words(tmp_path)[:-1], "gs://no-such-bucket/run"]) == 2
    assert "no such bucket" in capsys.readouterr().err and cluster() == []
    assert main(words(tmp_path, "--nodes=2")) == 0
    assert "tiny-pretrain: job 4711" in capsys.readouterr().err and (tmp_path / "run/launch/tiny-pretrain").is_dir()
    config = LaunchConfig(nodes=2)
    expected = slurm.batch_script(job.make("slurm", config, words(tmp_path)[3:]))
    assert (tmp_path / "calls.stdin").read_text() == expected
    assert main(words(tmp_path, "status")) == 0 and capsys.readouterr().out == "JOBID PARTITION NAME\n"
    assert main(words(tmp_path, "logs")) == 0 and "no job has written a line" in capsys.readouterr().err
    assert main(words(tmp_path, "stop")) == 0
    mine = "--me --name=tiny-pretrain"
    assert cluster() == ["sbatch --parsable", f"squeue {mine}", f"scancel {mine}"]


def test_the_logs_are_those_of_the_newest_job(cluster, tmp_path, capfd):
    folder = tmp_path / "run/launch/tiny-pretrain"
    folder.mkdir(parents=True)
    for number, time in ((9, 2.0), (10, 1.0)):
        (folder / f"{number}.log").write_text(f"line of {number}\n")
        os.utime(folder / f"{number}.log", (time, time))
    assert main(words(tmp_path, "logs")) == 0 and capfd.readouterr().out == "line of 9\n"


def test_a_dry_run_shows_the_script(tmp_path, capsys):
    assert main(words(tmp_path, "--dry-run", "--gpus_per_node=8", "--nodes=2")) == 0
    work = job.make("slurm", LaunchConfig(nodes=2, gpus_per_node=8), words(tmp_path)[3:])
    shown = {"command": "sbatch --parsable", "script": slurm.batch_script(work)}
    assert yaml.safe_load(capsys.readouterr().out) == shown
    assert not (tmp_path / "run").exists()


def test_what_slurm_can_not_run_is_refused_and_slurms_refusal_told(cluster, tmp_path, capsys, monkeypatch):
    refused = "#!/bin/sh\necho 'sbatch: error: invalid partition\n specified' >&2; exit 1\n"
    (tmp_path / "tools" / "sbatch").write_text(refused)
    assert main(words(tmp_path)) == 2
    assert "tpullm: sbatch: refused (sbatch: error: invalid partition specified)\n" == capsys.readouterr().err
    assert main(words(tmp_path, "--watch")) == 2 and "watch: Slurm queues a job again" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(words(tmp_path)) == 2
    assert "sbatch: is not on this machine; launch from a login node" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"mesh: .* does not fit 12 device\(s\).* \(nodes: 3 with 4 GPUs\)"):
        slurm.check(make(nodes=3, gpus_per_node=4, arguments=["--mesh.fsdp", "16"]))
    slurm.check(make(nodes=4, gpus_per_node=4, arguments=["--mesh.fsdp", "16"]))
    with pytest.raises(UserError, match="gpus_per_node: collect needs no GPU"):
        slurm.check(make("collect", gpus_per_node=8))
    slurm.check(make("collect", nodes=8))
