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


def open_run(parser, argv: list[str]) -> tuple[Recipe, Path, Any]:
    """The recipe, the run directory, and the parsed command line; raises like `recipe_of` and `check_owner`."""
    recipe, arguments = recipe_of(parser, argv)
    run = storage.path(recipe.run)
    check_owner(run, recipe)
    return recipe, run, arguments


def check_owner(run: Path, recipe: Recipe) -> None:
    """`UserError` if the run directory belongs to another recipe."""
    kept = run / "recipe.yaml"
    if kept.exists() and (owner := load(kept).name) != recipe.name:
        raise UserError(f"{run}: was made by the recipe '{owner}', not '{recipe.name}'; choose another --run")


@contextlib.contextmanager
def owned(run: Path, recipe: Recipe) -> Iterator[None]:
    """Keep the recipe in the run directory while a verb works there, alone; a refused verb leaves both as they were.

    Raises:
        UserError: another process works in the run directory.
    """
    existed, kept = run.exists(), run / "recipe.yaml"
    run.mkdir(parents=True, exist_ok=True)
    with lock.alone(run):
        before = kept.read_text(encoding="utf-8") if kept.exists() else None
        if before != dump(recipe):
            storage.write_text(kept, dump(recipe))
        try:
            yield
        except TryAgain:
            raise
        except UserError:
            kept.unlink() if before is None else storage.write_text(kept, before)
            if not existed and [path.name for path in run.iterdir()] == [lock.FILE]:
                storage.remove_tree(run)
            raise
