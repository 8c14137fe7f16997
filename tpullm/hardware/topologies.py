"""Topologies by name: `v5e:16x16`, a slice of 256 TPU chips; `2 x v5p:4x4x8`, two slices; `h100:16x8`, hosts x GPUs."""

import difflib
import re

from tpullm.errors import UserError
from tpullm.hardware import chips, gpu_hosts, slices
from tpullm.hardware.topology import Topology


def names(text: str) -> list[str]:
    """The topologies in a comma-separated list; `local` may be one of them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def parse(text: str) -> Topology:
    """The topology of that name.

    Raises:
        UserError: there is none; the message says what is wrong with the name and which ones exist.
    """
    found = re.fullmatch(r"(?:(\d+) ?x )?(\w+):(\d+(?:x\d+)*)", text.strip())
    if not found:
        raise UserError(f"topology: {text} is not NAME:SHAPE, such as v5e:16x16, 2 x v5p:4x4x8, h100:8 or h100:16x8")
    count, generation, shape = int(found[1] or 1), found[2], tuple(map(int, found[3].split("x")))
    chip = chips.CHIPS.get(generation)
    if chip and chip.slices:
        return slices.make(generation, shape, count, text)
    if chip and chip.gpu:
        return gpu_hosts.make(generation, shape, count, text)
    there = {name: chip for name, chip in chips.CHIPS.items() if chip.slices or chip.gpu}
    nearest = difflib.get_close_matches(generation, there, 1, 0.1)
    told = f", nearest {nearest[0]}" if nearest else ""
    tpus, gpus = ([name for name, chip in there.items() if bool(chip.gpu) == is_gpu] for is_gpu in (False, True))
    known = f"TPUs {', '.join(tpus)} and GPUs {', '.join(gpus)}"
    raise UserError(f"topology: {generation} is not known{told}; there are {known}")
