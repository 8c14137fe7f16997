"""Spaces, quotes, `#`, `%` and Japanese in the run directory and in arguments reach the verb on every target unchanged.

`test_startup.py` has the part of the shell: from the metadata of a machine to its supervisor.
"""

import importlib
import json
import os

import pytest

from tests.conftest import TINY
from tests.launch.conftest import job_of, make_job
from tests.launch.published import published
from tests.launch.test_host import ALONE, Lines
from tests.launch.test_startup import ODD
from tpullm.cli import launch
from tpullm.launch import local
from tpullm.launch.supervisor import Supervisor
from tpullm.recipe import parsing as recipes

ALL = "".join(ODD)
MACHINES = {"tpu-vm": {"accelerator": "v5litepod-4"}, "batch": {"machine": "n2-standard-8"}}
# A stand-in for the verb: it writes its arguments, its recipe and a variable into a file.
VERB = """
import json, os, pathlib, sys
config = sys.argv[sys.argv.index("--config") + 1]
seen = [sys.argv[1:], pathlib.Path(config).read_text("utf-8"), os.environ.get("MINE")]
pathlib.Path(os.environ["STUB"]).write_text(json.dumps(seen), "utf-8")
"""


@pytest.fixture
def verb(tmp_path, monkeypatch):
    folder = tmp_path / "stub"
    (folder / "tpullm").mkdir(parents=True)
    (folder / "tpullm" / "__init__.py").touch()
    (folder / "tpullm" / "__main__.py").write_text(VERB)
    monkeypatch.chdir(folder)  # `python -m` looks there first
    monkeypatch.setenv("STUB", str(folder / "seen"))
    return lambda: json.loads((folder / "seen").read_text("utf-8"))


def test_the_specification_becomes_the_same_recipe(verb, tmp_path, text=ALL, value=ALL):
    run = f"gs://bucket/{ALL}"
    words = ["pretrain", "--config", str(TINY), f"--evaluate.attention={text}", f"--text={text}"]
    job = make_job(run, *words, environment={"MINE": value})
    spec = json.loads(json.dumps(job.spec()))
    supervisor = Supervisor(spec, 1, ALONE, Lines())
    assert supervisor._run_verb()[0] == 0
    arguments, config, variable = verb()
    (tmp_path / "recipe.yaml").write_text(config, encoding="utf-8")
    assert recipes.load(tmp_path / "recipe.yaml") == job.recipe
    assert (job.recipe.run, job.recipe.evaluate.attention, job.recipe.text) == (run, text, text)
    assert variable == value and arguments[0] == "pretrain"


@pytest.mark.parametrize("text", [ALL, ""])
def test_local_processes_have_the_same_arguments(verb, text):
    job = job_of("local", "pretrain", arguments=[f"--text={text}", "--run", f"a {text}"], processes=1)
    child = local.Child(local._process_command(job, 0, ""), os.environ, lambda line: None)
    while (code := child.poll()) is None:
        pass
    assert code == 0
    assert verb()[0][: 1 + len(job.arguments)] == ["pretrain", *job.arguments]


@pytest.mark.parametrize("name", [ALL, "%2F", "-rf"])
@pytest.mark.parametrize("target", MACHINES)
def test_a_request_tells_the_machine_the_same_name(target, name):
    job = job_of(target, "pretrain", run=f"gs://bucket/{name}", **MACHINES[target])
    target = importlib.import_module(f"tpullm.launch.{launch.CLOUD[target]}")
    told = [json.dumps(request.body, ensure_ascii=False) for request in target.requests(job, 1)]
    assert any(json.dumps(job.spec_path, ensure_ascii=False) in text for text in told)
    for request in target.requests(job, 1):
        published(request)
