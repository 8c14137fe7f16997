"""The shipped recipes for TPUs or GPUs, found without reading one whole: every worker of pytest collects them."""

import re

from tests.conftest import ROOT


def for_accelerators(folder: str = "*"):
    """The files of `configs/FOLDER/` that name a topology, by name."""
    files = (path for path in (ROOT / "configs").glob(f"{folder}/*.yaml") if path.parent.name != "launch")
    return sorted(path for path in files if re.search(r"^topology:", path.read_text("utf-8"), re.MULTILINE))
