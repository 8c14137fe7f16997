"""What a test reads out of a compiled program and the product does not need."""

import math
import re

from tpullm.planning.instructions import shapes


def between_slices(text: str) -> list[tuple[str, int]]:
    """The collectives over the data center network: their kind (`all-reduce`) and the bytes that one device sends.

    A program is that of one slice. It sends the data to the host, which does the rest (libtpu: megascale).
    """
    found = []
    for line in text.splitlines():
        if " send(" in line and (kind := re.search(r'_xla_megascale_transfer_type="(\w+)"', line)):
            found.append((kind[1].lower().replace("_", "-"), shapes(line)[0].bytes))
    return found


def largest_arrays(text: str, dtype: str) -> int:
    """Elements of the largest array of that type in the program, on one device."""
    return max(
        (math.prod(map(int, dims.split(","))) for dims in re.findall(rf"\b{dtype}\[([\d,]+)\]", text)), default=0
    )
