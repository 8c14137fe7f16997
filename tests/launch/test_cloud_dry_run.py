"""`--dry-run` of compute and batch: the recorded requests, without a network, JAX or Google's libraries.

After an intended change, `TPULLM_RECORD=1 pytest tests/launch/test_cloud_dry_run.py` records them anew.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tpullm.hardware import machines
from tpullm.launch import job as startup

GOLDEN = Path(__file__).parent / "golden"
RECIPE = ["--config", "tests/tiny.yaml", "--run", "gs://my-bucket/tiny"]
CASES = {
    "batch-stage": ["batch", "--machine=n2-standard-8", "--nodes=8", "--", "collect"],
    "batch-gpus": ["batch", "--machine=a3-highgpu-8g", "--nodes=2", "--", "pretrain"],
    "batch-gpus-on-demand": ["batch", "--machine=a2-ultragpu-8g", "--provisioning=on_demand", "--", "pretrain"],
    "compute-gpus": ["compute", "--machine=a3-highgpu-8g", "--nodes=2", "--", "pretrain"],
    "compute-gpus-on-demand": ["compute", "--machine=a2-highgpu-8g", "--provisioning=on_demand", "--", "pretrain"],
    "compute-tcpxo": ["compute", "--machine=a3-megagpu-8g", "--nodes=2", "--gpu_network=gpus", "--", "pretrain"],
    "compute-rdma": ["compute", "--machine=a4-highgpu-8g", "--nodes=2", "--gpu_network=gpus", "--", "pretrain"],
    "compute-slice": ["compute", "--machine=ct6e-standard-4t", "--nodes=4", "--", "pretrain"],
}
# A process that can't connect anywhere. It prints its exit code, its processor time and the heavy modules it loaded.
ALONE = """
import socket, sys, time
def refuse(*_, **__): raise AssertionError("a dry run needs no network")
socket.socket = type("Closed", (socket.socket,), {"connect": refuse, "connect_ex": refuse, "sendto": refuse})
socket.getaddrinfo = refuse
from tpullm.cli.main import main
code = main(sys.argv[1:])
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"jax", "jaxlib", "google", "numpy"})
print(code, f"{time.process_time():.2f}", *heavy, file=sys.stderr)
"""


def dry_run(case):
    """The output of a dry run, and the words that `ALONE` prints."""
    place = ["--dry-run", "--project=my-project", "--zone=us-central1-a"]
    return run_alone(["launch", CASES[case][0], *place, *CASES[case][1:], *RECIPE])


def run_alone(arguments, variables=()):
    """The same for any command. It gets these variables of Google's tools and no others."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("GOOGLE", "CLOUDSDK"))}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *arguments],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT), "HOME": "/nonexistent"} | dict(variables),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.split()


def without_code(text):
    """The requests without the start-up script and the hashes, which change with the code and the recipe."""
    found = yaml.safe_load(text)["requests"]

    def cleaned(value):
        if isinstance(value, dict):
            return {key: cleaned(each) for key, each in value.items()}
        if isinstance(value, list):
            return [cleaned(each) for each in value]
        if value == startup.startup_script():
            return "the start-up script"
        hashes = r"(?<=/code/tpullm-)[\w.+]+|(?<=/jobs/)\w+(?=\.json)|^[0-9a-f]{64}$"
        return re.sub(hashes, "HASH", value) if isinstance(value, str) else value

    return yaml.safe_dump(cleaned(found), sort_keys=False, allow_unicode=True, width=120)


@pytest.mark.parametrize("case", CASES)
def test_the_requests_are_the_recorded_ones(case):
    printed, (code, seconds, *heavy) = dry_run(case)
    assert code == "0" and heavy == []
    assert float(seconds) < 1.0, "of the processor's time: a machine may be busy"
    made, file = without_code(printed), GOLDEN / f"{case}.yaml"
    if os.environ.get("TPULLM_RECORD"):
        file.write_text(made, encoding="utf-8")
    assert made == file.read_text(encoding="utf-8")


def test_a_dry_run_prints_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret_of_mine")
    assert "hf_a_secret_of_mine" not in dry_run("batch-gpus")[0]


@pytest.mark.parametrize("target", ["compute", "batch"])
def test_the_command_in_the_head_of_the_targets_file_works(target):
    head = (ROOT / "configs" / "launch" / f"{target}.yaml").read_text(encoding="utf-8")
    program, verb, *words = shlex.split(re.search(r"#   command   (.*)", head)[1])
    assert (program, verb, words[0]) == ("tpullm", "launch", target)
    printed, (code, *_) = run_alone([verb, target, "--dry-run", *words[1:]])
    assert code == "0" and yaml.safe_load(printed)["requests"]
    cost = re.search(r"at most ([\d.]+) \$/h \((\d+) machines at ([\d.]+) \$", head)
    machine = machines.find(yaml.safe_load(head)["machine"])
    assert float(cost[3]) == pytest.approx(machine.dollars_an_hour, abs=0.005)
    assert float(cost[1]) == pytest.approx(int(cost[2]) * machine.dollars_an_hour, abs=0.005)
