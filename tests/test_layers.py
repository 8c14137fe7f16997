"""Every module has a room, imports go down only, and what handles text starts without JAX.

The import contracts are in pyproject.toml.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]


def run_python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract["id"])
def test_import_contract(contract):
    result = run_python(LINT, "--no-cache", "--no-logo", "--contract", contract["id"])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    "module",
    [
        "cli.main",
        "cli.collect",
        "cli.tokenize",
        "cli.report",
        "cli.launch",
        "launch.supervisor",
        "cli.python_api",
        "serving.application",
    ],
)
def test_starts_without_jax(module):
    result = run_python(f"import sys, tpullm.{module}; print(*{{'jax', 'jaxlib', 'flax', 'torch'}} & set(sys.modules))")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


def test_at_the_top_is_only_the_way_in():
    assert {path.name for path in (ROOT / "tpullm").glob("*.py")} == {"__init__.py", "__main__.py"}
