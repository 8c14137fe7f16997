"""A run directory: whose recipe it belongs to, and one verb working in it at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpullm import storage
from tpullm.cluster import lock
from tpullm.errors import TryAgain, UserError
from tpullm.recipe.parsing import dump, load, recipe_of
from tpullm.recipe.schema import Recipe

RECIPE = "recipe.yaml"


def open_run(parser, argv: list[str]) -> tuple[Recipe, Path, Any]:
    """The recipe, the run directory, and the parsed command line; raises like `recipe_of` and `check_owner`."""
    recipe, arguments = recipe_of(parser, argv)
    run = storage.path(recipe.run)
    check_owner(run, recipe)
    return recipe, run, arguments


def check_owner(run: Path, recipe: Recipe) -> None:
    """`UserError` if the run directory belongs to another recipe."""
    kept = run / RECIPE
    try:
        owner = load(kept).name if kept.exists() else recipe.name
    except (UserError, FileNotFoundError):
        if kept.exists():
            raise
        return  # another share was refused meanwhile, and took its recipe away
    if owner != recipe.name:
        raise UserError(f"{run}: was made by the recipe '{owner}', not '{recipe.name}'; choose another --run")


@contextlib.contextmanager
def owned(run: Path, recipe: Recipe) -> Iterator[None]:
    """Keep the recipe in the run directory while a verb works there, alone; a refused verb leaves both as they were.

    A verb that made a stage before it was refused keeps the recipe of that stage, if there was none before.

    Raises:
        UserError: another process works in the run directory.
    """
    existed, kept = run.exists(), run / RECIPE
    run.mkdir(parents=True, exist_ok=True)
    with lock.alone(run):
        before, there = kept.read_text(encoding="utf-8") if kept.exists() else None, _visible(run)
        if before != dump(recipe):
            storage.write_text(kept, dump(recipe))
        try:
            yield
        except TryAgain:
            raise
        except UserError:
            if before is not None:
                storage.write_text(kept, before)
            elif _visible(run) <= there:
                kept.unlink(missing_ok=True)
            if not existed and [path.name for path in run.iterdir()] == [lock.FILE]:
                storage.remove_tree(run)
            raise


def _visible(run: Path) -> set[str]:
    """What is in a run directory, but for its recipe and unfinished parts (hidden); on `gs://` it may not be there."""
    try:
        return {path.name for path in run.iterdir() if not path.name.startswith(".")} - {RECIPE}
    except FileNotFoundError:
        return set()
