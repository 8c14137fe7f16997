"""The boundaries of Japanese words, by Sudachi with its small dictionary."""

import functools
from collections.abc import Callable


@functools.cache
def analyser(mode: str) -> Callable:
    """A function from text to Sudachi morphemes; mode `A` is the shortest units (東京/都), `C` the longest (東京都)."""
    from sudachipy import Dictionary, SplitMode

    return Dictionary(dict="small").tokenizer(mode=getattr(SplitMode, mode)).tokenize
