"""Google Batch: refused jobs, the requests, and a fake of the service whose tasks run as processes."""

import gzip
import json
import threading
import time

import pytest

from tests.conftest import wait_until
from tests.launch import machines
from tests.launch.conftest import PYTHON, QUICK, copied, job_of, quickly
from tests.launch.fake_batch import FakeBatch
from tests.launch.fake_metadata import Metadata
from tests.launch.published import published
from tests.launch.rest import Fault, Refused
from tests.run.test_resume import assert_same_bits, metrics
from tpullm.cli import launch
from tpullm.launch import google_batch, watch
from tpullm.system.errors import TRY_AGAIN, UserError

TOKEN = "ya29.a-secret-that-is-never-shown"
STAGE = {"machine": "n2-standard-8", "nodes": 8}
GPUS = {"machine": "a3-highgpu-8g", "nodes": 2}


@pytest.mark.parametrize(
    "verb, config, says",
    [
        ("collect", {"nodes": 8}, "machine: is needed to launch on batch"),
        ("collect", STAGE | {"project": ""}, "project: is needed to launch on batch"),
        ("collect", STAGE | {"zone": "us-central1"}, "zone: us-central1 is not a zone"),
        ("collect", STAGE | {"machine": "n2-standard-9"}, "there is no n2-standard-9; the nearest are n2-standard-"),
        ("pretrain", GPUS | {"machine": "a3-highgpu-9g"}, "there is no a3-highgpu-9g; there are a3-highgpu-1g"),
        ("pretrain", GPUS | {"gpu_network": "gpus"}, "gpu_network: machines of Batch have one network card"),
        ("pretrain", {"machine": "a4-highgpu-8g", "provisioning": "on_demand"}, "use spot or reserved"),
        (
            "pretrain",
            {"accelerator": "v5litepod-4"},
            "v5litepod-4 is a TPU, and Google Batch has none; launch it on tpu-vm",
        ),
        ("pretrain", {"machine": "ct6e-standard-4t"}, "ct6e-standard-4t is a TPU, and Google Batch has none"),
        ("collect", STAGE | {"machine": "g2-standard-4"}, "machine: collect needs no GPU"),
        ("evaluate", STAGE, "nodes: 8 are too many, one machine does all of evaluate"),
        ("collect", STAGE | {"volumes": {"b": "/mnt/disks/b"}}, "volumes: b: /mnt/disks/b is not gs://"),
        ("collect", STAGE | {"volumes": {"gs://b": "/data"}}, "volumes: gs://b: /data is not"),
        ("pretrain", GPUS | {"arguments": ["--mesh.fsdp", "3"]}, r"mesh.* 16 device.*machine: 2 x a3-highgpu-8g"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_one_line(verb, config, says):
    with pytest.raises(UserError, match=says) as error:
        google_batch.check(job_of("batch", verb, **config))
    assert "\n" not in str(error.value)


CASES = {
    "stage": ("collect", STAGE),
    "stage_in_an_image": ("tokenize", STAGE | {"image": "us-docker.pkg.dev/p/tpullm/cpu", "provisioning": "on_demand"}),
    "gpus": ("pretrain", GPUS),
    "gpus_in_an_image": ("finetune", GPUS | {"image": "us-docker.pkg.dev/p/tpullm/cuda"}),
    "bound": ("pretrain", {"machine": "a4-highgpu-8g", "provisioning": "reserved", "reservation": "mine"}),
    "reserved": ("pretrain", GPUS | {"provisioning": "reserved", "reservation": "mine", "max_preemptions": 3}),
    "network": ("collect", STAGE | {"subnetwork": "inside", "external_ip": False, "service_account": "a@b"}),
    "volumes": ("collect", STAGE | {"volumes": {"gs://b/f": "/mnt/disks/f", "nfs://10.0.0.2/e": "/mnt/disks/e"}}),
}


@pytest.mark.parametrize("verb, config", CASES.values(), ids=CASES)
def test_a_job_is_the_published_type_to_the_letter(verb, config):
    """Parsing it into the client's type and writing it again changes nothing: 64-bit numbers, enumeration names."""
    (request,) = google_batch.requests(job_of("batch", verb, **config), 1)
    assert published(request) == request.body


def body_of(verb, **config):
    return google_batch.body(job_of("batch", verb, **config), 1)


def test_tasks_that_train_run_at_once_one_a_machine_and_know_each_other():
    group = body_of("pretrain", **GPUS)["taskGroups"][0]
    assert (group["taskCount"], group["parallelism"], group["taskCountPerNode"]) == ("2", "2", "1")
    assert group["requireHostsFile"] is True
    assert "requireHostsFile" not in body_of("collect", **STAGE)["taskGroups"][0]
    assert body_of("pretrain", **GPUS)["allocationPolicy"]["instances"][0]["installGpuDrivers"] is True


def test_a_task_is_retried_after_a_preemption_and_never_after_a_user_error():
    task = body_of("collect", max_hours=1.5, **STAGE)["taskGroups"][0]["taskSpec"]
    assert task["maxRunDuration"] == "5400s"
    (policy,) = task["lifecyclePolicies"]
    assert policy["action"] == "RETRY_TASK"
    assert {50001, TRY_AGAIN} <= set(policy["actionCondition"]["exitCodes"])
    assert not {0, 1, 2} & set(policy["actionCondition"]["exitCodes"])
    assert task["maxRetryCount"] == 10
    assert body_of("collect", max_preemptions=3, **STAGE)["taskGroups"][0]["taskSpec"]["maxRetryCount"] == 3


def test_a_container_has_the_machines_network_hosts_file_and_gpus():
    config = GPUS | {"image": "i", "volumes": {"gs://b": "/mnt/disks/b"}}
    (runnable,) = body_of("pretrain", **config)["taskGroups"][0]["taskSpec"]["runnables"]
    container = runnable["container"]
    assert container["options"] == "--network host --gpus all"
    assert container["volumes"] == [
        "/mnt/disks/b:/mnt/disks/b",
        f"{google_batch.HOSTS_FILE}:{google_batch.HOSTS_FILE}:ro",
    ]
    assert "script" not in runnable and container["commands"][1].startswith("#!/bin/sh")


def test_volumes_are_mounts_of_buckets_and_file_servers():
    volumes = {"gs://b/f": "/mnt/disks/f", "nfs://10.0.0.2/e/g": "/mnt/disks/e"}
    assert body_of("collect", volumes=volumes, **STAGE)["taskGroups"][0]["taskSpec"]["volumes"] == [
        {"gcs": {"remotePath": "b/f"}, "mountPath": "/mnt/disks/f"},
        {"nfs": {"server": "10.0.0.2", "remotePath": "/e/g"}, "mountPath": "/mnt/disks/e"},
    ]


def test_machines_have_the_account_the_reservation_and_the_network_of_the_settings():
    plain = body_of("collect", **STAGE)["allocationPolicy"]
    assert "network" not in plain and "email" not in plain["serviceAccount"]
    assert "reservation" not in plain["instances"][0]["policy"]
    for provisioning, model in (("spot", "SPOT"), ("on_demand", "STANDARD")):
        made = body_of("pretrain", machine="a2-ultragpu-8g", provisioning=provisioning)
        assert made["allocationPolicy"]["instances"][0]["policy"]["provisioningModel"] == model
        assert made["taskGroups"][0]["taskSpec"]["computeResource"] == {"cpuMilli": "96000", "memoryMib": "1392640"}
    config = {"service_account": "a@b", "provisioning": "reserved", "reservation": "mine", "subnetwork": "s"}
    asked = body_of("collect", external_ip=False, **STAGE | config)["allocationPolicy"]
    assert asked["serviceAccount"]["email"] == "a@b" and asked["instances"][0]["policy"]["reservation"] == "mine"
    interface = {"subnetwork": "regions/us-central1/subnetworks/s", "noExternalIpAddress": True}
    assert asked["network"] == {"networkInterfaces": [interface]}


# Against the fake. A machine there starts in a fraction of a second.


@pytest.fixture
def fake(tmp_path, address, machine):
    made = []

    def variables(index):
        made.append(Metadata(f"task-{index}", token=TOKEN))
        home = tmp_path / "homes" / str(index)
        return machine | {"GCE_METADATA_HOST": made[-1].address, "TPULLM_HOME": str(home)}

    with FakeBatch(tmp_path / "machines", variables) as service:
        address("BATCH", service)
        yield service
    for each in made:
        each.close()


def launched(run, verb, arguments=(), **config):
    """A job whose code and specification are uploaded."""
    work = job_of("batch", verb, str(run), arguments, **PYTHON | {"machine": "n2-standard-8"} | config)
    launch.upload(work)
    return work


def test_a_job_is_created_once_even_if_answers_are_lost(bucket, fake, monkeypatch):
    quickly(monkeypatch, "exit 0")
    work = launched(bucket / "run", "collect", nodes=2)
    busy = Refused(503, "UNAVAILABLE", "try later"), Refused(429, "RESOURCE_EXHAUSTED", "requests per minute")
    fake.faults += [Fault("POST", "jobs", busy[0]), Fault("GET", "jobs", busy[1]), Fault("POST", "jobs", done=True)]
    thread = threading.Thread(target=fake.wait, args=("tiny-collect-1", "SUCCEEDED"))
    thread.start()
    state = watch.Record(work.folder)
    until = time.monotonic() + 60
    while not (attempts := state.attempts()) or not attempts[-1].outcome:
        action = once(work, state)
        assert time.monotonic() < until, action
    assert fake.made == ["tiny-collect-1"]
    thread.join()


def once(work, state):
    """One turn of the loop. The tasks report nothing, so only the Batch job has a state."""
    try:
        action = watch.next_action(work, google_batch, state, QUICK)
        time.sleep(watch.perform(action, work, google_batch, state, QUICK))
        return action
    except watch.TryAgain as error:
        return error


def test_the_cost_and_the_end_of_a_job_are_observed(bucket, fake, monkeypatch):
    quickly(monkeypatch, "test $BATCH_TASK_INDEX = 0 || sleep 60; sleep 1; exit 9")
    work = launched(bucket / "run", "collect", nodes=2)
    assert list(google_batch.observe(work)) == []
    google_batch.create(work, 1)
    fake.wait("tiny-collect-1", "RUNNING")
    (seen,) = google_batch.observe(work)
    assert (seen.state, seen.attempt, seen.run) == (watch.State.ACTIVE, 1, work.run_hash)
    assert 0 < seen.dollars_an_hour <= 2 * 8 * 0.0486 + 1e-3
    fake.wait("tiny-collect-1", "FAILED")
    (seen,) = google_batch.observe(work)
    assert (seen.state, seen.permanent, seen.dollars_an_hour) == (watch.State.FAILED, True, 0.0)
    assert "exit code 9" in seen.reason
    google_batch.delete(work, seen)
    wait_until(lambda: not google_batch.observe(work))
    google_batch.delete(work, seen)


@pytest.mark.ci
def test_a_job_that_was_preempted_too_often_counts_as_preempted(bucket, fake, monkeypatch):
    quickly(monkeypatch, "sleep 60")
    work = launched(bucket / "run", "collect", max_preemptions=1)
    google_batch.create(work, 1)
    fake.wait("tiny-collect-1", "RUNNING")
    for attempt in (1, 2):
        while fake.jobs["tiny-collect-1"].attempts != [attempt] or not fake.jobs["tiny-collect-1"].processes:
            time.sleep(0.02)
        fake.preempt("tiny-collect-1", 0)
    fake.wait("tiny-collect-1", "FAILED")
    (seen,) = google_batch.observe(work)
    assert seen.state is watch.State.PREEMPTED


@pytest.mark.slow
def test_collecting_and_tokenizing_as_eight_tasks_is_what_one_process_does(bucket, fake, tiny_run):
    """With one task preempted: Batch retries it, the bytes are the same, no job is left."""
    tasks, preempted = 8, 5
    for verb in ("collect", "tokenize"):
        work = launched(bucket / "run", verb, nodes=tasks)
        taken = []
        taker = threading.Thread(target=take_back, args=(fake, f"tiny-{verb}-1", preempted, taken))
        taker.start()
        assert watch.follow(work, google_batch, QUICK) == 0
        taker.join()
        (job,) = taken
        assert job.attempts[preempted] == 2 and sum(job.attempts) == tasks + 1
        assert job.codes[preempted][0] == 50001
        assert "ended with 0" in (job.folder / f"task-{preempted}" / "log").read_text("utf-8")
        assert fake.jobs == {}
    assert_same(tiny_run, bucket / "run")
    files = [*files_in(bucket), *files_in(fake.folder)]
    assert len(files) > 20 and not [file for file in files if TOKEN.encode() in file.read_bytes()]


def files_in(folder):
    """All files in a folder, on a disk or in a bucket."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_in(path)
        else:
            yield path


def take_back(fake, name, index, taken):
    """Preempt a task when it runs the verb."""
    job = fake.wait(name, "RUNNING")
    taken.append(job)
    log = job.folder / f"task-{index}" / "log"
    while not log.exists() or "place: share" not in log.read_text("utf-8"):
        time.sleep(0.02)
    fake.preempt(name, index)


@pytest.mark.slow
@pytest.mark.skipif(not machines.can_name(), reason="machines can't have names of their own here")
def test_two_nodes_train_one_is_preempted_and_the_bits_are_the_same(bucket, fake, tiny_run):
    """The hosts find each other by the hosts file. After a preemption, both restart the verb."""
    for name in ("whole", "preempted"):
        run = bucket / name
        copied(tiny_run, run)
        work = launched(
            run, "pretrain", ["--mesh.fsdp", "2", "--pretrain.steps", "60"], nodes=2, machine="g2-standard-4"
        )
        taken = []
        if name == "preempted":
            taker = threading.Thread(target=take_back_after_a_save, args=(fake, run, taken))
            taker.start()
        assert watch.follow(work, google_batch, QUICK) == 0
        assert fake.jobs == {}
    taker.join()
    assert taken[0].attempts == [1, 2] and taken[0].codes[1][0] == 50001
    assert fake.made == ["tiny-pretrain-1"] * 2
    assert metrics(bucket / "whole" / "pretrain") == metrics(bucket / "preempted" / "pretrain")
    assert_same_bits(bucket / "whole" / "pretrain", bucket / "preempted" / "pretrain")


def take_back_after_a_save(fake, run, taken):
    """Preempt the second task after a checkpoint."""
    saves = run / "pretrain" / "checkpoints"
    wait_until(lambda: saves.exists() and any(path.name.isdigit() for path in saves.iterdir()), 600)
    taken.append(fake.jobs["tiny-pretrain-1"])
    fake.preempt("tiny-pretrain-1", 1)


def assert_same(one, other):
    """The same documents, tokenizer and tokens, byte for byte, but for files that hold times."""
    compared = 0
    for stage in ("documents", "tokenizer", "tokens"):
        for file in (one / stage).rglob("*"):
            if file.is_file() and file.name not in ("manifest.json", "datacard.md", "datacard.json"):
                name = file.relative_to(one).as_posix()
                assert (other / name).read_bytes() == file.read_bytes(), name
                compared += 1
    assert compared > 5


@pytest.mark.ci
def test_a_task_that_fails_by_its_input_is_not_retried(bucket, fake):
    """One of two tasks reads a truncated file; both exit with its line, and none is restarted."""
    texts, taken = bucket / "texts", []
    for number in range(4):
        packed = gzip.compress(json.dumps({"text": f"good text {number}. " * 30}).encode())
        (texts / f"{number}.jsonl.gz").write_bytes(packed[:-12] if number == 2 else packed)
    source = f"{{name: t, kind: jsonl, path: {texts}, licence: mine, language: en, max_bad: 0}}"
    work = launched(bucket / "run", "collect", ["--corpus.sources", f"[{source}]"], nodes=2)
    taker = threading.Thread(target=lambda: taken.append(fake.wait("tiny-collect-1", "RUNNING")))
    taker.start()
    with pytest.raises(UserError, match="2.jsonl.gz") as error:
        watch.follow(work, google_batch, QUICK)
    taker.join()
    assert error.value.code == 2 and "\n" not in str(error.value)
    assert taken[0].attempts == [1, 1] and fake.jobs == {}
