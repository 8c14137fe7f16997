"""tpullm: raw text to a tuned, evaluated language model, in JAX, on a laptop's CPU, a GPU or a TPU pod.

From Python: `tpullm.Run` makes the five steps, `tpullm.load` uses a trained model, `tpullm.truth` is what the grammar
of the quickstart expects in a blank. docs/five_steps.ipynb shows them all.
"""

import importlib

__version__ = "0.1.0"

# By name: every part reads the version here, and parts without JAX must not depend on what needs it.
_DOOR = {
    "LanguageModel": "tpullm.door.trained_model",
    "Run": "tpullm.door.steps",
    "Sampling": "tpullm.inference.sampling_options",
    "UserError": "tpullm.errors",
}


def __getattr__(name: str):
    if name not in _DOOR:
        raise AttributeError(f"module 'tpullm' has no attribute {name!r}")
    _settle()
    return getattr(importlib.import_module(_DOOR[name]), name)


def __dir__() -> list[str]:
    return ["__version__", "load", "truth", *_DOOR]


def load(model):
    """A trained model, to use from Python: see `tpullm.LanguageModel`."""
    return __getattr__("LanguageModel")(model)


def truth(text: str) -> dict[str, float]:
    """The true probabilities of the words at 【?】, likeliest first, by the grammar `tenki`.

    `UserError` if the text is not one of its language.
    """
    return importlib.import_module("tpullm.corpus.tenki").blank(text)


def _settle() -> None:
    """What JAX is told before it is imported."""
    importlib.import_module("tpullm.process.environment").settle()
