"""The program in a pod of `launch gke`: start the verb, and end with its exit code. JobSet restarts it (`gke.py`).

`startup.sh` starts it, with the variables of `gke.py`. The secret of the hosts is in the launch's folder, where
`launch` wrote it.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tpullm.launch import ray_node
from tpullm.launch.job import TEXT, verb_flags
from tpullm.system import log, storage
from tpullm.system.cluster import handshake
from tpullm.system.cluster.place import Place
from tpullm.system.errors import UserError


def find(environment: dict[str, str]) -> Place:
    """Which host this pod is: hosts are numbered slice by slice, and of text the driver is the first."""
    own, job = int(environment["JOB_COMPLETION_INDEX"]), int(environment["TPULLM_JOB_INDEX"])
    index = own + job * int(environment["TPULLM_POD_HOSTS"]) + (environment["TPULLM_POD"] == "worker")
    count = int(environment["TPULLM_HOSTS"])
    return Place(index, count, "the variables of a JobSet", environment["TPULLM_COORDINATOR"] if count > 1 else "")


def main() -> int:
    """Run the verb; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tpullm.launch.pod")
    parser.add_argument("--job", required=True, help="the job's specification, on gs://")
    given = parser.parse_args()
    here, spec = find(dict(os.environ)), storage.read_json(storage.path(given.job))
    secret = storage.path(f"{spec['folder']}/secret").read_text(encoding="utf-8").strip()
    environment, stopping = os.environ | spec["environment"], threading.Event()
    uses_ray = spec["verb"] in TEXT and here.count > 1
    if uses_ray:
        environment |= ray_node.variables(secret)
        if not here.is_first:
            signal.signal(signal.SIGTERM, lambda *_: stopping.set())
            ray_node.keep(here, environment, log.say, stopping)
            return 0
        threading.Thread(target=ray_node.keep, args=(here, environment, log.say, stopping), daemon=True).start()
        environment = environment | {"RAY_ADDRESS": here.coordinator}  # of the verb, not of the node
    elif spec["verb"] not in TEXT:
        environment |= {handshake.VARIABLE: secret}
    with tempfile.TemporaryDirectory(prefix="tpullm-") as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(spec["recipe"], encoding="utf-8")
        command = [sys.executable, "-m", "tpullm", spec["verb"], "--config", str(recipe)]
        command += verb_flags(spec["verb"], here)
        verb = subprocess.Popen(command, env=environment)
        signal.signal(signal.SIGTERM, lambda *_: verb.terminate())
        try:
            code = verb.wait()
        finally:
            stopping.set()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        log.say(str(error))
        sys.exit(error.code)
