"""Ray makes parts again whose worker, node or driver is killed, and a part's own error ends the verb with its line."""

import json
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray_kills

from tests.conftest import ROOT, interruptible, wait_until
from tpullm.cli import main
from tpullm.system.errors import TryAgain, UnfitNode, UserError
from tpullm.system.process import ray_tasks
from tpullm.system.process.ray_tasks import Cluster, check_node, versions

EXPECTED = tuple(versions().items())
PART_BYTES = 50_000


def needs_ray():
    pytest.importorskip("ray", reason="the extra `ray` is not installed")


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ray_tasks.importlib.util, "find_spec", lambda name: None)
    recipe = ray_kills.make_documents(tmp_path, 10, 10)
    assert main.main(["collect", "--config", str(recipe), "--run", str(tmp_path / "run"), "--engine", "ray"]) == 2
    said = "engine: ray is not installed; pip install 'tpullm[ray]', or use --engine processes"
    assert capsys.readouterr().err == f"tpullm: {said}\n" and not (tmp_path / "run").exists()


def test_a_node_with_other_code_or_another_run_directory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_tasks, "SECONDS_TO_SEE", 0.0)
    names = [name for name, _ in EXPECTED]
    assert names[:2] == ["tpullm", "Python"] and {"numpy", "pyarrow", "py3langid"} < set(names) and "ray" not in names
    with pytest.raises(
        UnfitNode, match=r"^engine: node .* has numpy [\d.]+, the driver has 9; install what the driver"
    ):
        check_node(str(tmp_path), "mine", (*EXPECTED, ("numpy", "9")))
    with pytest.raises(UserError, match="has tensorflow no version, the driver has 2"):
        check_node(str(tmp_path), "mine", (("tensorflow", "2"),))
    for there in (None, "of another driver"):
        if there:
            (tmp_path / ray_tasks.SEEN).write_text(there)
        with pytest.raises(
            UnfitNode, match=f"does not see {tmp_path} as the driver does; give --run a folder of all no"
        ):
            check_node(str(tmp_path), "mine", EXPECTED)
    (tmp_path / ray_tasks.SEEN).write_text("mine")
    check_node(str(tmp_path), "mine", EXPECTED)


def test_code_is_compared_and_its_settings_are_not(tmp_path, monkeypatch):
    """A checkout has the folder of recipes as a link, a wheel as a folder."""
    package = tmp_path / "tpullm"
    shutil.copytree(ROOT / "tpullm", package, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(ray_tasks, "__file__", str(package / "system" / "process" / "ray_tasks.py"))
    (package / "configs").unlink()
    shutil.copytree(ROOT / "configs", package / "configs")
    assert versions.__wrapped__() == dict(EXPECTED)
    with open(package / "corpus" / "dedup.py", "a") as file:
        file.write("\n")
    found = versions.__wrapped__()
    assert found.pop("tpullm") != dict(EXPECTED)["tpullm"] and found == dict(EXPECTED[1:])


@pytest.mark.parametrize(
    "cause, says",
    [
        (ModuleNotFoundError("No module named 'x.y'", name="x.y"), "has no x; install"),
        (
            ImportError("libc.so.6: version `GLIBC_2.99' not found", name="x"),
            "libc.so.6: version `GLIBC_2.99' not found",
        ),
    ],
)
def test_what_a_node_can_not_import_is_one_line(cause, says):
    found = ray_tasks._explained(SimpleNamespace(cause=cause))
    assert isinstance(found, UnfitNode) and says in str(found)


def test_nodes_without_the_memory_of_a_task_are_one_line():
    small, large, head = {"CPU": 4, "memory": 0.5 * 2**30}, {"CPU": 4, "memory": 2**30}, {"memory": 2**40}
    for nodes in ([], [head], [small, large]):  # an autoscaler may add some to the first two
        ray_tasks.check_memory(nodes)
    with pytest.raises(
        UserError, match="^engine: a task needs 1 GiB of memory, and the largest node has 0.5; start no"
    ):
        ray_tasks.check_memory([head, small])


@pytest.mark.parametrize("address", ["127.0.0.1:9", "there:x"])
def test_a_cluster_that_does_not_answer_is_one_line(tmp_path, monkeypatch, address):
    needs_ray()
    monkeypatch.setattr(ray_tasks, "SECONDS_TO_CONNECT", 0.0)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(TryAgain, match=f"^engine: no Ray cluster at {address} .*; set RAY_ADDRESS$"):
        with Cluster(tmp_path).tasks("collect"):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # 2 minutes
def test_killed_workers_nodes_and_drivers_change_no_byte(tmp_path):
    """`benchmarks/ray_kills.py` has the large case."""
    needs_ray()
    words = ["--documents", "20000", "--workers", "4", "--nodes", "2", "--drivers", "2"]
    found = ray_kills.main([*words, "--folder", str(tmp_path / "work")])
    assert found["same bytes"] and found["not killed"] == [] and found["commands"] > 2, found


@pytest.fixture(scope="module")
def cluster():
    needs_ray()
    with ray_kills.Cluster(2, 0) as own:
        yield own


def collect(cluster, recipe, run, **variables) -> subprocess.Popen:
    command = ray_kills.command("collect", recipe, run, PART_BYTES, "--engine", "ray")
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address} | variables
    # Ray adds the folder of the driver to the path of its workers.
    with interruptible():
        return subprocess.Popen(command, env=environment, cwd=recipe.parent, stderr=subprocess.PIPE, text=True)


@pytest.mark.ci
def test_a_part_that_fails_ends_the_verb_with_its_line_and_then_all_is_made(cluster, tmp_path):
    recipe = ray_kills.make_documents(tmp_path, 1_000, 100)
    whole = json.loads(recipe.read_text())
    broken = json.loads(recipe.read_text())
    broken["corpus"]["sources"][0]["max_bad"] = 0
    recipe.write_text(json.dumps(broken))
    file = tmp_path / "in" / "000000300.jsonl"
    good = file.read_text()
    file.write_text('{"text": ')
    driver = collect(cluster, recipe, tmp_path / "run")
    said = driver.communicate(timeout=300)[1].splitlines()
    assert driver.returncode == 2 and said[-1].startswith(
        "tpullm: corpus.sources: lines: 1 of 1 documents cannot be read"
    )
    assert len([line for line in said if "tpullm: " in line]) == 1 and not any("Traceback" in line for line in said)
    assert not list((tmp_path / "run").glob(".[!l]*")), "nothing is left of what was not finished"
    file.write_text(good)
    recipe.write_text(json.dumps(whole))
    driver = collect(cluster, recipe, tmp_path / "run")
    said = driver.communicate(timeout=300)[1]
    assert driver.returncode == 0 and "documents: 1,000 with" in said
    subprocess.run(ray_kills.command("collect", recipe, tmp_path / "alone", PART_BYTES), cwd=ROOT, check=True)
    assert ray_kills.contents(tmp_path / "run") == ray_kills.contents(tmp_path / "alone")


DIES = """
import os, sys
from pathlib import Path
from tpullm.system.process import ray_tasks
from tpullm.system.process.parts import Engine
ray_tasks.RETRIES, run = 1, Path(sys.argv[1])
with Engine("ray", 0, run) as engine:
    engine.map("dies", os._exit, [3, 4], [run / "3", run / "4"], [1, 1], 0)
"""


@pytest.mark.ci
def test_a_part_that_always_ends_its_worker_ends_the_verb(cluster, tmp_path):
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
    done = subprocess.run([sys.executable, "-c", DIES, tmp_path], env=environment, stderr=subprocess.PIPE, text=True)
    assert "TryAgain: engine: " in done.stderr and "; the same command resumes" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_stopped_says_so_and_its_tasks_end(cluster, tmp_path, number):
    recipe = ray_kills.make_documents(tmp_path, 10_000, 1_000)
    driver = collect(cluster, recipe, tmp_path / "run")
    wait_until(cluster.workers)
    driver.send_signal(number)
    said = driver.communicate(timeout=120)[1]
    assert driver.returncode == 130 and said.splitlines()[-1].startswith("tpullm: interrupted; finished work is kept")
    wait_until(lambda: not cluster.workers())


@pytest.mark.ci
@pytest.mark.parametrize("gone", [False, True])
def test_a_node_with_other_code_or_without_it_ends_the_verb_with_a_line(tmp_path, gone):
    needs_ray()
    package = tmp_path / "code" / "tpullm"
    if gone:
        package.mkdir(parents=True)
        # As where it is not installed: here it is.
        (package / "__init__.py").write_text("raise ModuleNotFoundError(name='tpullm')")
    else:
        shutil.copytree(ROOT / "tpullm", package, ignore=shutil.ignore_patterns("__pycache__"))
        (package / "more.py").touch()
    own = ray_kills.Cluster(1, 0)
    own.environment["PYTHONPATH"] = str(package.parent)
    with own:
        driver = collect(own, ray_kills.make_documents(tmp_path, 400, 200), tmp_path / "run", PYTHONPATH=str(ROOT))
        line = driver.communicate(timeout=300)[1].splitlines()[-1]
    what = "of the cluster has no tpullm; install" if gone else " has tpullm "
    assert driver.returncode == 2 and line.startswith("tpullm: engine: ") and what in line, line
