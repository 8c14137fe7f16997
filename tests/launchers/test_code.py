"""The code as a wheel: its name is a hash of its content, its bytes are the same anywhere, and pip installs it."""

import hashlib
import io
import os
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT
from tpullm.launchers import code


def test_the_same_files_are_the_same_bytes_in_another_process():
    program = (
        "import hashlib; from tpullm.launchers import code; w = code.wheel(); "
        "print(w.name, hashlib.sha256(w.content).hexdigest())"
    )
    again = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout.split() == [code.wheel().name, hashlib.sha256(code.wheel().content).hexdigest()]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one file in place of tpullm."""
    folder = tmp_path / "tpullm"
    folder.mkdir()
    (folder / "a.py").write_text("A = 1\n")
    monkeypatch.setattr(code, "PACKAGE", folder)
    yield folder
    code.wheel.cache_clear()


def built() -> code.Wheel:
    """The wheel of the files that the package has now."""
    code.wheel.cache_clear()
    return code.wheel()


def names_in(wheel: code.Wheel) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(wheel.content)).namelist()


def test_another_file_is_another_name(package):
    first = built()
    for change in (lambda: (package / "a.py").write_text("A = 2\n"), lambda: (package / "a.py").rename(package / "b")):
        before = built()
        change()
        assert built().name != before.name
    (package / "b").unlink()
    (package / "a.py").write_text("A = 1\n")
    assert built() == first


def test_compiled_files_and_times_do_not_change_it(package):
    first = built()
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.cpython-313.pyc").write_text("compiled")
    os.utime(package / "a.py", (1e9, 1e9))
    assert built() == first and not [name for name in names_in(first) if "__pycache__" in name]


def test_a_linked_folder_is_in_it(package, tmp_path):
    """A checkout has `tpullm/configs` as a link."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "one.yaml").write_text("name: one\n")
    (package / "configs").symlink_to(tmp_path / "configs")
    assert "tpullm/configs/one.yaml" in names_in(built())


def test_the_constraints_of_a_checkout_are_in_it(package, tmp_path, monkeypatch):
    monkeypatch.setattr(code, "CONSTRAINTS", tmp_path / "constraints.txt")
    assert "tpullm/constraints.txt" not in names_in(without := built())
    (tmp_path / "constraints.txt").write_text("jax==1\n")
    assert "tpullm/constraints.txt" in names_in(built()) and built().name != without.name


def test_files_in_it_are_readable_by_all(package):
    (file,) = (
        each for each in zipfile.ZipFile(io.BytesIO(built().content)).infolist() if each.filename == "tpullm/a.py"
    )
    assert file.external_attr >> 16 == 0o644


def test_pip_installs_it_with_its_constraints_and_script(tmp_path):
    wheel = tmp_path / code.wheel().name
    wheel.write_bytes(code.wheel().content)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"tpullm/constraints.txt", "tpullm/launchers/startup.sh", "tpullm/report/style.css"} <= set(names)
    assert {"tpullm/configs/quickstart.yaml", "tpullm/configs/launch/tpu-vm.yaml"} <= set(names)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "here"]
    subprocess.run([*pip, wheel], check=True)
    program = "import tpullm, importlib.metadata as m; print(tpullm.__file__, len(m.requires('tpullm')))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "here")}, capture_output=True
    )
    assert str(tmp_path / "here").encode() in done.stdout and int(done.stdout.split()[1]) > 10
