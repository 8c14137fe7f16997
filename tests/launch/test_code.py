"""The code as a wheel: its name is a hash of its content, its bytes are the same anywhere, and pip installs it."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import tpullm
from tests.conftest import ROOT
from tpullm.launch import code


def test_the_same_files_are_the_same_bytes_in_another_process():
    program = (
        "import hashlib; from tpullm.launch import code; w = code.wheel(); "
        "print(w.name, hashlib.sha256(w.content).hexdigest())"
    )
    own = {"PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"}
    again = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=own, capture_output=True, text=True)
    assert again.stdout.split() == [code.wheel().name, hashlib.sha256(code.wheel().content).hexdigest()]


def git(folder, *words):
    own = {"HOME": str(folder), "PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", *words], cwd=folder, env=own, check=True, capture_output=True)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one file in place of tpullm, in a checkout."""
    folder = tmp_path / "tpullm"
    folder.mkdir()
    (folder / "a.py").write_text("A = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "tpullm")
    monkeypatch.setattr(code, "PACKAGE", folder)
    yield folder
    code.wheel.cache_clear()


def built() -> code.Wheel:
    code.wheel.cache_clear()
    return code.wheel()


def names_in(wheel: code.Wheel) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(wheel.content)).namelist()


def test_another_file_is_another_name(package):
    first = built()
    assert re.fullmatch(rf"tpullm-{tpullm.__version__}\+[0-9a-f]{{12}}-py3-none-any\.whl", first.name)
    (package / "a.py").write_text("A = 2\n")
    changed = built()
    git(package, "mv", "a.py", "b.py")
    moved = built()
    assert len({each.name for each in (first, changed, moved)}) == 3
    git(package, "mv", "b.py", "a.py")
    (package / "a.py").write_text("A = 1\n")
    assert built() == first


STRAY = [".env", "a.py~", ".a.py.swp", "#a.py#", "secrets.yaml", "token", "notes.ipynb", "old/b.py", "鍵.txt"]


def test_what_git_does_not_track_is_never_packed(package):
    """Nor a dotfile that git tracks."""
    first = built()
    for name in STRAY:
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("HF_TOKEN=a_secret_of_mine\n")
    git(package, "add", "--force", ".env")
    assert built() == first and b"a_secret_of_mine" not in first.content


def test_a_module_that_git_does_not_track_is_named_and_not_packed(package, tmp_path, monkeypatch):
    """The machines would fail without it."""
    (package / "new.py").touch()
    (package / "ignored.py").touch()
    (package / ".gitignore").write_text("ignored.py\n")
    assert code.left_out() == ["tpullm/new.py"] and "tpullm/new.py" not in names_in(built())
    # A hook of git has variables that name another repository.
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    (package / "untracked.py").touch()
    assert [name for name in names_in(built()) if name.endswith(".py")] == ["tpullm/a.py"]


def test_of_a_copy_without_git_only_the_kinds_that_pip_packs_are_sent(package, tmp_path):
    """An installed package, or a downloaded archive."""
    shutil.rmtree(tmp_path / ".git")
    (package / "constraints.txt").touch()
    for name in STRAY:
        if "/" not in name and name != "secrets.yaml":
            (package / name).write_text("HF_TOKEN=a_secret_of_mine\n")
    wheel = built()
    names = {name for name in names_in(wheel) if not name.startswith("tpullm-")}
    assert names == {"tpullm/a.py", "tpullm/constraints.txt"} and b"a_secret_of_mine" not in wheel.content


def test_it_has_the_kinds_of_files_that_pip_packs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert [".py", *(kind[1:] for kind in project["tool"]["setuptools"]["package-data"]["*"])] == list(code.KINDS)
    names = set(names_in(code.wheel()))
    assert {"tpullm/constraints.txt", "tpullm/launch/startup.sh", "tpullm/report/templates/style.css"} <= names
    assert {"tpullm/configs/quickstart.yaml", "tpullm/configs/launch/tpu-vm.yaml"} <= names


def test_a_linked_folder_is_in_it(package, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "one.yaml").write_text("name: one\n")
    (package / "configs").symlink_to(tmp_path / "configs")
    git(tmp_path, "add", "configs", "tpullm")
    (tmp_path / "configs" / "mine.yaml").write_text("token: a_secret_of_mine\n")
    assert "tpullm/configs/mine.yaml" not in names_in(built())
    assert "tpullm/configs/one.yaml" in names_in(built())


@pytest.mark.ci
def test_pip_installs_it(tmp_path):
    wheel = tmp_path / code.wheel().name
    wheel.write_bytes(code.wheel().content)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "here"]
    subprocess.run([*pip, wheel], check=True)
    program = "import tpullm, importlib.metadata as m; print(tpullm.__file__, len(m.requires('tpullm')))"
    own = {"PYTHONPATH": str(tmp_path / "here")}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=own, capture_output=True)
    assert str(tmp_path / "here").encode() in done.stdout and int(done.stdout.split()[1]) > 10
