"""The metadata of a machine, the same for all targets: the start-up script and what it has to know."""

import importlib.resources

from tpullm.launchers import code
from tpullm.launchers.job import Job


def metadata(job: Job, attempt: int) -> dict[str, str]:
    """The metadata attributes of a machine."""
    return {
        "startup-script": text(),
        "tpullm-job": job.spec_path,
        "tpullm-attempt": str(attempt),
        "tpullm-wheel": job.wheel,
        "tpullm-sha256": code.wheel().sha256,
        "tpullm-extras": job.extras(),
        "tpullm-python": job.config.python,
        "tpullm-seconds": str(job.config.max_seconds),
    }


def text() -> str:
    """The start-up script."""
    return importlib.resources.files("tpullm.launchers").joinpath("startup.sh").read_text("utf-8")
