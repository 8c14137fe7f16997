"""A run directory belongs to one recipe, and a refused verb leaves it as it was."""

import dataclasses
import threading

import pytest

from tpullm.recipe.parsing import Parser, dump, load
from tpullm.recipe.schema import Recipe
from tpullm.run import directory
from tpullm.system.errors import TryAgain, UserError

MINE, OTHER = Recipe(name="mine", seed=1), Recipe(name="other")


def test_the_recipe_is_kept_while_a_verb_works_and_afterwards(tmp_path):
    run = tmp_path / "deep" / "run"
    with directory.owned(run, MINE):
        assert load(run / "recipe.yaml") == MINE
    assert load(run / "recipe.yaml") == MINE


def test_a_refused_verb_puts_the_recipe_back(tmp_path):
    with directory.owned(tmp_path, MINE):
        pass
    changed = Recipe(name="mine", seed=2)
    with pytest.raises(UserError), directory.owned(tmp_path, changed):
        assert load(tmp_path / "recipe.yaml") == changed
        raise UserError("no")
    assert load(tmp_path / "recipe.yaml") == MINE
    with pytest.raises(TryAgain), directory.owned(tmp_path, changed):
        raise TryAgain("later")
    assert load(tmp_path / "recipe.yaml") == changed, "what is tried again is the same"


def test_a_refused_verb_leaves_no_folder_that_it_made(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError), directory.owned(run, MINE):
        raise UserError("no")
    assert not run.exists()
    run.mkdir()
    with pytest.raises(UserError), directory.owned(run, MINE):
        raise UserError("no")
    assert run.exists() and not (run / "recipe.yaml").exists(), "a folder of the user's stays"
    with pytest.raises(UserError), directory.owned(tmp_path / "new", MINE):
        (tmp_path / "new" / "made").write_text("dear")
        raise UserError("no")
    assert (tmp_path / "new" / "made").exists()


def test_a_mistake_after_a_finished_stage_takes_no_recipe_away(tmp_path):
    """The stage was made by it: without the recipe, another one could take the run directory over."""
    for name in ("new", "mine"):
        run = tmp_path / name
        if name == "mine":
            run.mkdir()
            (run / "notes.txt").write_text("of the user")
        with pytest.raises(UserError), directory.owned(run, MINE):
            (run / "documents").mkdir()
            raise UserError("no")
        assert load(run / "recipe.yaml") == MINE
        with pytest.raises(UserError), directory.owned(run, dataclasses.replace(MINE, seed=2)):
            raise UserError("no")
        assert load(run / "recipe.yaml") == MINE


def test_at_no_moment_a_refused_verb_is_without_the_recipe(tmp_path):
    """Another share, or the user, may read it then."""
    with directory.owned(tmp_path, MINE):
        pass
    ended, missed = threading.Event(), []

    def read():
        while not ended.is_set():
            try:
                (tmp_path / "recipe.yaml").read_text()
            except FileNotFoundError:
                missed.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    for seed in range(20):
        with pytest.raises(UserError), directory.owned(tmp_path, dataclasses.replace(MINE, seed=seed)):
            raise UserError("no")
    ended.set()
    reader.join()
    assert not missed and load(tmp_path / "recipe.yaml") == MINE


def test_a_recipe_that_can_not_be_read_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("nothing: of a recipe")
    with pytest.raises(UserError, match="unknown key"):
        directory.check_owner(tmp_path, MINE)


def test_one_process_works_in_it(tmp_path):
    with directory.owned(tmp_path, MINE), pytest.raises(UserError, match="another tpullm works in it"):
        with directory.owned(tmp_path, MINE):
            pass
    assert dump(MINE) == (tmp_path / "recipe.yaml").read_text()


def test_another_recipe_is_refused_before_anything_is_done(tmp_path):
    with directory.owned(tmp_path, MINE):
        pass
    recipe, run, _ = directory.open_run(Parser(), ["--run", str(tmp_path)])
    assert (recipe, run) == (dataclasses.replace(MINE, run=str(tmp_path)), tmp_path)
    with pytest.raises(UserError, match="was made by the recipe 'mine', not 'other'"):
        directory.open_run(Parser(), ["--run", str(tmp_path), "--name", "other"])
