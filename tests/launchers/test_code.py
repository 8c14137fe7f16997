"""The code as a wheel: named by its content, the same anywhere, and one that pip installs."""

import subprocess
import sys
import zipfile

from tests.conftest import ROOT
from tpullm.launchers import code


def test_the_same_files_are_the_same_wheel():
    again = subprocess.run(
        [sys.executable, "-c", "from tpullm.launchers import code; w = code.wheel(); print(w.name, hash(w.content))"],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout.split()[0] == code.wheel().name


def test_another_file_is_another_name(tmp_path, monkeypatch):
    before = code.wheel().name
    package = tmp_path / "tpullm"
    package.mkdir()
    (package / "a.py").write_text("A = 1\n")
    monkeypatch.setattr(code, "PACKAGE", package)
    names = []
    for text in ("A = 1\n", "A = 2\n", "A = 1\n"):
        (package / "a.py").write_text(text)
        code.wheel.cache_clear()
        names.append(code.wheel().name)
    code.wheel.cache_clear()
    assert names[0] == names[2] != names[1] and before not in names


def test_pip_installs_it_with_its_constraints_and_script(tmp_path):
    wheel = tmp_path / code.wheel().name
    wheel.write_bytes(code.wheel().content)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"tpullm/constraints.txt", "tpullm/launchers/startup.sh", "tpullm/report/style.css"} <= set(names)
    assert {"tpullm/configs/quickstart.yaml", "tpullm/configs/launch/tpu-vm.yaml"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "here"]
    subprocess.run([*pip, wheel], check=True)
    program = "import tpullm, importlib.metadata as m; print(tpullm.__file__, len(m.requires('tpullm')))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "here")}, capture_output=True
    )
    assert str(tmp_path / "here").encode() in done.stdout and int(done.stdout.split()[1]) > 10
