"""Which host of a launch this machine is.

In this order: the name that a group of Compute Engine was told to give the machine; for verbs that share the work, the
index of the task; for those that join each other, what `cluster/place.py` finds: a TPU's metadata, a Batch job's hosts
file.
"""

import json
from collections.abc import Mapping

from tpullm.cluster import metadata, place
from tpullm.cluster.place import PORTS, Place
from tpullm.errors import UserError
from tpullm.launchers.job import JOINING


def find(told: str, verb: str, environment: Mapping[str, str]) -> Place:
    """The place of this machine.

    Args:
        told: what it was told when it started, as JSON: `hosts`, and `first`, the name of the first; or nothing.
        verb: that it is to run.
        environment: its variables.

    Raises:
        UserError: it can't be found, or there are not as many hosts as were asked for.
    """
    known = json.loads(told or "{}")
    if known.get("first"):
        return _by_name(known["first"], int(known["hosts"]))
    if verb not in JOINING:
        return place.find("share", {}, environment)
    found = place.find("hosts", {}, environment)
    if known and found.count != int(known["hosts"]):
        raise UserError(f"hosts: {found.source} say {found.count}, and {known['hosts']} were launched")
    return found


def _by_name(first: str, count: int) -> Place:
    """Machines are named alike but for the index at the end, in the same domain."""
    name, address = metadata.get("instance/name"), metadata.get("instance/hostname")
    index = int(name.rpartition("-")[2])
    coordinator = f"{address.replace(name, first, 1)}:{PORTS[0]}"
    return Place(index, count, "the machine's name", coordinator if count > 1 else "")
