"""The tasks that the trainings of a recipe are measured on, before anything is made. It imports no JAX."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tpullm.errors import UserError
from tpullm.measuring import harness_tasks, problem_files, question_files
from tpullm.measuring.task_words import sorted_words
from tpullm.recipe.checks import trainings
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest


def check(recipe: Recipe, run: Path) -> None:
    """Read the files of questions; of tasks of the harness, look whether it has them.

    What was made needs them no more. If it is made again, the training checks all this itself.

    Raises:
        UserError: what would be found only when a training begins.
    """
    unmade = {
        name: training
        for name, training in trainings(recipe).items()
        if not (run / name.removeprefix("finetune.").removesuffix(".train") / manifest.FILE).exists()
    }
    for name, training in unmade.items():
        with keys_for_options(f"{name}.measure"):
            named = sorted_words(training.measure.tasks)
            for task in named.problems:
                problem_files.to_run(task)
            for task in named.files:
                question_files.read(task)
            if named.harness:
                harness_tasks.known(named.harness)


@contextlib.contextmanager
def keys_for_options(section: str) -> Iterator[None]:
    """Errors of `evaluate --tasks` inside name the key of `section` in place of the option."""
    try:
        yield
    except UserError as error:
        if not str(error).startswith("--"):
            raise
        raise UserError(f"{section}.{str(error).removeprefix('--')}") from None
