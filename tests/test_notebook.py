"""docs/five_steps.ipynb: it runs as it is shipped, shows its pictures, and what it says of the model is true.

`python -m tests.test_notebook` executes it and keeps the outputs in it.
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
from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "five_steps.ipynb"
# Names in the notebook and what they are: whatever it uses of them is public there.
KINDS = {"tpullm": tpullm, "run": tpullm.Run, "base": tpullm.LanguageModel, "tuned": tpullm.LanguageModel}
PICTURES = {"piece": 2, "plot": 1, "bar model": 1, "attention": 1}  # how many outputs with this class at least
MOST_WRONG = 0.15  # total variation; a model that has learned nothing has 1, the whole quickstart 0.02


def cells(kind):
    """The sources of the cells of a kind."""
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def outputs(notebook):
    """All outputs of the executed cells, as dicts: streams have `text`, results `data`."""
    return [output for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]


def text_of(value):
    """A text of the notebook's format: a string, or its lines."""
    return value if isinstance(value, str) else "".join(value)


def check_outputs(notebook):
    """Every picture is there, no cell failed, and what was learned is near the truth."""
    found = outputs(notebook)
    assert [output for output in found if output["output_type"] == "error"] == []
    pages = [text_of(output["data"]["text/html"]) for output in found if "text/html" in output.get("data", {})]
    counts = {name: sum(f'class="{name}' in page for page in pages) for name in PICTURES}
    assert {name: count for name, count in counts.items() if count < PICTURES[name]} == {}
    said = "\n".join(text_of(output["text"]) for output in found if "text" in output)
    assert float(re.search(r"total variation (\d\.\d+)", said)[1]) < MOST_WRONG
    assert 0 < float(re.search(r"gap to the truth: (\d\.\d+)", said)[1]) < 0.2
    right, before = re.search(r"right answers: (\d+)%, before tuning (\d+)%", said).groups()
    assert int(right) > 80 > 20 > int(before)
    assert "tpu_" not in said and "libtpu" not in said.lower()


def test_the_notebook_uses_what_is_public():
    used = set()
    for source in cells("code"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in KINDS:
                used.add((node.value.id, node.attr))
    assert len(used) > 15
    assert {f"{name}.{attribute}" for name, attribute in used if attribute not in dir(KINDS[name])} == set()
    assert [attribute for _, attribute in used if attribute.startswith("_")] == []


def test_the_notebooks_recipe_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(cells("code")[0], names)
    assert names["run"].folder == tmp_path / "runs" / "notebook" and not (tmp_path / "runs").exists()


def test_the_notebook_does_the_five_steps_in_order():
    source = "\n".join(cells("code"))
    steps = [
        source.index(f"run.{step}()") for step in ("collect", "tokenize", "pretrain", "finetune", "evaluate", "report")
    ]
    assert steps == sorted(steps)


def test_what_is_committed_was_executed_whole():
    """The outputs are those of one execution from the beginning, and name no place of the machine that made them."""
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    check_outputs(notebook)
    assert NOTEBOOK.stat().st_size < 300_000
    assert not re.search(r"/(home|root|Users)/", NOTEBOOK.read_text("utf-8"))


@pytest.mark.ci
def test_the_notebook_runs(tmp_path):
    check_outputs(executed(tmp_path))
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()


def executed(folder):
    """The notebook with the outputs of an execution in `folder`, from nothing."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, 4)
    # JAX's variables would have it keep programs elsewhere: this process has set them, by the use of the door above.
    # And XLA's have LLVM optimize nothing, which is good for many small programs: with them this test took 677 s beside
    # another worker, without them 268 s alone.
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment = plain | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    resources = {"metadata": {"path": folder}}
    client = NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources, coalesce_streams=True)
    client.execute(env=environment)
    return notebook


def renew():
    """Write the outputs of an execution into the notebook; best on an idle machine, since the log's figures show."""
    import nbformat

    folder = Path(tempfile.gettempdir()) / "five-steps"
    folder.mkdir()
    began = time.monotonic()
    notebook = executed(folder)
    check_outputs(notebook)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, NOTEBOOK)
    shutil.rmtree(folder)
    return time.monotonic() - began


if __name__ == "__main__":
    sys.stderr.write(f"executed in {renew():.0f} s\n")
