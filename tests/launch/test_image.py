"""An image has the package and the files that describe it, and no other file of a checkout."""

import re

from tests.conftest import ROOT

DOCKERFILE = (ROOT / "launch" / "Dockerfile").read_text(encoding="utf-8")
IGNORE = (ROOT / "launch" / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
COPIED = {source for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()}


def test_no_secret_that_lies_in_the_checkout_is_in_the_image_or_given_when_it_is_built():
    """All files are ignored (`*`) but named ones, which are copied by name: no `.env`, no key, no `runs`."""
    assert IGNORE[0] == "*"
    named = {line.removeprefix("!") for line in IGNORE if line.startswith("!")}
    assert COPIED == named == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "configs", "tpullm"}
    assert set(re.findall(r"^(?:ARG|ENV) (\w+)", DOCKERFILE, re.MULTILINE)) == {"PYTHON", "EXTRAS"}
    assert re.findall(r"^ADD|--mount", DOCKERFILE, re.MULTILINE) == []
