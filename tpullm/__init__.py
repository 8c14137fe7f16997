"""tpullm: raw text to a tuned, evaluated language model, in JAX, on a laptop's CPU, a GPU or a TPU pod."""

__version__ = "0.1.0"
