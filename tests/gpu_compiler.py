"""The compiler for GPUs (`launch/local.sh --extra gpu-plan`), which only processes of its own have."""

import functools
from typing import Any

import pytest

from tests.eight_devices import printed_alone
from tpullm.hardware.topologies import parse
from tpullm.planning.program import compiler_environment, compiler_versions
from tpullm.system.errors import UserError

GPUS = parse("h100:8")


def missing(topology: str) -> str:
    """What is said if the compiler for these devices is not here; else nothing."""
    try:
        compiler_versions(parse(topology))
        return ""
    except UserError as error:
        return str(error)


needs_gpu_compiler = pytest.mark.skipif(bool(missing("h100:8")), reason="the GPU compiler is not installed")


@functools.cache
def printed_by_compiler(module: str, *arguments: str) -> Any:
    """What a script prints that compiles for GPUs, from JSON."""
    return printed_alone(module, *arguments, environment=compiler_environment(GPUS))
