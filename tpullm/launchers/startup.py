"""What a machine is told when it starts, the same for all targets: metadata with the script and the words it needs."""

import importlib.resources

from tpullm.launchers.job import Job


def metadata(job: Job, attempt: int) -> dict[str, str]:
    """The metadata attributes of a machine."""
    return {
        "startup-script": text(),
        "tpullm-job": job.sheet_path,
        "tpullm-attempt": str(attempt),
        "tpullm-wheel": job.wheel,
        "tpullm-extras": job.requirement(),
        "tpullm-python": job.config.python,
    }


def text() -> str:
    """The start-up script."""
    return importlib.resources.files("tpullm.launchers").joinpath("startup.sh").read_text("utf-8")
