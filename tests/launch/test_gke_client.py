"""`launch gke` with the official client and a stand-in for the API server, which keeps one JobSet."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from tests.conftest import TINY
from tpullm.launch import gke, gke_client, job
from tpullm.launch.job import LaunchConfig
from tpullm.system import storage
from tpullm.system.errors import TryAgain, UserError

pytest.importorskip("kubernetes")
JOBSETS = "/apis/jobset.x-k8s.io/v1alpha2/namespaces/default/jobsets"
POD = {
    "metadata": {"name": "tiny-pretrain-slice-0-0-abcde", "namespace": "default"},
    "spec": {"nodeName": "node-1", "containers": [{"name": "tpullm"}]},
    "status": {"phase": "Running"},
}


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.refusal:
            return self.answer(self.server.refusal, {"message": "no\n such thing"})
        if self.path.partition("?")[0] == JOBSETS:
            return self.answer(200, {"items": self.server.jobsets})
        if "/log?" in self.path:
            return self.answer(200, "first\nsecond\n")
        return self.answer(200, {"kind": "PodList", "apiVersion": "v1", "items": self.server.pods})

    def do_POST(self):
        self.server.asked.append(self.path)
        self.server.jobsets.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(201, self.server.jobsets[-1])

    def do_DELETE(self):
        self.server.jobsets.clear()
        self.answer(200, {"kind": "Status", "status": "Success"})

    def answer(self, status, body):
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as found:
        found.jobsets, found.asked, found.refusal, found.pods = [], [], 0, [POD]
        threading.Thread(target=found.serve_forever, daemon=True).start()
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{found.server_port}"}}
        contexts = [{"name": "here", "context": {"cluster": "c", "user": "u"}}]
        users = [{"name": "u", "user": {}}]
        config = {"current-context": "here", "clusters": [cluster], "contexts": contexts, "users": users}
        (tmp_path / "config").write_text(yaml.safe_dump(config))
        loader = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
        monkeypatch.setattr(loader, str(tmp_path / "config"))
        yield found
        found.shutdown()


def make(run) -> job.Job:
    command = ["pretrain", "--config", str(TINY), "--run", str(run)]
    return job.make("gke", LaunchConfig(accelerator="v6e-16"), command)


def test_a_jobset_is_applied_strictly_shown_and_deleted(server, tmp_path):
    work = make(tmp_path / "run")
    cluster = gke_client.Cluster(work)
    assert cluster.status() == "tiny-pretrain: is not in the cluster\n"
    cluster.apply()
    assert server.jobsets == [gke.manifest(work)]
    assert any("fieldValidation=Strict" in path for path in server.asked)
    assert len((storage.path(work.folder) / "secret").read_text()) == 64
    with pytest.raises(UserError, match=r"is in the cluster already \(Running\); `stop` removes it"):
        cluster.apply()
    failed = {"type": "Failed", "status": "True", "message": "job x failed"}
    server.jobsets[0]["status"] = {"restarts": 2, "conditions": [failed]}
    first, *rest = cluster.status().splitlines()
    assert first.startswith("tiny-pretrain: Failed, 2 restart(s); run ")
    assert rest == ["  job x failed", "  tiny-pretrain-slice-0-0-abcde: Running on node-1"]
    assert list(cluster.logs(follow=False)) == ["[0] first", "[0] second"]
    cluster.delete()
    assert server.jobsets == []


def test_logs_are_of_all_pods_that_began_or_follow_the_first_and_an_exit_code_is_shown(server, tmp_path):
    cluster = gke_client.Cluster(make(tmp_path / "run"))
    cluster.apply()

    def pod(name, phase, **status):
        metadata = {"name": name, "namespace": "default"}
        return {"metadata": metadata, "spec": POD["spec"] | {"nodeName": None}, "status": {"phase": phase} | status}

    ended = {"name": "tpullm", "ready": False, "restartCount": 0, "image": "i", "imageID": "i"}
    ended["state"] = {"terminated": {"exitCode": 2}}
    server.pods = [pod("c", "Running"), pod("b", "Failed", containerStatuses=[ended]), pod("a", "Pending")]
    assert cluster.status().splitlines()[1:] == [
        "  a: Pending on no node yet",
        "  b: Failed, exit code 2 on no node yet",
        "  c: Running on no node yet",
    ]
    assert list(cluster.logs(follow=False)) == ["[1] first", "[1] second", "[2] first", "[2] second"]
    assert list(cluster.logs(follow=True)) == ["[1] first", "[1] second"]


def test_another_runs_jobset_is_left_alone(server, tmp_path):
    gke_client.Cluster(make(tmp_path / "one")).apply()
    with pytest.raises(UserError, match="tiny-pretrain is used by another run"):
        gke_client.Cluster(make(tmp_path / "two")).delete()
    assert len(server.jobsets) == 1


@pytest.mark.parametrize(
    "status, kind, words",
    [
        (404, UserError, "the cluster has no JobSet"),
        (403, UserError, r"kubernetes: refused \(403: .*no.* such thing"),
        (429, TryAgain, r"no answer \(429\)"),
        (503, TryAgain, r"no answer \(503\)"),
    ],
)
def test_a_refusal_is_one_line(server, tmp_path, status, kind, words):
    server.refusal = status
    with pytest.raises(kind, match=words) as found:
        gke_client.Cluster(make(tmp_path / "run")).find()
    assert "\n" not in str(found.value)


def test_an_unknown_context_is_one_line(server, tmp_path):
    work = job.make(
        "gke",
        LaunchConfig(accelerator="v6e-16", context="there"),
        ["pretrain", "--config", str(TINY), "--run", str(tmp_path)],
    )
    with pytest.raises(UserError, match="context: .*there.*; run `gcloud container clusters get-credentials"):
        gke_client.Cluster(work)
