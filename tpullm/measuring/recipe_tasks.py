"""The tasks that the trainings of a recipe are measured on, before anything is made. It imports no JAX."""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from tpullm.errors import UserError
from tpullm.measuring import problem_files, question_files
from tpullm.recipe.checks import trainings
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest


def check(recipe: Recipe, run: Path) -> None:
    """Read the files of questions; of tasks of the harness, only look whether it is installed.

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
            for task in training.measure.tasks:
                if problem_files.is_problem_file(task):
                    problem_files.to_run(task)
                elif question_files.is_question_file(task):
                    question_files.read(task)
                elif importlib.util.find_spec("lm_eval") is None:
                    raise UserError(
                        f"--tasks: {task}: tasks of the harness need the package: pip install 'tpullm[lm-eval]'; a "
                        "file of questions (.jsonl, .json, .parquet) needs nothing"
                    )


@contextlib.contextmanager
def keys_for_options(section: str) -> Iterator[None]:
    """Errors of `evaluate --tasks` inside name the key of `section` in place of the option."""
    try:
        yield
    except UserError as error:
        if not str(error).startswith("--"):
            raise
        raise UserError(f"{section}.{str(error).removeprefix('--')}") from None
