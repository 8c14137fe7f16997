"""Which host a process is: flags, a TPU's metadata, Google Batch, Slurm."""

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from jax._src.clusters import SlurmCluster

from tpullm.system.cluster import place
from tpullm.system.cluster.place import ALONE, Place, find, take_flags
from tpullm.system.errors import UserError

FLAGS = {"coordinator": "a:1234", "count": 4, "index": 1}
TASK = {"BATCH_TASK_INDEX": "3", "BATCH_TASK_COUNT": "8"}
STEP = {"SLURM_JOB_ID": "70007", "SLURM_STEP_ID": "1", "SLURM_STEP_NODELIST": "n[3-5]", "SLURM_STEP_NUM_TASKS": "4"}
STEP |= {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}
IN_A_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.fixture
def batch(tmp_path) -> dict[str, str]:
    """The variables of the second of three machines of a Google Batch job."""
    (tmp_path / "hosts").write_text(f"first.zone\n{place.socket.gethostname()}\nthird.zone\n")
    return {"BATCH_TASK_INDEX": "0", "BATCH_TASK_COUNT": "3", "BATCH_HOSTS_FILE": str(tmp_path / "hosts")}


def test_a_process_without_a_sign_of_others_is_alone():
    """A script that `sbatch` starts has variables of tasks, and is one process."""
    assert find({}, {}) == find({}, IN_A_SCRIPT) == ALONE
    assert find({}, {"BATCH_TASK_INDEX": "0", "BATCH_TASK_COUNT": "1"}).count == 1
    assert find({"count": 1}, TASK | STEP).count == 1


def test_flags_come_before_batch_and_batch_before_slurm(batch):
    found = find(FLAGS, batch | STEP)
    assert (found.index, found.count, found.coordinator) == (1, 4, "a:1234")
    found = find({}, batch | STEP)
    assert (found.index, found.count, found.coordinator) == (1, 3, "first.zone:8482"), "the place in the hosts file"


@pytest.mark.parametrize("nodes", ["n3", "n3,n4", "n[3-5]", "n[3,7-9]", "n[03-15],other", "rack-1-n[3-5,8]"])
def test_slurm_is_found_as_jax_finds_it(monkeypatch, nodes):
    for name, value in (STEP | {"SLURM_STEP_NODELIST": nodes}).items():
        monkeypatch.setenv(name, value)
    coordinator = SlurmCluster.get_coordinator_address(timeout_secs=None, override_coordinator_port=None)
    index, count = SlurmCluster.get_process_id(), SlurmCluster.get_process_count()
    assert find({}, os.environ) == Place(index, count, place.SLURM, coordinator)


def test_a_batch_job_without_a_hosts_file_or_with_another_count_is_refused(batch):
    with pytest.raises(UserError, match="set requireHostsFile"):
        find({}, batch | {"BATCH_HOSTS_FILE": ""})
    with pytest.raises(UserError, match="names 3 hosts and BATCH_TASK_COUNT is 6"):
        find({}, batch | {"BATCH_TASK_COUNT": "6"})
    Path(batch["BATCH_HOSTS_FILE"]).write_text("first.zone second.zone third.zone")
    with pytest.raises(UserError, match="is 0 times in"):
        find({}, batch)


def test_flags_are_taken_out_of_the_command_line():
    given = ["--run", "r", "--hosts.count", "2", "--hosts.index=1", "--seed", "3"]
    assert take_flags(given) == ({"count": 2, "index": 1}, ["--run", "r", "--seed", "3"])
    others = ["-h", "--hosts.c", "2", "--hosts", "a"]
    assert take_flags(others) == ({}, others), "neither help nor a flag cut short is taken"
    with pytest.raises(UserError, match="--hosts.count: invalid int value: 'two'"):
        take_flags(["--hosts.count", "two"])


GKE = {"TPU_WORKER_HOSTNAMES": "t-0,t-1", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2"}


def test_a_tpu_pods_place_is_in_its_variables_and_slices_are_numbered_one_after_another():
    found = find({}, GKE)
    assert (found.index, found.count, found.coordinator) == (1, 2, "t-0:8482")
    found = find({}, GKE | SLICES | {"MEGASCALE_COORDINATOR_ADDRESS": "first:8080"})
    assert (found.index, found.count, found.coordinator) == (5, 6, "first:8482")
    for taken in ({"MEGASCALE_COORDINATOR_ADDRESS": "t-0:8482"}, {"MEGASCALE_PORT": "8482"}):
        assert find({}, GKE | SLICES | taken).coordinator == "t-0:8483", "8482 is the slices' transport's"


def test_a_tpu_machines_place_is_in_its_metadata(monkeypatch):
    told = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "a:0:10.0.0.2,b:1:10.0.0.3",
        "tpu-env": "ZONE: 'z'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.0.9:8080'\n"
        "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n",
    }
    monkeypatch.setattr(place, "attribute", lambda key: told.get(key, ""))
    environment = {"GCE_METADATA_HOST": "there"}
    found = find({}, environment)
    assert (found.index, found.count, found.coordinator) == (3, 4, "10.0.0.9:8482")
    del told["tpu-env"]
    assert find({}, environment).coordinator == "10.0.0.2:8482"
    assert find(FLAGS, environment).count == 4
    assert find({}, environment | {"JAX_PLATFORMS": "cpu"}).count == 1
    del told["agent-worker-number"]
    assert find({}, environment).count == 1, "a Google machine without a TPU"


@pytest.mark.parametrize(
    "flags, environment, says",
    [
        ({"count": 4}, {}, "hosts.coordinator: is missing beside --hosts.count; give all three, or"),
        ({"coordinator": "a:1", "index": 0}, {}, "hosts.count: is missing"),
        (FLAGS | {"index": 4}, {}, "index 4 of 4"),
        (FLAGS | {"index": -1}, {}, "index -1 of 4"),
        (FLAGS | {"coordinator": "a"}, {}, "a is not HOST:PORT"),
        (FLAGS | {"coordinator": "a:99999"}, {}, "is not HOST:PORT"),
        (FLAGS | {"index": 0, "count": 0}, {}, "the flags --hosts.* say index 0 of 0"),
        ({}, TASK | {"BATCH_TASK_INDEX": "x"}, "are 'x' and '8', and no numbers"),
        ({}, GKE | {"TPU_WORKER_ID": "x"}, "of a TPU pod say worker x of slice 0 of 1; give --hosts.*"),
        ({}, GKE | SLICES | {"MEGASCALE_SLICE_ID": "x"}, "say worker 1 of slice x of 3; give --hosts.*"),
    ],
)
def test_a_place_that_can_not_be_is_refused(flags, environment, says):
    with pytest.raises(UserError) as refused:
        find(flags, environment)
    assert says in str(refused.value)


@pytest.mark.parametrize("file", ["/dev/nvidiactl", "/dev/dxg", ""])
def test_a_gpu_is_seen_where_its_pci_device_is_hidden(monkeypatch, file):
    monkeypatch.setattr(place, "_has_pci_device", lambda vendor: False)
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == file)
    assert place.may_have_gpu() == bool(file)


@pytest.fixture
def answers(monkeypatch):
    """What a metadata server answers, one code and text after the other; and what it was asked."""
    answers: list[tuple[int, str]] = []
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Metadata-Flavor"]))
            code, text = answers.pop(0)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        yield answers, asked
        server.shutdown()


def test_a_value_is_asked_for_directly_and_none_is_empty(answers):
    given, asked = answers
    given += [(200, "3"), (404, "")]
    assert place.attribute("agent-worker-number") == "3" and place.metadata("instance/name") == ""
    start = "/computeMetadata/v1/instance"
    assert asked == [(f"{start}/attributes/agent-worker-number", "Google"), (f"{start}/name", "Google")]


def test_a_busy_server_is_asked_again_ever_more_slowly_and_not_for_ever(answers, monkeypatch):
    given, asked = answers
    slept = []
    monkeypatch.setattr(place.time, "sleep", slept.append)
    given += [(503, "")] * 2 + [(200, "a")]
    assert place.metadata("instance/name") == "a"
    given += [(503, "")] * 6
    with pytest.raises(UserError, match="the TPU's metadata can't be read .*503"):
        find({}, {"GCE_METADATA_HOST": "there"})
    assert given == [] and len(asked) == 3 + 6
    assert slept == pytest.approx([0.1, 0.2] + [0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
