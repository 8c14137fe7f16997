"""Attention kernels of one library that take turns in one process, each checked first."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from attention_truth import TOLERANCE, arrays, begins, error, flops, visible_pairs
from figures import versions
from gpu_cases import Attention
from turns import Program


@dataclass(frozen=True)
class Kernel:
    """One kernel with its arguments.

    Args:
        forward: computes the mixed values.
        gradient: computes them and the gradients of queries, keys and values.
    """

    forward: Callable[[], Any]
    gradient: Callable[[], tuple]


Make = Callable[[Any, np.ndarray], Kernel]  # of the arrays on the device, and of `attention_truth.begins`


def turns(
    case: Attention,
    kernels: Mapping[str, Make],
    on_device: Callable[[np.ndarray], Any],
    last_row: Callable[[Any], np.ndarray],
    wait: Callable[[Any], None],
) -> Program:
    """A unit is a call of each pass of each kernel; `answer[pass][kernel]` are the seconds of a call.

    A kernel that is refused or wrong does not take part; the fact `failed` has the reason by name.

    Args:
        kernels: how each is made, by name.
        on_device: float32 numbers as bfloat16 on the device.
        last_row: the last row of such an array, as float32 numbers.
        wait: until an array is computed.
    """
    given, begins_BT = arrays(case), begins(case)
    placed = type(given)(*map(on_device, given))
    ready, errors, failed = {}, {}, {}
    for name, make in kernels.items():
        try:
            kernel = make(placed, begins_BT)
            errors[name] = error(case, given, begins_BT, [last_row(x) for x in kernel.gradient()])
            wait(kernel.forward())
        except Exception as problem:  # of whatever kind: the others go on
            failed[name] = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
            continue
        if errors[name] <= TOLERANCE:
            ready[name] = kernel
        else:
            failed[name] = f"wrong by {errors[name]:.1%}, more than bfloat16 rounds"

    def run(count: int) -> dict:
        seconds = {"forward": {}, "gradient": {}}
        for name, kernel in ready.items():
            for which, of_kernel in seconds.items():
                start = time.perf_counter()
                for _ in range(count):
                    out = getattr(kernel, which)()
                wait(out)
                of_kernel[name] = (time.perf_counter() - start) / count
        return seconds

    facts = {"versions": versions(), "flops": flops(case, visible_pairs(begins_BT)), "errors": errors, "failed": failed}
    return Program(run, facts)
