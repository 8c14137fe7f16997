"""Google's metadata server, which tells a machine about itself; `GCE_METADATA_HOST` names another server."""

import os
import time
import urllib.error
import urllib.request

SERVER = "metadata.google.internal"
SECONDS = 5.0  # for one answer
TRIES = 6  # when a machine starts, the server may come up after the program


def get(key: str) -> str:
    """A value, such as `instance/attributes/agent-worker-number`; empty if there is none.

    Raises:
        OSError: no server answers.
    """
    address = f"http://{os.environ.get('GCE_METADATA_HOST', SERVER)}/computeMetadata/v1/{key}"
    request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for number in range(TRIES):
        try:
            with direct.open(request, timeout=SECONDS) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return ""
            problem: OSError = error
        except OSError as error:
            problem = error
        time.sleep(0.1 * 2**number)
    raise problem


def attribute(key: str) -> str:
    """A value set when this machine was created; empty if there is none."""
    return get(f"instance/attributes/{key}")
