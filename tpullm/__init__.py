"""tpullm: raw text to a tuned, evaluated language model, in JAX, on a laptop's CPU, a GPU or a TPU pod.

In Python, `tpullm.Run` runs the five steps, `tpullm.load` loads a trained model, and `tpullm.truth` gives the true
probabilities of a blank in the quickstart's language. docs/five_steps.ipynb shows them all.
"""

import importlib

__version__ = "0.1.0"

# Imported when first used: every module imports this one, and modules without JAX must not import it.
_API = {
    "LanguageModel": "tpullm.cli.python_model",
    "Run": "tpullm.cli.python_api",
    "Sampling": "tpullm.recipe.sampling",
    "UserError": "tpullm.system.errors",
}


def __getattr__(name: str):
    if name not in _API:
        raise AttributeError(f"module 'tpullm' has no attribute {name!r}")
    importlib.import_module("tpullm.system.process.environment").set_variables()  # before JAX is imported
    return getattr(importlib.import_module(_API[name]), name)


def __dir__() -> list[str]:
    return ["__version__", "load", "truth", *_API]


def load(model):
    """Load a trained model: see `tpullm.LanguageModel`."""
    return __getattr__("LanguageModel")(model)


def truth(text: str) -> dict[str, float]:
    """The true probabilities of the words at 【?】, highest first, by the grammar `tenki`.

    `UserError` if the text is not in its language.
    """
    return importlib.import_module("tpullm.corpus.tenki").blank(text)
