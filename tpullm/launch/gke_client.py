"""A JobSet in a cluster, through the official Kubernetes client: apply it, its state, its pods' logs, delete it.

The client reads kubectl's configuration (`gcloud container clusters get-credentials` writes it). The state is the
cluster's alone.
"""

from collections.abc import Iterator
from typing import Any

from tpullm.launch import gke
from tpullm.launch.google_api import one_line
from tpullm.launch.job import Job
from tpullm.system import storage
from tpullm.system.cluster import handshake
from tpullm.system.errors import TryAgain, UserError

KIND = {"group": gke.GROUP, "version": gke.VERSION, "plural": gke.PLURAL}


class Cluster:
    """A namespace of a cluster.

    Args:
        job: the launch.

    Raises:
        UserError: there is no client here, or no configuration.
    """

    def __init__(self, job: Job):
        try:
            import kubernetes
        except ImportError:
            raise UserError(
                "launch gke: the Kubernetes client is not installed; run: pip install 'tpullm[gke]'"
            ) from None
        self._api, self._job = kubernetes, job
        try:
            self._client = kubernetes.config.new_client_from_config(context=job.config.context or None)
        except kubernetes.config.ConfigException as error:
            raise UserError(
                f"context: {one_line(str(error)).rstrip('.')}; run `gcloud container clusters get-credentials CLUSTER`"
            ) from None
        self._at = {"namespace": job.config.namespace} | KIND

    def apply(self) -> None:
        """Create the JobSet. The hosts' secret is written first: pods read it from the bucket."""
        found = self.find()
        if found:
            raise UserError(f"{self._job.name}: is in the cluster already ({state(found)}); `stop` removes it")
        secret = storage.path(f"{self._job.folder}/secret")
        with storage.atomic_file(secret) as temporary:
            temporary.write_text(handshake.make(), encoding="utf-8")
        objects = self._api.client.CustomObjectsApi(self._client)
        # Strict: an old JobSet would drop fields that it does not know, and with them the rule for user errors.
        self._call(
            objects.create_namespaced_custom_object, **self._at, body=gke.manifest(self._job), field_validation="Strict"
        )

    def find(self) -> dict[str, Any] | None:
        """The JobSet of this launch; None if there is none. `UserError` if it belongs to another run."""
        objects = self._api.client.CustomObjectsApi(self._client)
        for found in self._call(objects.list_namespaced_custom_object, **self._at)["items"]:
            if found["metadata"]["name"] == self._job.name:
                if gke.owner(found) != self._job.run_hash:
                    raise UserError(f"name: {self._job.name} is used by another run; choose another with --name")
                return found
        return None

    def pods(self) -> list[Any]:
        """The pods of the JobSet, by name."""
        core = self._api.client.CoreV1Api(self._client)
        chosen = f"jobset.sigs.k8s.io/jobset-name={self._job.name}"
        listed = self._call(core.list_namespaced_pod, namespace=self._job.config.namespace, label_selector=chosen)
        return sorted(listed.items, key=lambda pod: pod.metadata.name)

    def status(self) -> str:
        """The state of the JobSet and of each pod, as text."""
        if not (found := self.find()):
            return f"{self._job.name}: is not in the cluster\n"
        status = found.get("status", {})
        lines = [f"{self._job.name}: {state(found)}, {status.get('restarts', 0)} restart(s); run {self._job.run}"]
        lines += [f"  {each['message']}" for each in status.get("conditions", []) if each.get("status") == "True"]
        for pod in self.pods():
            ended = [each.state.terminated for each in pod.status.container_statuses or [] if each.state.terminated]
            code = f", exit code {ended[0].exit_code}" if ended else ""
            lines.append(f"  {pod.metadata.name}: {pod.status.phase}{code} on {pod.spec.node_name or 'no node yet'}")
        return "\n".join(lines) + "\n"

    def logs(self, follow: bool) -> Iterator[str]:
        """The lines of all pods, or with `follow` those of the first one as they come."""
        core = self._api.client.CoreV1Api(self._client)
        for index, pod in enumerate(self.pods()):
            if pod.status.phase == "Pending":
                continue
            at = {"name": pod.metadata.name, "namespace": pod.metadata.namespace, "container": "tpullm"}
            answer = self._call(core.read_namespaced_pod_log, **at, follow=follow, _preload_content=False)
            for line in answer:
                yield f"[{index}] {line.decode(errors='replace').rstrip()}"
            if follow:
                return

    def delete(self) -> None:
        """Delete the JobSet with its pods."""
        if self.find():
            objects = self._api.client.CustomObjectsApi(self._client)
            self._call(objects.delete_namespaced_custom_object, **self._at, name=self._job.name)

    def _call(self, method: Any, **arguments: Any) -> Any:
        """The answer; `UserError` in one line if the cluster refuses, `TryAgain` if it does not answer."""
        import urllib3

        try:
            return method(**arguments)
        except self._api.client.ApiException as error:
            if error.status == 404 and "plural" in arguments:
                raise UserError(
                    "context: the cluster has no JobSet; install it (jobset.sigs.k8s.io/docs/installation)"
                ) from None
            if error.status == 429 or error.status >= 500:
                raise TryAgain(f"kubernetes: no answer ({error.status})") from None
            raise UserError(f"kubernetes: refused ({error.status}: {one_line(str(error.body))[:300]})") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TryAgain(f"kubernetes: no answer ({type(error).__name__})") from None


def state(found: dict[str, Any]) -> str:
    """The state of a JobSet in a word: Completed, Failed, Suspended or Running."""
    true = {each["type"] for each in found.get("status", {}).get("conditions", []) if each.get("status") == "True"}
    return next((word for word in ("Completed", "Failed", "Suspended") if word in true), "Running")
