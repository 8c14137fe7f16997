"""`--dry-run` of local and tpu-vm: the recorded requests, without a network, JAX or Google's libraries, in a second.

After an intended change, `TPULLM_RECORD=1 pytest tests/launch/test_dry_run.py` records them anew.
"""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT
from tests.launch.test_cloud_dry_run import GOLDEN, RECIPE, run_alone, without_code
from tpullm.cli import launch
from tpullm.launch.job import LaunchConfig
from tpullm.recipe.parsing import settings_of

TPU = ["launch", "tpu-vm", "--dry-run", "--project=my-project", "--zone=us-west4-a", "--accelerator=v5litepod-16"]
CASES = {
    "tpu-vm-spot": [],
    "tpu-vm-on-demand": ["--provisioning=on_demand", "--service_account=trainer@my-project.iam.gserviceaccount.com"],
    "tpu-vm-reserved": ["--provisioning=reserved", "--reservation=ours", "--network=n", "--external_ip=false"],
    "tpu-vm-slices": ["--slices=2", "--accelerator=v5p-8", "--name=mine", "--python=/opt/tpullm/bin/python"],
}


def tpu_command(case: str) -> list[str]:
    return [*TPU, *CASES[case], "--", "pretrain", *RECIPE]


def check(name: str, made: str) -> None:
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("TPULLM_RECORD"):
        file.write_text(made, encoding="utf-8")
    assert made == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_the_requests_are_the_recorded_ones(case):
    printed, (code, seconds, *heavy) = run_alone(tpu_command(case))
    assert code == "0" and heavy == []
    assert float(seconds) < 1.0, "of the processor's time: a machine may be busy"
    check(case, without_code(printed))


def test_uploaded_files_are_shown():
    """The wheel with its size, and the specification with the recipe that the machines read."""
    wheel, spec = yaml.safe_load(run_alone(tpu_command("tpu-vm-spot"))[0])["files"]
    assert wheel["path"].startswith("gs://my-bucket/tiny/launch/code/tpullm-") and wheel["bytes"] > 100_000
    assert spec["path"].startswith("gs://my-bucket/tiny/launch/tiny-pretrain/jobs/")
    assert yaml.safe_load(spec["content"]["recipe"])["run"] == "gs://my-bucket/tiny"


def test_local_shows_its_processes(monkeypatch):
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    command = ["launch", "local", "--dry-run", "--processes=2", "--devices=4", "--", "pretrain", *RECIPE]
    printed, (code, seconds, *heavy) = run_alone(command)
    assert code == "0" and heavy == [] and float(seconds) < 1.0
    check("local", printed.replace(sys.executable, "python"))


def test_a_dry_run_needs_no_network():
    """In a network namespace without a network, where the system allows one."""
    alone = ["unshare", "--net", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    command = [sys.executable, "-m", "tpullm", *tpu_command("tpu-vm-slices")]
    done = subprocess.run([*alone, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and yaml.safe_load(done.stdout)["requests"], done.stderr


@pytest.mark.parametrize(
    "command", [tpu_command("tpu-vm-spot"), ["launch", "local", "--dry-run", "--", "pretrain", *RECIPE]]
)
def test_a_dry_run_prints_no_secret(command):
    names = ("HF_TOKEN", "GOOGLE_OAUTH_ACCESS_TOKEN", "CLOUDSDK_AUTH_ACCESS_TOKEN")
    printed, said = run_alone(command, {name: f"a_secret_of_mine_in_{name}" for name in names})
    assert printed and "a_secret_of_mine" not in printed + " ".join(said)


@pytest.mark.parametrize("target", ["local", "slurm", "tpu-vm"])
def test_the_command_in_the_head_of_the_targets_file_works(target):
    head = (ROOT / "configs" / "launch" / f"{target}.yaml").read_text(encoding="utf-8")
    line = next(line for line in head.splitlines() if line.startswith("#   command"))
    program, verb, *words = shlex.split(line.removeprefix("#   command"))
    assert (program, verb, words[0]) == ("tpullm", "launch", target)
    assert run_alone([verb, target, "--dry-run", *words[1:]])[1][0] == "0"


WORDS = ["--project", "my-project", "--name=x", "--watch"]


@pytest.mark.parametrize("before", range(len(WORDS) + 1))
def test_an_action_may_stand_anywhere_behind_its_target(before):
    """Python 3.11's argparse takes an optional positional only right behind the one before it."""
    if WORDS[before - 1] == "--project":
        pytest.skip("there it is the project")
    words = ["tpu-vm", *WORDS[:before], "status", *WORDS[before:]]
    config, found = settings_of(launch._parser(), launch._action_beside_target(words), LaunchConfig)
    assert (found.target, found.action, config.project, found.watch) == ("tpu-vm", "status", "my-project", True)


def test_a_value_is_no_action():
    words = ["tpu-vm", "--name", "status", "--project", "my-project"]
    assert launch._action_beside_target(words) == words
