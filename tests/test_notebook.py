"""docs/five_steps.ipynb and docs/real_model.ipynb: they run as they are shipped, show what the first one's pictures are
of, and what they say of the model is true.

`python -m tests.test_notebook five_steps` executes one and keeps the outputs in it; `... real_model FOLDER` does so in
a folder in which `runs/real` may be finished.
"""

import ast
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

import tpullm
from tests.conftest import ROOT, TINY

NOTEBOOK = ROOT / "docs" / "five_steps.ipynb"
REAL = ROOT / "docs" / "real_model.ipynb"
# Names in the notebook and what they are: whatever it uses of them is public there.
KINDS = {"tpullm": tpullm, "run": tpullm.Run, "base": tpullm.LanguageModel, "tuned": tpullm.LanguageModel}
PICTURES = {"piece": 2, "plot": 1, "bar model": 1, "attention": 1}  # how many outputs with this class at least
STEPS = '{"pretrain.steps": 240, "pretrain.evaluate_every": 40}'
MOST_WRONG = 0.15  # total variation; a model that has learned nothing has 1, the whole quickstart 0.02


def cells(kind, path=NOTEBOOK):
    notebook = json.loads(path.read_text("utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def text_of(value):
    """A text of the notebook's format: a string, or its lines."""
    return value if isinstance(value, str) else "".join(value)


def figures(notebook):
    """What it printed: total variation, gap to the truth in nats a token, shares of right answers after and before."""
    found = [output for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert [output for output in found if output["output_type"] == "error"] == []
    pages = [text_of(output["data"]["text/html"]) for output in found if "text/html" in output.get("data", {})]
    counts = {name: sum(f'class="{name}' in page for page in pages) for name in PICTURES}
    assert {name: count for name, count in counts.items() if count < PICTURES[name]} == {}
    said = "\n".join(text_of(output["text"]) for output in found if "text" in output)
    assert "tpu_" not in said and "libtpu" not in said.lower()
    right = re.search(r"right answers: (\d+)%, before tuning (\d+)%", said).groups()
    others = [re.search(rf"{name} (\d\.\d+)", said)[1] for name in ("total variation", "gap to the truth:")]
    return [*map(float, others), *(int(share) / 100 for share in right)]


def check_learned(notebook):
    variation, gap, right, before = figures(notebook)
    assert variation < MOST_WRONG and 0 < gap < 0.2 and right > 0.8 > 0.2 > before


def printed(notebook):
    """What it printed; none of its cells failed."""
    found = [output for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert [output for output in found if output["output_type"] == "error"] == []
    return "\n".join(text_of(output["text"]) for output in found if "text" in output)


def check_form(notebook):
    before, after = map(int, re.search(r"all of these: (\d+)% before, (\d+)% after", printed(notebook)).groups())
    assert before < 20 and after > 80


@pytest.mark.parametrize(("path", "least"), [(NOTEBOOK, 16), (REAL, 7)])
def test_the_notebook_uses_what_is_public(path, least):
    used = set()
    for source in cells("code", path):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in KINDS:
                used.add((node.value.id, node.attr))
    assert len(used) >= least
    assert {f"{name}.{attribute}" for name, attribute in used if attribute not in dir(KINDS[name])} == set()
    assert [attribute for _, attribute in used if attribute.startswith("_")] == []


def test_the_notebooks_recipe_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(cells("code")[0], names)
    assert names["run"].folder == tmp_path / "runs" / "notebook" and not (tmp_path / "runs").exists()


def test_the_notebook_does_the_five_steps_in_order():
    called = re.findall(r"run\.(\w+)\(\)", "\n".join(cells("code")))
    steps = ["collect", "tokenize", "pretrain", "finetune", "evaluate", "report"]
    assert [name for name in dict.fromkeys(called) if name in steps] == steps


@pytest.mark.parametrize(("path", "check"), [(NOTEBOOK, check_learned), (REAL, check_form)])
def test_what_is_committed_was_executed_whole(path, check):
    """The outputs are those of one execution from the beginning, and name no place of the machine that made them."""
    notebook = json.loads(path.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    check(notebook)
    assert path.stat().st_size < 300_000
    assert not re.search(r"/(home|root|Users)/", path.read_text("utf-8"))


@pytest.mark.slow  # as it is shipped
def test_the_notebook_runs_and_learns(tmp_path):
    check_learned(executed(tmp_path))


@pytest.mark.ci
def test_the_notebook_runs(tiny_run, tmp_path):
    """With the tiny run, which is made, so nothing is learned: every cell and every picture is there."""
    shutil.copytree(tiny_run, tmp_path / "runs" / "notebook")
    variation, gap, right, before = figures(executed(tmp_path, tiny=True))
    assert 0 < variation <= 1 and 0 < gap and max(right, before) < 0.8
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()


def executed(folder, tiny=False, path=NOTEBOOK):
    """The notebook with the outputs of an execution in `folder`; if `tiny`, with the recipe of the tests."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    if tiny:
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert STEPS in first.source and '"quickstart"' in first.source
        first.source = first.source.replace(STEPS, "{}").replace('"quickstart"', json.dumps(str(TINY)))
    else:  # LLVM optimizes as for a user
        environment = environment | {"XLA_FLAGS": "", "XDG_CACHE_HOME": str(folder / "cache")}
    environment["PYTHONPATH"] = str(ROOT)
    resources = {"metadata": {"path": folder}}
    client = NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources, coalesce_streams=True)
    client.execute(env=environment)
    return notebook


def renew(path, folder):
    """Write the outputs of an execution into the notebook; best on an idle machine, since the log's figures show."""
    import nbformat

    began = time.monotonic()
    notebook = executed(folder, path=path)
    (check_form if path == REAL else check_learned)(notebook)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)
    return time.monotonic() - began


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    folder = Path(*given) if given else Path(tempfile.gettempdir(), name.replace("_", "-"))
    folder.mkdir(exist_ok=True)
    sys.stderr.write(f"executed in {renew(ROOT / 'docs' / f'{name}.ipynb', folder):.0f} s\n")
