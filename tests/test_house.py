"""What surrounds the code: set-up, pins, licence, and what no committed file may say."""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import BEGUN_FIRST

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LOCAL = ROOT / "launch" / "local.sh"
# Where the name that is imported is not the name that is installed.
IMPORTED_AS = {
    "google-auth": "google",
    "mlflow-skinny": "mlflow",
    "orbax-checkpoint": "orbax",
    "python-stdnum": "stdnum",
    "pyyaml": "yaml",
    "sudachidict-small": "sudachidict_small",
}


def normalized(requirement):
    """The project name in a requirement, as PEP 503 compares names: `lxml_html_clean>=0.4` is `lxml-html-clean`."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()


def pins():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def tracked_files():
    """What is committed or would be: neither ignored files nor, outside a git checkout, anything."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in result.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_every_dependency_is_plainly_pinned_once():
    extras = PROJECT["optional-dependencies"]
    required = {normalized(line) for line in PROJECT["dependencies"] + extras["test"] + extras["gcp"] + extras["docs"]}
    required |= {"jax-cuda13-plugin", "jax-cuda13-pjrt"}  # by launch/local.sh
    assert required - {"tpullm"} - {normalized(line) for line in pins()} == set()
    pin = re.compile(r'[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*( ; python_version (<|>=) "3\.12")?')
    assert [line for line in pins() if not pin.fullmatch(line)] == []
    markers = {}  # each Python gets one version of each package
    for line in pins():
        markers.setdefault(normalized(line), []).append(line.partition(" ; ")[2])
    pair = ['python_version < "3.12"', 'python_version >= "3.12"']
    assert {name: found for name, found in markers.items() if len(found) > 1 and sorted(found) != pair} == {}


def test_what_the_code_imports_is_declared():
    """An indirect dependency can go away when the package that brought it no longer needs it."""
    extras = ("gcp", "wandb", "mlflow", "reasoning-gym", "lm-eval", "gguf", "ray", "gke")
    optional = sum((PROJECT["optional-dependencies"][extra] for extra in extras), [])
    names = [normalized(line) for line in PROJECT["dependencies"] + optional]
    declared = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}
    imported = set()
    for path in (ROOT / "tpullm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0].lower() for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0].lower())
    own = {"tpullm"} | {name.lower() for name in sys.stdlib_module_names}
    assert imported - own - declared == set()


def test_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_bytes()
    assert hashlib.sha256(text).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert PROJECT["license"] == "Apache-2.0"


def test_no_line_of_markdown_is_longer_than_120_characters():
    """Outside of tables and code. Pages in benchmarks/results are written by programs, a finding on each line."""
    pages = [path for path in tracked_files() if path.suffix == ".md" and path.parent.name != "results"]
    assert len(pages) > 20  # the search for them works
    assert [str(path) for path in pages if long_lines(path.read_text("utf-8"))] == []
    long = "x" * 121
    assert long_lines(f"{long}\n| {long} |\n```sh\n{long}\n```\n  {long}\n") == [1, 6]


def long_lines(text):
    code, found = False, []
    for number, line in enumerate(text.splitlines(), 1):
        code ^= line.lstrip().startswith("```")
        if len(line) > 120 and not code and not line.startswith("|"):
            found.append(number)
    return found


def test_no_file_names_a_machine_or_a_package_registry():
    # Put together here, so that this file does not hold what it looks for.
    folders = "|".join(["work/", "root/", "home/[a-z]", "Users/[A-Za-z]"])
    hosts = "|".join(["pypi" + r"\.org", "python" + "hosted", "npmjs" + r"\.org", "deb" + r"\.debian\.org"])
    forbidden = re.compile(rf"(?<![\w.~/])/({folders})|{hosts}")
    texts = ((path, path.read_text("utf-8", errors="replace")) for path in tracked_files())
    assert [f"{path}: {found[0]}" for path, text in texts if (found := forbidden.search(text))] == []


# What is noted for people, or compared with what another process or machine has noted.
BY_THE_CLOCK_ON_THE_WALL = {
    "run/directory.py",  # when a lease was written; its age is by the server's clock
    "launch/record.py",  # the times of attempts; set once in a process
    "serving/application.py",  # when the server began: clients are told when a model was made
    "serving/completions.py",  # when an answer was made
    "run/hours.py",  # begin and end of a process, for the time between two
    "system/storage/copies.py",  # copies that are a day old
    "system/storage/gcs.py",  # until the server has told its own
    "training/metrics.py",
    "training/trackers.py",  # MLflow wants the time of a row
}


def test_no_time_is_measured_by_a_clock_that_may_be_set():
    """An hour forward or back must end nothing, and give no negative time."""
    package, asks = ROOT / "tpullm", re.compile(r"\btime\.time(_ns)?\(")
    found = [path for path in package.rglob("*.py") if asks.search(path.read_text(encoding="utf-8"))]
    assert {path.relative_to(package).as_posix() for path in found} == BY_THE_CLOCK_ON_THE_WALL


@pytest.mark.parametrize("script", ["launch/local.sh", ".ci/run"])
def test_script_parses_and_is_executable(script):
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    assert os.access(ROOT / script, os.X_OK)


def test_makefile_targets_exist_and_without_one_it_explains_itself():
    targets = ["help", "quickstart", "test", "docs", "lint", "clean"]
    subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True)
    result = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "make quickstart" in result.stdout and "make test" in result.stdout


def test_the_test_files_that_are_begun_first_exist():
    assert [name for name in BEGUN_FIRST if not (ROOT / "tests" / name).exists()] == []


@pytest.fixture
def project(tmp_path):
    """A project with launch/local.sh and a stand-in for Python that counts what is installed with it."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(LOCAL, tmp_path / "launch")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    fake = tmp_path / "bin" / "python3.13"
    fake.write_text(FAKE_PYTHON, "utf-8")
    fake.chmod(0o755)
    return tmp_path


FAKE_PYTHON = """#!/bin/bash
case "$1 $2" in
"-c "*) echo "$0" ;;
"-V ") echo "Python 3.13.99" ;;
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip")
    echo "$@" >>"$CALLS"
    [ -z "$FAIL" ] || { printf "$FAIL"; exit 1; }
    ;;
esac
"""


def local(project, *arguments, fail="", **environment):
    here = {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "TPULLM_PYTHON": str(project / "bin" / "python3.13")}
    environment = os.environ | here | {"CALLS": str(project / "calls"), "FAIL": fail} | environment
    command = ["bash", project / "launch" / "local.sh", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def installations(project):
    calls = project / "calls"
    return calls.read_text("utf-8").splitlines() if calls.exists() else []


def test_set_up_happens_once_for_the_project_each_extra_and_each_change(project):
    result = local(project, "bash", "-c", 'echo "$VIRTUAL_ENV"; command -v python; exit 7')
    assert result.stdout.splitlines() == [f"{project}/.venv", f"{project}/.venv/bin/python"]
    assert result.returncode == 7
    assert f"-c {project}/constraints.txt -e {project}" in installations(project)[0]
    second = local(project)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    for _ in range(2):
        local(project)
        local(project, "--extra", "test")
    assert [call.rpartition(" ")[2] for call in installations(project)] == [f"{project}", f"{project}[test]"]
    for made, name in enumerate(("pyproject.toml", "constraints.txt"), 3):
        with open(project / name, "a", encoding="utf-8") as file:
            file.write("\n")
        local(project)
        assert len(installations(project)) == made


def test_the_compiler_for_gpus_is_apart_from_what_python_imports(project):
    """JAX loads a plugin that it finds; beside CUDA's libraries, which torch brings, and without a GPU it crashes."""
    assert local(project, "--extra", "test", "--extra", "gpu-plan", "true").returncode == 0
    environment, compiler = installations(project)
    assert environment.endswith(f"-e {project}[test]")
    assert f"--target {project}/.venv/gpu-plan jax-cuda13-plugin ; " in compiler
    everywhere = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    assert "jax-cuda13-plugin" not in map(normalized, PROJECT["dependencies"] + everywhere)


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
@pytest.mark.parametrize("target", ["benchmark", "plan-all"])
def test_what_a_user_measures_is_not_taken_for_what_is_recorded(target):
    """The documentation is compared with `benchmarks/results`."""
    command = subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    output = command.split("--output ")[1].strip().strip("'")
    subprocess.run(["git", "check-ignore", "-q", output], cwd=ROOT, check=True)


def test_an_installation_that_broke_off_is_one_line_and_made_anew_by_the_next_run(project):
    full = "Installing collected packages: jax\\nERROR: [Errno 28] No space left on device\\n"
    result = local(project, "echo", "not reached", fail=full)
    assert (result.returncode, result.stdout) == (2, "")
    assert "installation failed: no space left on the device" in result.stderr.splitlines()[-1]
    (project / ".venv" / "half-installed").touch()
    assert local(project).returncode == 0
    assert not (project / ".venv" / "half-installed").exists()


def test_what_is_installed_outlives_an_update_that_changed_nothing(project):
    """Without a network, an edited pyproject.toml must not cost the environment."""
    local(project)
    (project / ".venv" / "installed-before").touch()
    (project / "pyproject.toml").write_text("[project]", "utf-8")
    result = local(project, fail="WARNING: Retrying (Retry(total=4)) after connection broken\\nERROR: nothing found\\n")
    assert result.returncode == 2
    assert "the package index cannot be reached" in result.stderr.splitlines()[-1]
    assert local(project).returncode == 0
    assert (project / ".venv" / "installed-before").exists()


def test_a_python_that_does_not_do_is_refused_and_a_moved_project_is_set_up_anew(project):
    result = local(project, TPULLM_PYTHON="no-such-python")
    assert result.returncode == 2
    assert "TPULLM_PYTHON=no-such-python is not a Python 3.11 to 3.14" in result.stderr.splitlines()[-1]
    assert not (project / ".venv").exists()
    local(project)
    (project / ".venv" / "names-the-old-folder").touch()
    moved = project / "moved"
    moved.mkdir()
    for name in ("launch", "bin", ".venv", "pyproject.toml", "constraints.txt"):
        (project / name).rename(moved / name)
    assert local(moved).returncode == 0
    assert f"-e {moved}" in installations(moved)[-1]
    assert not (moved / ".venv" / "names-the-old-folder").exists()


@pytest.mark.parametrize(
    ("there", "taken"),
    [(("3.14", "3.11", "3.13"), "3.13"), (("3.14", "3.11"), "3.11"), (("3.14",), "3.14"), (("3.15", "3.10"), None)],
)
def test_a_tested_python_is_taken_before_3_14(project, there, taken):
    """By itself, from what is on PATH and works; where nothing does, the line says what would."""
    (project / "bin" / "python3.13").unlink()
    for name in ("bash", "dirname", "cat", "cksum", "df", "awk", "rm", "mkdir", "cp", "grep", "flock", "tail"):
        (project / "bin" / name).symlink_to(shutil.which(name))
    for version in there:
        python = project / "bin" / f"python{version}"
        python.write_text(FAKE_PYTHON, "utf-8")
        python.chmod(0o755)
    script = (project / "launch" / "local.sh").read_text("utf-8")
    (project / "launch" / "local.sh").write_text(script.replace(" /usr/local/bin /usr/bin", ""), "utf-8")
    result = local(project, TPULLM_PYTHON="", PATH=str(project / "bin"))
    if taken:
        assert result.returncode == 0 and f"with {project}/bin/python{taken} (once" in result.stderr, result.stderr
    else:
        assert result.returncode == 2 and "no Python 3.11 to 3.14" in result.stderr
        assert "(Debian, Ubuntu: python3 and python3-venv)" in result.stderr


def test_a_python_without_venv_is_told_the_package_of_its_version(project):
    """That of Colab is not the Python of its system, whose python3-venv would be of no use."""
    (project / "bin" / "python3.13").write_text("#!/bin/sh\nexit 1", "utf-8")
    (project / "bin" / "dirname").symlink_to(shutil.which("dirname"))
    (project / "bin" / "bash").symlink_to(shutil.which("bash"))
    script = (project / "launch" / "local.sh").read_text("utf-8")
    (project / "launch" / "local.sh").write_text(script.replace(" /usr/local/bin /usr/bin", ""), "utf-8")
    result = local(project, TPULLM_PYTHON="", PATH=str(project / "bin"))
    assert result.returncode == 2 and "(Debian, Ubuntu: python3 and python3.13-venv)" in result.stderr


def test_every_allowed_python_is_tried_by_the_set_up():
    lowest, above = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    allowed = {f"3.{minor}" for minor in range(int(lowest), int(above))}
    listed = re.findall(r"((?: ?3\.\d\d)+)(?= 2>|; do)", LOCAL.read_text("utf-8"))
    assert [set(versions.split()) for versions in listed] == [allowed, allowed]
