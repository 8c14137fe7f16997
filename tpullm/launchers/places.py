"""Which host of a launch this machine is.

In this order: the name that a group of Compute Engine was told to give the machine; for verbs that share the work, the
index of the task; for those that join each other, what `joining.py` finds: a TPU's metadata, a Batch job's hosts file.
"""

import json
from collections.abc import Mapping

from tpullm.cluster import metadata
from tpullm.cluster.place import PORTS, Place, find_place, find_share
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
        share = find_share({}, environment)
        return Place(share.source, share.index, share.count)
    place = find_place({}, environment)
    if known and place.count != int(known["hosts"]):
        raise UserError(f"hosts: {place.source} says {place.count}, and {known['hosts']} were launched")
    return place


def _by_name(first: str, count: int) -> Place:
    """Machines are named alike but for the index at the end, in the same domain."""
    name, address = metadata.get("instance/name"), metadata.get("instance/hostname")
    index = int(name.rpartition("-")[2])
    coordinator = f"{address.replace(name, first, 1)}:{PORTS[0]}"
    return Place("the machine's name", index, count, coordinator if count > 1 else "")
