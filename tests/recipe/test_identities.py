"""The shipped recipes mean what they meant: what is read from each, and the identities of the stages that it makes.

A run that was begun before a change of the code resumes after it, as long as `identities.json` stays as it is. It was
recorded before recipes were validated by pydantic, and again when what is skipped left the identity of a training.
"""

import dataclasses
import importlib.metadata
import json
import platform
from pathlib import Path

import pytest

from tpullm.cli.tokenize import tokenizer_inputs
from tpullm.recipe import parsing, shipped
from tpullm.recipe.fields import result
from tpullm.run import manifest, stages

RECORDED = json.loads(Path(__file__).with_name("identities.json").read_text())


def identities(name: str) -> dict[str, str]:
    """The first figures of the hash of what each stage is made from, if it had all it needs.

    Text, tokens and a published model are stand-ins, in a run directory in the working directory.
    """
    recipe, run = parsing.of_command_line([name]), Path("runs", name)
    sources = {"sources": list(map(dataclasses.asdict, recipe.corpus.sources))}
    made = {"corpus": manifest.plain(result(recipe.corpus) | sources)}
    if recipe.base:
        manifest.write(run / "base", {"from": "elsewhere"}, folder=stages.base_name(recipe.base))
    for stage in ("documents", "tokens"):
        manifest.write(run / stage, {})
    made["tokenizer"] = tokenizer_inputs(recipe, run)
    for stage in recipe.trained:
        made[stage] = stages.training_inputs(recipe, run, stage)
        if stage != "base":
            manifest.write(run / stage, made[stage])
    made["evaluate"] = stages.evaluate_inputs(recipe, run)
    return {stage: manifest.identity_of(inputs)[:16] for stage, inputs in made.items()}


@pytest.mark.parametrize("name", shipped.recipes())
def test_a_shipped_recipe_makes_what_it_made(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.0")
    monkeypatch.setattr(platform, "python_version", lambda: "3")
    assert identities(name) == RECORDED[name]
