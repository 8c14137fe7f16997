"""The boundaries of Japanese words, by Sudachi with its small dictionary."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

# Sudachi takes 49,149 bytes, and 65,535 after NFKC, where one character (ﷺ) becomes 33.
MOST_CHARACTERS = 1_900
_BLOCK = re.compile(rf"(?s).{{1,{MOST_CHARACTERS}}}(?:\Z|(?<=[。\n]))|.{{1,{MOST_CHARACTERS}}}")


@functools.cache
def analyser(mode: str) -> Callable[[str], Iterator[Any]]:
    """A function from text to Sudachi morphemes; mode `A` is the shortest units (東京/都), `C` the longest (東京都).

    A text of more than `MOST_CHARACTERS` is read in blocks, behind a 。 or a line where it has one. The places that its
    morphemes know (`begin`, `end`) are those in their block.
    """
    from sudachipy import Dictionary, SplitMode

    tokenize = Dictionary(dict="small").tokenizer(mode=getattr(SplitMode, mode)).tokenize
    return lambda text: (word for block in _BLOCK.findall(text) for word in tokenize(block))
