"""Whether a machine has the GPUs that were launched, by NVIDIA's own tool, before the verb starts."""

import subprocess
from collections import Counter
from typing import Any

from tpullm.system.errors import UserError

QUERY = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
# CUDA 13 needs this driver (docs.nvidia.com/cuda/cuda-toolkit-release-notes), and the extra `cuda` is `jax[cuda13]`.
LEAST_DRIVER = 580
SECONDS = 120.0  # the first call after a boot may start the driver


def check_gpus(machine: str, name: str, count: int) -> None:
    """Compare the GPUs of this machine with those of its type.

    Args:
        machine: type of the machine.
        name: nvidia-smi's name of each GPU, such as `NVIDIA H200`.
        count: number of GPUs.

    Raises:
        UserError: there is no driver, an old one, or other GPUs; one line says what is there.
    """
    found = _gpus()
    names = [each for each, _ in found]
    if names != [name] * count:
        there = ", ".join(f"{times} x {each}" for each, times in Counter(names).items()) or "none"
        raise UserError(f"machine: {machine} has {count} x {name}, and nvidia-smi finds {there}; launch again")
    driver = min(found, key=lambda each: _major(each[1]))[1]
    if _major(driver) < LEAST_DRIVER:
        raise UserError(
            f"image: its NVIDIA driver {driver} is older than {LEAST_DRIVER}, which CUDA 13 needs; use a newer image"
        )


def asked(spec: dict[str, Any]) -> None:
    """The same for a job's specification (`Job.spec`), if its machines have GPUs."""
    if spec.get("gpus"):
        check_gpus(**spec["gpus"])


def _gpus() -> list[tuple[str, str]]:
    """The name and the driver of each GPU."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=SECONDS)
    except FileNotFoundError:
        raise UserError("image: it has no nvidia-smi, so no NVIDIA driver; use an image with one") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"machine: nvidia-smi has not answered for {SECONDS:.0f} s; launch again") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"machine: nvidia-smi finds no GPU ({said[:200]}); launch again, or use another image")
    return [
        (name.strip(), driver.strip()) for name, _, driver in (line.partition(",") for line in done.stdout.splitlines())
    ]


def _major(driver: str) -> int:
    number = driver.partition(".")[0]
    return int(number) if number.isdigit() else 0
