"""Every module has a room, imports go down only, and what handles text starts without JAX.

The import contracts are in pyproject.toml.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]


def run_python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_the_import_contracts_are_kept():
    result = run_python(LINT, "--no-cache", "--no-logo")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(CONTRACTS)} kept, 0 broken" in result.stdout


WITHOUT_JAX = """
cli.main cli.collect cli.tokenize cli.report cli.watch cli.launch launch.supervisor cli.python_api serving.application
"""
IMPORTED = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(f"tpullm.{module}")
    print(module, *{"jax", "jaxlib", "flax", "torch"} & set(sys.modules))
"""


def test_what_handles_text_starts_without_jax():
    """In one process: what one imports too much, the later ones have too."""
    result = run_python(IMPORTED, *WITHOUT_JAX.split())
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == WITHOUT_JAX.split()


def test_a_model_of_others_is_used_without_what_reads_checkpoints():
    """Orbax takes 0.2 s to import."""
    result = run_python("import sys, tpullm.engine.generation; print(*{'orbax', 'tensorstore'} & set(sys.modules))")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


def test_at_the_top_is_only_the_way_in():
    assert {path.name for path in (ROOT / "tpullm").glob("*.py")} == {"__init__.py", "__main__.py"}
