"""tpullm: raw text to a tuned, evaluated language model, in JAX, on a laptop's CPU, a GPU or a TPU pod."""

import importlib

__version__ = "0.1.0"


def load(model):
    """A model for a notebook: see `tpullm.door.LanguageModel`."""
    # By name: every part reads the version here, and parts without JAX must not depend on what needs it.
    importlib.import_module("tpullm.environment").settle()  # before JAX is imported
    return importlib.import_module("tpullm.door").LanguageModel(model)
