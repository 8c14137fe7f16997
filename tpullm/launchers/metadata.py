"""What Google tells a machine about itself: the metadata server (`GCE_METADATA_HOST` is another one)."""

import os
import urllib.error
import urllib.request

DEFAULT = "metadata.google.internal"


def get(key: str, seconds: float = 5.0) -> str:
    """A value, such as `instance/attributes/agent-worker-number`; empty if there is none, or no server."""
    server = os.environ.get("GCE_METADATA_HOST", DEFAULT)
    address = f"http://{server}/computeMetadata/v1/{key}"
    request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=seconds) as answer:
            return answer.read().decode()
    except OSError:
        return ""
