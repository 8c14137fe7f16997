"""Imports go down only, and what handles text starts without JAX. The contracts are in pyproject.toml."""

import importlib.util
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


def skip_unless_written(*modules):
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"not written yet: {', '.join(missing)}")


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract["id"])
def test_import_contract(contract):
    skip_unless_written(*contract.get("source_modules", []))
    result = run_python(LINT, "--no-cache", "--no-logo", "--contract", contract["id"])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 kept, 0 broken" in result.stdout


@pytest.mark.parametrize("module", ["tpullm.cli", "tpullm.commands.collect", "tpullm.commands.tokenize"])
def test_starts_without_jax(module):
    skip_unless_written(module)
    result = run_python(f"import sys, {module}; print(*{{'jax', 'jaxlib', 'flax', 'torch'}} & set(sys.modules))")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""
