"""The data of the domains: those of installed packages, and the words of the questions.

Packages are found without importing them: scancode alone would take seconds and much memory.
"""

import functools
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tpullm.system.errors import UserError


@functools.cache
def wording(domain: str) -> dict[str, Any]:
    """The words of the questions of a domain, from the YAML file beside its module."""
    return yaml.safe_load(Path(__file__).with_name(f"{domain}.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Package:
    """A package on PyPI whose data are text.

    Args:
        name: its name there.
        holds: what its text is, for errors.
        data: the files to read, as a pattern of names in the folder where packages are installed.
        licence: the licence of the text, for the data card.
        install: the command that installs it.
    """

    name: str
    holds: str
    data: str
    licence: str
    install: str = "pip install 'tpullm[domains]'"

    def version(self) -> str:
        """The installed version; `UserError` if it is not installed."""
        return self._distribution().version

    def files(self) -> list[Path]:
        """The files of its data, by name; `UserError` if it is not installed or has none."""
        found = sorted(Path(str(self._distribution().locate_file(""))).glob(self.data))
        if not found:
            advice = f"install a version that has it: {self.install.replace('install', 'install -U', 1)}"
            raise UserError(f"{self.holds}: {self.name} {self.version()} has no {self.data}; {advice}")
        return found

    def _distribution(self) -> importlib.metadata.Distribution:
        try:
            return importlib.metadata.distribution(self.name)
        except importlib.metadata.PackageNotFoundError:
            advice = f"run: {self.install}"
            raise UserError(f"{self.holds}: the package {self.name} is not installed; {advice}") from None
