"""The package from anywhere: built as a wheel, installed elsewhere, used in a folder without a checkout."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, TINY
from tpullm.recipe import shipped

pytestmark = pytest.mark.ci  # pip builds and installs; `launch/test_code.py` has what a wheel holds


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the installed wheel, which is built from a copy: setuptools would leave its files in the checkout.

    Without build isolation, so that nothing is downloaded: the extra `test` has setuptools.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("tpullm", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip, options = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"], ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--no-build-isolation", "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *options, "--target", folder / "site", wheel], check=True)
    return folder / "site"


def elsewhere(installed, folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-m", "tpullm", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_the_wheel_has_all_files_of_configs(installed):
    there = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {path.relative_to(installed / "tpullm/configs") for path in installed.rglob("configs/**/*.yaml")} == there
    assert not (installed / "tpullm" / "configs").is_symlink() and not (installed / "configs").exists()


def test_it_lists_the_recipes_in_any_folder(installed, tmp_path):
    done = elsewhere(installed, tmp_path, "recipes")
    assert all(f"\n{name} " in f"\n{done.stdout}" for name in shipped.recipes())
    assert "# One v6e slice" in (installed / "tpullm" / "configs" / "launch" / "gke.yaml").read_text()
    local = elsewhere(installed, tmp_path, "launch", "local", "--config", "local", "--dry-run", "--", "run", "1b")
    assert "-m tpullm run 1b" in local.stdout


def test_it_runs_a_recipe_in_any_folder(installed, tmp_path):
    """The run directory is the recipe's, in the folder in which the command is given."""
    less = ["--corpus.sources", "[{name: tenki, kind: tenki, licence: Apache-2.0, documents: 600, filter: false}]"]
    less += ["--finetune.talk.documents", "{tenki: 0.2}"]
    elsewhere(installed, tmp_path, "collect", "quickstart", *less)
    assert (tmp_path / "runs" / "quickstart" / "documents" / "manifest.json").exists()
    manual = "[{name: manual, kind: python, path: documentation, documents: 60, licence: PSF-2.0, filter: false}]"
    less = ["--corpus.sources", manual, "--finetune", "{}", "--evaluate.rows=1"]
    elsewhere(installed, tmp_path, "run", TINY, "--run", "tiny", *less)
    assert (tmp_path / "tiny" / "report.html").exists()
