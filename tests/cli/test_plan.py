"""`tpullm plan`: what it prints, its JSON, the recipe that it writes, and what it refuses in one line."""

import contextlib
import io
import json
import math
import re
import shlex
from unittest.mock import Mock

import pytest

from tests.conftest import ROOT
from tpullm.cli import main
from tpullm.recipe.parsing import load
from tpullm.system.errors import UserError
from tpullm.system.words import moment

EIGHT = ROOT / "configs" / "pretrain" / "8b.yaml"
PLAN = {
    *("topology", "chips", "keys", "fits", "limit_bytes", "peak_bytes", "peak_moment", "memory", "step_seconds"),
    *("tokens_per_second", "mfu", "computing_seconds", "exposed_seconds", "traffic", "run", "advice", "search"),
    *("proofs", "uncounted"),
}
RUN = {
    *("tokens", "steps", "step_seconds", "days", "dollars", "token_store_bytes", "checkpoint_bytes"),
    *("save_seconds", "between_saves_seconds", "restart_seconds", "interruptions", "hours_between", "goodput"),
}


def arguments(*options, config=EIGHT, tmp_path=None):
    return ["plan", f"--config={config}", f"--run={tmp_path / 'none'}", *options]


@pytest.fixture
def planned(capsys, tmp_path):
    def plan(*options, config=EIGHT):
        code = main.main(arguments(*options, "--json", config=config, tmp_path=tmp_path))
        out = capsys.readouterr().out
        assert out.count("\n") == 1 and not (tmp_path / "none").exists()
        found = json.loads(out)
        assert code == (0 if any(plan["fits"] for plan in found["plans"]) else 1)
        return found

    return plan


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("searched"), io.StringIO()
    options = ("--search", "--interruptions=24", "--json", f"--write={folder / 'best.yaml'}")
    with contextlib.redirect_stdout(said):
        assert main.main(arguments(*options, tmp_path=folder)) == 0
    return json.loads(said.getvalue()), folder / "best.yaml"


@pytest.fixture
def refused(capsys, tmp_path):
    def refuse(*options):
        assert main.main(arguments(*options, tmp_path=tmp_path)) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    return refuse


def test_the_schema_is_as_documented(searched):
    found, _ = searched
    assert found["version"] == 1 and found["recipe"] == "8b"
    (plan,) = found["plans"]
    assert set(plan) == PLAN and set(plan["run"]) == RUN
    sizes = {"model.attention_block", "pretrain.accumulation", "pretrain.loss_chunks"}
    assert set(plan["keys"]) == {"mesh", "model.remat", "pretrain.optimizer.moments"} | sizes
    assert {"axis", "what", "received", "seconds", "waits"} == set(plan["traffic"][0])
    assert set(plan["search"]) == {"screened", "fitting", "seconds", "best"}
    assert {"keys", "peak_bytes", "step_seconds", "waiting_seconds", "behind"} == set(plan["search"]["best"][0])
    page = (ROOT / "docs" / "en" / "planning.md").read_text(encoding="utf-8").partition("## The JSON")[2]
    told = {*plan, *plan["run"], *plan["keys"], *plan["traffic"][0], *plan["search"], *plan["search"]["best"][0]}
    assert {key for key in told if f"`{key}`" not in page} == set()
    assert sum(plan["memory"].values()) == pytest.approx(plan["peak_bytes"], abs=len(plan["memory"]))
    parts = [*plan["computing_seconds"].values(), *plan["exposed_seconds"].values()]
    assert sum(parts) == pytest.approx(plan["step_seconds"])
    run = plan["run"]
    assert run["tokens"] == 40000 * 512 * 8192 and 0.9 < run["goodput"] < 1
    assert run["days"] * 86400 * run["goodput"] == pytest.approx(run["steps"] * plan["step_seconds"])


def test_topologies_come_in_the_order_asked_for(planned):
    names = "v5p:8x8x8,v6e:16x16,v5e:16x16"
    cost = [plan["run"]["dollars"]["on_demand"] for plan in planned(f"--topology={names}", "--sort=cost")["plans"]]
    days = [plan["run"]["days"] for plan in planned(f"--topology={names}", "--sort=time")["plans"]]
    assert len(cost) == len(days) == 3 and cost == sorted(cost) and days == sorted(days)


def test_the_exit_code_says_whether_anything_fits(capsys, tmp_path):
    assert main.main(arguments("--topology=v6e:4x4,v6e:16x16", tmp_path=tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("v6e:16x16") and "DOES NOT FIT; it fits with" in lines[-1]
    assert max(map(len, lines)) <= 120  # no terminal
    assert main.main(arguments("--topology=v6e:4x4,v5e:4x4", tmp_path=tmp_path)) == 1
    assert "mesh" not in capsys.readouterr().out


@pytest.mark.ci
def test_the_page_shows_what_it_prints(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    text = (ROOT / "docs" / "en" / "planning.md").read_text(encoding="utf-8")
    command, shown = re.search(r"```sh\n(tpullm plan .*)\n```\n\n```text\n(.*?)```", text, re.DOTALL).groups()
    assert main.main([*shlex.split(command)[1:], f"--run={tmp_path / 'none'}"]) == 0
    assert capsys.readouterr().out == shown


def test_the_winner_is_written_as_a_recipe(planned, searched):
    found, written = searched
    (plan,), recipe, own = found["plans"], load(written), load(EIGHT)
    assert "{" + ", ".join(f"{axis}: {size}" for axis, size in recipe.mesh.items()) + "}" == plan["keys"]["mesh"]
    found = {"model.remat": recipe.model.remat, "pretrain.accumulation": recipe.pretrain.accumulation}
    assert found.items() <= plan["keys"].items()
    assert (recipe.pretrain.batch_size, recipe.pretrain.steps, recipe.corpus) == (512, own.pretrain.steps, own.corpus)
    assert math.prod(recipe.mesh.values()) == 256 and recipe.topology == "v6e:16x16"
    (again,) = planned(config=written)["plans"]
    assert again["step_seconds"] == plan["step_seconds"] and again["peak_bytes"] == plan["peak_bytes"]


@pytest.mark.ci
def test_this_machine_is_measured_and_stands_beside_slices(planned):
    plans = planned("--topology=v5e:2x2, local,", config=ROOT / "tests" / "tiny.yaml")["plans"]
    assert {plan["topology"] for plan in plans} == {"v5e:2x2", "local"}
    (here,) = [plan for plan in plans if plan["topology"] == "local"]
    assert here["run"]["dollars"] == {} and here["fits"] and 1e-4 < here["step_seconds"] < 60


def test_without_the_compiler_the_analytic_plan_still_comes(capsys, tmp_path, monkeypatch):
    missing = Mock(side_effect=UserError("v6e:16x16: the TPU compiler is missing; install tpullm[tpu]"))
    monkeypatch.setattr("tpullm.planning.proof.prove", missing)
    assert main.main(arguments("--compile", tmp_path=tmp_path)) == 0
    told = capsys.readouterr()
    assert "install tpullm[tpu]" in told.err and "memory of a chip" in told.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--topology=",), "--topology: the recipe names none"),
        (("--mesh={fsdp: 100}",), "does not fit 256 device(s)"),
        (("--mesh={fsdp: -1, tensor: 64}",), "can't be shared by 64 devices along mesh.tensor"),
        (("--slices=3",), "pretrain.batch_size: 512 rows (batch_size / accumulation) can't be shared by 768"),
        (("--topology=2 x v6e:16x16",), "mesh.data: 1 can't be shared by 2 slices"),
        (("--slices=-1",), "use 0 or more"),
        (("--topology=h100:8", "--slices=2"), "--slices: h100:8 is no TPU slice; write the hosts into its name"),
        (("--price=mi300=3",), "--price: mi300=3 is not GENERATION=DOLLARS"),
        (("--write=/dev/null/best.yaml",), "/dev/null: can't be written"),
        (("--model.vocabulary_size=0", "--tokenizer.vocabulary_size=0"), "model.vocabulary_size: not known before"),
        (("--topology=v5e:16x16", "--model.attention_block=2048"), "does not fit the memory on the chip of a TPU v5"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(refused, options, said):
    assert said in refused(*options)


def test_no_file_is_written_over_and_what_is_refused_leaves_no_folder(refused, tmp_path):
    refused("--topology=v6e:3x3", f"--write={tmp_path / 'new' / 'best.yaml'}")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine.yaml").write_text("mine")
    assert "mine.yaml exists; choose another file" in refused(f"--write={tmp_path / 'mine.yaml'}")
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    small = ("--topology=v6e:4x4", "--pretrain.batch_size=256")
    assert main.main(arguments(*small, f"--write={tmp_path / 'other.yaml'}", tmp_path=tmp_path)) == 2
    assert not (tmp_path / "other.yaml").exists()


def test_pretrain_says_what_to_expect_and_the_report_compares(tiny_run):
    found = json.loads((tiny_run / "pretrain" / "plan.json").read_text())
    assert found["topology"] == "local" and sum(found["seconds"].values()) == pytest.approx(found["step_seconds"])
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    assert "As fast as predicted?" in page and moment(found["step_seconds"]) in page
