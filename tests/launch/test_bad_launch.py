"""User errors of a launch: one line, exit code 2, before any resource is created."""

import sys

import pytest

from tests.conftest import TINY
from tpullm.cli.main import main
from tpullm.launch import google_api

RUN = ["--", "pretrain", "--config", str(TINY), "--run", "gs://b-u-c-k-e-t/run"]
TPU = ["launch", "tpu-vm", "--project", "p", "--zone", "us-west4-a", "--accelerator", "v5litepod-16"]


def told(capsys, *argv) -> str:
    """The one line with which a command exits."""
    assert main([str(word) for word in argv]) == 2
    out, said = capsys.readouterr()
    assert out == "" and said.count("\n") == 1 and said.startswith("tpullm: "), said
    return said


@pytest.mark.parametrize(
    "argv, says",
    [
        (["launch", "tpu-vm", *RUN], "project: is needed to launch on tpu-vm; give --project"),
        (["launch", "tpu-vm", "--project=p", *RUN], "zone: is needed"),
        ([*TPU, "--zone=us-west4", *RUN], "zone: us-west4 is not a zone, such as us-west4-a"),
        (
            [*TPU, "--accelerator=v5e-16", *RUN],
            "accelerator: there is no v5e-16; use v5litepod-16\n",
        ),
        ([*TPU, "--accelerator=v5litepod-12", *RUN], "use v5litepod-8 or v5litepod-16"),
        ([*TPU, "--accelerator=h100", *RUN], "accelerator: there is no h100; use v"),
        ([*TPU, *RUN, "--mesh.tensor", "3"], "mesh: {fsdp: -1, tensor: 3} needs a multiple of 3 and does not fit 16"),
        ([*TPU, "--slices=2", *RUN, "--mesh", "{fsdp: 5}"], "does not fit 32 device(s)"),
        ([*TPU, "--name=Mine_2", *RUN], "name: Mine_2 can't name resources"),
        ([*TPU, "--provisioning=reserved", *RUN], "reservation: goes with provisioning: reserved"),
        ([*TPU, "--acelerator=x", *RUN], "unknown key acelerator; the nearest is accelerator"),
        ([*TPU, "--provisioning=cheap", *RUN], "provisioning"),
        (["launch", "tpu-wm", *RUN], "tpu-wm"),
        (["launch", "tpu-vm", "begin", *RUN], "begin"),
        (TPU, "launch: what is to run? Give a verb after --"),
        ([*TPU, "--", "chat", "--model", "m"], "chat: is not a verb that can be distributed; those are run, pretrain"),
        ([*TPU, "--", "collect", *RUN[2:]], "collect: needs no TPU, and would leave one idle; launch it on batch"),
        ([*TPU, *RUN, "--hosts.count", "2"], "--hosts.* and --share.*: launch gives them to each process"),
        ([*TPU, *RUN, "--pretrain.stepz", "2"], "unknown key pretrain.stepz; the nearest is pretrain.steps"),
        ([*TPU, *RUN[:-1], "runs/here"], "is on this machine; give --run gs://BUCKET/FOLDER"),
        ([*TPU, "--", "run", *RUN[2:], "--text", "novels"], "text: novels is on this machine; copy it to gs://"),
        (["launch", "local", "status", *RUN], "status: a local launch is over when its command is"),
        (["launch", "local", "--processes=0", *RUN], "processes: 0 is too small; use 1 or more"),
        (["launch", "local", "--devices=-1", *RUN], "devices: -1 is too small; use 0 or more"),
        *(([*TPU, f"--max_hours={hours}", *RUN], "max_hours: ") for hours in ("0.09", "336.1", ".inf", ".nan")),
        *(([*TPU, f"--zone={zone}", *RUN], "is not a zone") for zone in ("us-west4-ab", "west4-a", "us-west4-")),
        ([*TPU, "--reservation=mine", *RUN], "reservation: goes with provisioning: reserved; give both or none"),
        (["launch", "local", "networks"], "networks: local needs none; they are for machines of compute"),
        (
            ["launch", "compute", "networks", "--project=p", "--zone=us-west4-a"],
            "machine: is needed to launch on compute",
        ),
        (["launch", "slurm", "--gpus_per_node=8", "--", "collect", *RUN[2:]], "gpus_per_node: collect needs no GPU"),
    ],
)
def test_user_errors_are_found_without_a_network(capsys, argv, says):
    assert says in told(capsys, *argv)


@pytest.fixture
def ready(bucket, tpu):
    """A command line for a fake TPU service and a bucket."""
    return [*TPU, "--", "pretrain", "--config", TINY, "--run", bucket / "run"]


def test_an_unwritable_bucket_is_refused_before_anything_is_created(capsys, ready, tpu):
    line = told(capsys, *ready[:-1], "gs://no-such-bucket/run")
    assert "gs://no-such-bucket" in line and "no such bucket" in line and tpu.resources == {}


def test_without_credentials(capsys, ready, monkeypatch, tmp_path):
    monkeypatch.delenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    google_api._http_session.cache_clear()
    assert "Google credentials: there are none on this machine; run `gcloud auth" in told(capsys, *ready)


def test_without_the_client_libraries(capsys, ready, monkeypatch):
    google_api._http_session.cache_clear()
    monkeypatch.setitem(sys.modules, "google.auth", None)
    assert "Google's client libraries are not installed; run: pip install 'tpullm[gcp]'" in told(capsys, *ready)


def test_a_launch_is_repeated_inspected_and_stopped(capsys, ready, tpu):
    """Without --watch: repeated launches create one resource; status tells its state and cost; stop leaves nothing."""
    words = [*map(str, ready)]
    assert main([*words[:2], "status", *words[2:]]) == 0 and "not launched yet" in capsys.readouterr().out
    assert main(words) == 0 and main(words) == 0
    assert tpu.counts == {"POST tiny-pretrain-1": 1}
    capsys.readouterr()
    assert main([*words[:2], "status", *words[2:]]) == 0
    said = capsys.readouterr().out
    assert "tiny-pretrain: 1 attempt(s)" in said and "19.20 $/h" in said, said
    assert "attempt 1: no host has started the verb yet" in said
    assert main([*words[:2], "logs", *words[2:]]) == 0
    assert "no host has sent a line" in capsys.readouterr().err
    assert main([*words[:2], "stop", *words[2:]]) == 0 and tpu.resources == {}
    assert capsys.readouterr().err.count("deleting") == 1, "said once, however long it takes"
    assert main([*words[:2], "stop", *words[2:]]) == 0
    capsys.readouterr()
    assert main([*words[:2], "status", *words[2:]]) == 0
    assert "attempt 1: stopped" in (said := capsys.readouterr().out) and "nothing is left that costs" in said
    assert main(words) == 0 and "tiny-pretrain-2" in tpu.resources, "launched again, it is another attempt"
