"""`--dry-run` of each target: the recorded requests, without a network, JAX or Google's libraries, in a second.

After an intended change, `TPULLM_RECORD=1 pytest tests/launch/test_dry_run.py` records them anew.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tpullm.cli import launch
from tpullm.cli.main import main
from tpullm.hardware import machines
from tpullm.launch.job import LaunchConfig
from tpullm.recipe.parsing import settings_of

GOLDEN = Path(__file__).parent / "golden"
RECIPE = ["--config", "tests/tiny.yaml", "--run", "gs://my-bucket/tiny"]
TPU = ["tpu-vm", "--dry-run", "--project=my-project", "--zone=us-west4-a", "--accelerator=v5litepod-16"]
ACCOUNT = "--service_account=trainer@my-project.iam.gserviceaccount.com"
CASES = {
    "tpu-vm-spot": TPU,
    "tpu-vm-on-demand": [*TPU, "--provisioning=on_demand", ACCOUNT],
    "tpu-vm-reserved": [*TPU, "--provisioning=reserved", "--reservation=ours", "--network=n", "--external_ip=false"],
    "tpu-vm-slices": [*TPU, "--slices=2", "--accelerator=v5p-8", "--name=mine", "--python=/opt/tpullm/bin/python"],
    "batch-stage": ["batch", "--machine=n2-standard-8", "--nodes=8"],
    "batch-gpus": ["batch", "--machine=a3-highgpu-8g", "--nodes=2"],
    "local": ["local", "--processes=2", "--devices=4"],
}
SECRETS = ("HF_TOKEN", "GOOGLE_OAUTH_ACCESS_TOKEN", "CLOUDSDK_AUTH_ACCESS_TOKEN")
# A process that can't connect anywhere; it prints the sum of its exit codes, its processor time and heavy modules.
ALONE = """
import json, socket, sys, time
def refuse(*_, **__): raise AssertionError("a dry run needs no network")
socket.socket = type("Closed", (socket.socket,), {"connect": refuse, "connect_ex": refuse, "sendto": refuse})
socket.getaddrinfo = refuse
from tpullm.cli.main import main
codes = [main(words) for words in json.loads(sys.argv[1])]
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"jax", "jaxlib", "google", "numpy"})
print(sum(codes), f"{time.process_time():.2f}", *heavy, file=sys.stderr)
"""


def command(case: str) -> list[str]:
    target, *options = CASES[case]
    place = [] if target in ("tpu-vm", "local") else ["--project=my-project", "--zone=us-central1-a"]
    verb = "collect" if case == "batch-stage" else "pretrain"
    return ["launch", target, "--dry-run", *place, *options, "--", verb, *RECIPE]


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """An environment without Google's variables and devices, and with secrets."""
    for name in list(os.environ):
        if name.startswith(("GOOGLE", "CLOUDSDK")) or name in ("XLA_FLAGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name)
    for name in SECRETS:
        monkeypatch.setenv(name, f"a_secret_of_mine_in_{name}")


def without_code(text: str) -> str:
    """The requests without the start-up script and the hashes, which change with the code and the recipe."""

    def cleaned(value):
        if isinstance(value, dict):
            return {key: cleaned(each) for key, each in value.items()}
        if isinstance(value, list):
            return [cleaned(each) for each in value]
        if value == (ROOT / "tpullm" / "launch" / "startup.sh").read_text("utf-8"):
            return "the start-up script"
        hashes = r"(?<=/code/tpullm-)[\w.+]+|(?<=/jobs/)\w+(?=\.json)|^[0-9a-f]{64}$"
        return re.sub(hashes, "HASH", value) if isinstance(value, str) else value

    return yaml.safe_dump(cleaned(yaml.safe_load(text)["requests"]), sort_keys=False, allow_unicode=True, width=120)


@pytest.mark.parametrize("case", CASES)
def test_the_requests_are_the_recorded_ones_and_no_secret_is_printed(case, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(command(case)) == 0
    printed, said = capsys.readouterr()
    assert "a_secret_of_mine" not in printed + said
    made = printed.replace(sys.executable, "python") if case == "local" else without_code(printed)
    file = GOLDEN / f"{case}.yaml"
    if os.environ.get("TPULLM_RECORD"):
        file.write_text(made, encoding="utf-8")
    assert made == file.read_text(encoding="utf-8")


def test_a_dry_run_needs_no_network_and_no_heavy_library():
    words = [command(case) for case in ("tpu-vm-slices", "batch-gpus", "local")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": "/nonexistent"}
    run = [sys.executable, "-c", ALONE, json.dumps(words)]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, seconds, *heavy = done.stderr.splitlines()[-1].split()
    assert code == "0" and heavy == []
    assert float(seconds) < 2.0, "of the processor's time: a machine may be busy"


def test_uploaded_files_are_shown(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(command("tpu-vm-spot")) == 0
    wheel, spec = yaml.safe_load(capsys.readouterr().out)["files"]
    assert wheel["path"].startswith("gs://my-bucket/tiny/launch/code/tpullm-") and wheel["bytes"] > 100_000
    assert spec["path"].startswith("gs://my-bucket/tiny/launch/tiny-pretrain/jobs/")
    assert yaml.safe_load(spec["content"]["recipe"])["run"] == "gs://my-bucket/tiny"


@pytest.mark.parametrize("target", launch.TARGETS)
def test_the_command_and_the_cost_in_the_head_of_the_targets_file_are_true(target, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    head = (ROOT / "configs" / "launch" / f"{target}.yaml").read_text(encoding="utf-8")
    program, verb, *words = shlex.split(re.search(r"#   command(.*)", head)[1])
    assert (program, verb, words[0]) == ("tpullm", "launch", target)
    assert main([verb, target, "--dry-run", *words[1:]]) == 0
    assert capsys.readouterr().out
    if target == "batch":
        cost = re.search(r"at most ([\d.]+) \$/h \((\d+) machines at ([\d.]+) \$", head)
        machine = machines.find(yaml.safe_load(head)["machine"])
        assert float(cost[3]) == pytest.approx(machine.dollars_an_hour, abs=0.005)
        assert float(cost[1]) == pytest.approx(int(cost[2]) * machine.dollars_an_hour, abs=0.005)
    if target == "gke":
        cost = re.search(r"at most ([\d.]+) \$/h \((\d+) chips at ([\d.]+) \$", head)
        found = machines.find_slice(yaml.safe_load(head)["accelerator"])
        assert (int(cost[2]), float(cost[1])) == (found.chips, pytest.approx(found.dollars_an_hour, abs=0.005))


def test_an_action_may_stand_anywhere_behind_its_target_and_a_value_is_none():
    """Python 3.11's argparse takes an optional positional only right behind the one before it."""
    own = ["--project", "my-project", "--name=x", "--watch"]
    for before in (0, 2, 3, 4):  # behind `--project` stands the project
        words = ["tpu-vm", *own[:before], "status", *own[before:]]
        config, found = settings_of(launch._launch_parser(), launch._action_beside_target(words), LaunchConfig)
        assert (found.target, found.action, config.project, found.watch) == ("tpu-vm", "status", "my-project", True)
    words = ["tpu-vm", "--name", "status", "--project", "my-project"]
    assert launch._action_beside_target(words) == words
