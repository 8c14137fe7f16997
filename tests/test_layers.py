"""Every module has a room, imports go down only, and what handles text starts without JAX.

The import contracts are in pyproject.toml.
"""

import subprocess
import sys
import tomllib
from collections import Counter
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
        "cli",
        "commands.collect",
        "commands.tokenize",
        "commands.report",
        "commands.launch",
        "launchers.supervisor",
        "door.steps",
        "serving.application",
    ],
)
def test_starts_without_jax(module):
    result = run_python(f"import sys, tpullm.{module}; print(*{{'jax', 'jaxlib', 'flax', 'torch'}} & set(sys.modules))")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


def test_at_the_top_is_only_the_way_in():
    assert {path.name for path in (ROOT / "tpullm").glob("*.py")} == {
        *("__init__.py", "__main__.py", "cli/main.py", "errors.py", "log.py")
    }


def test_no_two_modules_have_the_same_name():
    """But a verb and the module that does its work may: `cli/collect.py` calls `corpus/collect.py`."""
    modules = [path for path in (ROOT / "tpullm").rglob("*.py") if path.name != "__init__.py"]
    named = Counter(path.name for path in modules if path.parent.name != "commands")
    folders = {f"{path.name}.py" for path in (ROOT / "tpullm").rglob("*") if (path / "__init__.py").exists()}
    assert [name for name, count in named.items() if count > 1 or name in folders] == []
