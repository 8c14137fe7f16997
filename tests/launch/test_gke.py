"""`launch gke`: the JobSet, what JobSet's rules make of each end of a pod, and what a pod runs."""

import json
import queue
import re
import sys
import types
from pathlib import Path

import pytest
import yaml

from tests.conftest import TINY
from tpullm.cli.main import main
from tpullm.launch import gke, job, pod
from tpullm.launch.job import LaunchConfig
from tpullm.system.errors import UserError


def make(verb="pretrain", run="gs://b/x", arguments=(), **config) -> job.Job:
    return job.make("gke", LaunchConfig(**config), [verb, "--config", str(TINY), "--run", run, *arguments])


CASES = {
    "v6e-256": {"accelerator": "v6e-256", "queue": "ours"},
    "two slices": {"accelerator": "v5p:4x4x8", "slices": 2, "provisioning": "flex_start"},
    "16 hosts of H100": {"machine": "a3-megagpu-8g", "nodes": 16, "provisioning": "reserved", "reservation": "r"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_manifest_is_valid_by_the_published_types(case):
    """A field that the types lack is lost when it is read and written again."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    found = gke.manifest(make(**CASES[case]))
    again = models.JobsetV1alpha2JobSet.from_dict(found).to_dict()
    again.pop("status", None)
    for each in again["spec"]["replicatedJobs"]:
        for container in each["template"]["spec"]["template"]["spec"]["containers"]:
            for port in container["ports"]:
                assert port.pop("protocol") == "TCP", "the default, which the types add"
    assert again == found


@pytest.mark.parametrize(
    "accelerator, label, shape, hosts, chips",
    [
        ("v6e-256", "tpu-v6e-slice", "16x16", 64, "4"),
        ("v6e-8", "tpu-v6e-slice", "2x4", 1, "8"),
        ("v5litepod-16", "tpu-v5-lite-podslice", "4x4", 4, "4"),
        ("v5p-8", "tpu-v5p-slice", "2x2x1", 1, "4"),
        ("v5p-256", "tpu-v5p-slice", "4x4x8", 32, "4"),
        ("v5p-6144", "tpu-v5p-slice", "12x16x16", 768, "4"),
        ("v4-16", "tpu-v4-podslice", "2x2x2", 2, "4"),
        ("v5p:4x4x8", "tpu-v5p-slice", "4x4x8", 32, "4"),
        ("v6e:2x4", "tpu-v6e-slice", "2x4", 1, "8"),
    ],
)
def test_a_slice_has_a_pod_for_each_host(accelerator, label, shape, hosts, chips):
    (replicated,) = gke.manifest(make(accelerator=accelerator))["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    assert spec["completions"] == spec["parallelism"] == hosts
    chosen = spec["template"]["spec"]["nodeSelector"]
    assert chosen["cloud.google.com/gke-tpu-accelerator"] == label
    assert chosen["cloud.google.com/gke-tpu-topology"] == shape
    limits = spec["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"google.com/tpu": chips}


def end_of_a_pod(verb: str, code: int | None = None, disrupted=False, reason: str = "") -> str:
    """What Kubernetes and JobSet do about a pod that ended: the first rule that matches decides.

    The messages are those of Kubernetes' Job controller (`pkg/controller/job/pod_failure_policy.go`).
    """
    machines = {"machine": "n2-standard-8", "nodes": 2}
    where = machines if verb == "collect" else {"accelerator": "v6e-16"}
    made = gke.manifest(make(verb, arguments=[], **where))["spec"]
    spec = made["replicatedJobs"][0]["template"]["spec"]
    reason, message = reason or "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for rule in spec["podFailurePolicy"]["rules"]:
        on_code = code in rule.get("onExitCodes", {}).get("values", [])
        if on_code or (disrupted and "onPodConditions" in rule):
            if rule["action"] == "Ignore":
                return "replace the pod"
            told = f"Container tpullm for pod a/b failed with exit code {code} matching" if on_code else ""
            reason, message = "PodFailurePolicy", told or "Pod a/b has condition DisruptionTarget matching"
            break
    for rule in made["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(each, message) for each in patterns):
            return rule["action"]
    return "RestartJobSet"


def test_what_follows_a_pods_end():
    assert end_of_a_pod("pretrain", 2) == "FailJobSet"
    assert end_of_a_pod("pretrain", 137) == "RestartJobSet"
    assert end_of_a_pod("pretrain", 1) == "RestartJobSet"
    assert end_of_a_pod("pretrain", 137, disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"
    assert end_of_a_pod("pretrain", 130, disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"
    assert end_of_a_pod("pretrain", 75) == end_of_a_pod("pretrain", 130) == "replace the pod"
    assert end_of_a_pod("pretrain", reason="DeadlineExceeded") == "FailJobSet"
    assert end_of_a_pod("collect", 2) == "FailJobSet"
    assert end_of_a_pod("collect", 137, disrupted=True) == "replace the pod"


def test_queues_kinds_of_nodes_and_several_slices():
    made = gke.manifest(make(**CASES["two slices"]))
    assert made["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    assert made["spec"]["replicatedJobs"][0]["replicas"] == 2
    chosen = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["nodeSelector"]
    assert chosen["cloud.google.com/gke-flex-start"] == "true"
    made = gke.manifest(make(**CASES["v6e-256"]))
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "ours"
    made = gke.manifest(make(**CASES["16 hosts of H100"]))["spec"]["replicatedJobs"][0]["template"]["spec"]
    chosen = made["template"]["spec"]["nodeSelector"]
    assert chosen["cloud.google.com/gke-accelerator"] == "nvidia-h100-mega-80gb"
    assert chosen["cloud.google.com/reservation-name"] == "r" and "cloud.google.com/gke-spot" not in chosen
    (container,) = made["template"]["spec"]["containers"]
    assert {"name": "LD_LIBRARY_PATH", "value": "/usr/local/nvidia/lib64"} in container["env"]


def test_what_gke_can_not_run_is_refused():
    for words, config in (
        ("give a TPU slice by --accelerator", {}),
        ("not both", {"accelerator": "v6e-16", "machine": "a3-megagpu-8g"}),
        ("is not one TPU slice", {"accelerator": "2 x v6e:4x4"}),
        ("several slices need several hosts", {"accelerator": "v6e-8", "slices": 2}),
        ("has TPUs; give its slice", {"machine": "ct6e-standard-4t"}),
    ):
        with pytest.raises(UserError, match=words):
            gke.check(make(**config))
    with pytest.raises(UserError, match="is on this machine"):
        gke.check(make(run="runs/x", accelerator="v6e-16"))
    with pytest.raises(UserError, match="collect: needs no TPU"):
        gke.check(make("collect", accelerator="v6e-16"))


def test_without_the_client_one_line_says_what_to_install_and_a_dry_run_works(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    words = ["--accelerator=v6e-16", "--", "pretrain", "--config", str(TINY), "--run", "gs://b/x"]
    assert main(["launch", "gke", "status", *words]) == 2
    assert capsys.readouterr().err == (
        "tpullm: launch gke: the Kubernetes client is not installed; run: pip install 'tpullm[gke]'\n"
    )
    assert main(["launch", "gke", "--dry-run", *words]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["kind"] == "JobSet"


def environment(made: dict, name: str, job_index: int, pod_index: int) -> dict[str, str]:
    """The variables of a pod, as Kubernetes and JobSet set them."""
    replicated = next(each for each in made["spec"]["replicatedJobs"] if each["name"] == name)
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    own = {each["name"]: each.get("value", str(job_index)) for each in container["env"]}
    return own | {"JOB_COMPLETION_INDEX": str(pod_index)}


def test_the_pods_are_numbered_slice_by_slice_and_the_driver_is_the_first():
    made = gke.manifest(make(accelerator="v6e-16", slices=2))
    found = [pod.find(environment(made, "slice", index // 4, index % 4)) for index in range(8)]
    assert [each.index for each in found] == list(range(8)) and {each.count for each in found} == {8}
    assert {each.coordinator for each in found} == {"tiny-pretrain-slice-0-0.tiny-pretrain:8482"}
    made = gke.manifest(make("collect", machine="n2-standard-8", nodes=3))
    assert made["spec"]["successPolicy"] == {"operator": "All", "targetReplicatedJobs": ["driver"]}
    assert [each["template"]["spec"]["completions"] for each in made["spec"]["replicatedJobs"]] == [1, 2]
    places = [("driver", 0), ("worker", 0), ("worker", 1)]
    assert [pod.find(environment(made, name, 0, index)).index for name, index in places] == [0, 1, 2]
    assert pod.find(environment(made, "worker", 0, 1)).coordinator == "tiny-collect-driver-0-0.tiny-collect:8482"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """`start(made, name, index, verb, code)`: a pod's exit code, what it started, the nodes of Ray that it kept."""
    (tmp_path / "secret").write_text("s" * 64)
    monkeypatch.setattr(sys, "argv", ["pod", "--job", str(tmp_path / "job.json")])

    def run(made, name, index, verb, code=0):
        spec = {"verb": verb, "folder": str(tmp_path), "environment": {"A": "1"}, "recipe": "name: x\n"}
        (tmp_path / "job.json").write_text(json.dumps(spec))
        for variable, value in environment(made, name, 0, index).items():
            monkeypatch.setenv(variable, value)
        started, kept, handlers = [], queue.Queue(), []

        def popen(command, env):
            assert Path(command[command.index("--config") + 1]).read_text() == "name: x\n"
            started.append((command[3:4] + command[6:], env))

            def wait():
                if code == "SIGTERM":
                    handlers[-1]()
                return -15 if "terminated" in started else code

            return types.SimpleNamespace(wait=wait, terminate=lambda: started.append("terminated"))

        monkeypatch.setattr(
            pod.ray_node, "keep", lambda here, env, say, stopping: kept.put((here.index, env, stopping))
        )
        monkeypatch.setattr(pod.subprocess, "Popen", popen)
        monkeypatch.setattr(pod.signal, "signal", lambda _, handler: handlers.append(handler))
        return pod.main(), started, kept

    return run


def test_a_pod_runs_the_verb_with_its_place_and_the_secret_and_ends_with_its_code(start):
    made = gke.manifest(make(accelerator="v6e-16"))
    for given, expected in ((0, 0), (2, 2), (-9, 137), ("SIGTERM", 143)):
        code, ((words, env), *_), kept = start(made, "slice", 3, "pretrain", given)
        coordinator = "--hosts.coordinator=tiny-pretrain-slice-0-0.tiny-pretrain:8482"
        assert code == expected and words == ["pretrain", "--hosts.index=3", "--hosts.count=4", coordinator]
        assert env["TPULLM_HOSTS_SECRET"] == "s" * 64 and env["A"] == "1" and kept.empty()


def test_pods_of_text_are_a_ray_cluster_and_one_alone_is_none(start):
    made = gke.manifest(make("collect", machine="n2-standard-8", nodes=2))
    code, ((words, env), *_), kept = start(made, "driver", 0, "collect", 2)
    index, of_node, stopping = kept.get(timeout=60)
    assert (code, words, index) == (2, ["collect", "--engine=ray"], 0) and stopping.is_set()
    assert env["RAY_ADDRESS"] == "tiny-collect-driver-0-0.tiny-collect:8482" and "RAY_ADDRESS" not in of_node
    assert env["RAY_AUTH_TOKEN"] == of_node["RAY_AUTH_TOKEN"] and "TPULLM_HOSTS_SECRET" not in env
    code, started, kept = start(made, "worker", 0, "collect")
    assert (code, started, kept.get(timeout=60)[0]) == (0, [], 1)
    alone = gke.manifest(make("collect", machine="n2-standard-8"))
    code, ((words, _), *_), kept = start(alone, "host", 0, "collect", 2)
    assert (code, words) == (2, ["collect"]) and kept.empty()
