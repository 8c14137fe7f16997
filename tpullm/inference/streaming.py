"""Text while it is generated: tokens to whole characters, up to a stop text, and their rate."""

import codecs
import time
from collections.abc import Iterable, Iterator, Sequence

from tpullm.tokenizer import Tokenizer


def characters(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of each token. A character whose bytes are in several tokens comes with the last of them.

    Bytes that are not UTF-8 give U+FFFD, as in `Tokenizer.decode`. A space at the start of the first token stays,
    because the text continues another one; Llama 2's tokenizer would remove it as the space that begins every text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        yield decoder.decode(tokenizer.bytes_of(token))
    yield decoder.decode(b"", final=True)


def until(parts: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The text up to the first of `stops`, without it. Text that can still become a stop is held back."""
    held = ""
    for part in parts:
        held += part
        found = [held.index(stop) for stop in stops if stop and stop in held]
        if found:
            yield held[: min(found)]
            return
        keep = _possible_stop(held, stops)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held


def _possible_stop(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of `text` with which a stop begins."""
    lengths = (length for stop in stops for length in range(min(len(stop) - 1, len(text)), 0, -1))
    return max((length for length in lengths if any(stop.startswith(text[-length:]) for stop in stops)), default=0)


class Meter:
    """Counts tokens and measures their rate."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._times: list[float] = []

    def watch(self, ids: Iterable[int]) -> Iterator[int]:
        """Yield `ids` unchanged."""
        for token in ids:
            self._times.append(time.perf_counter())
            self.ids.append(token)
            yield token

    @property
    def tokens_per_second(self) -> float | None:
        """The rate after the second token, until which programs are compiled. None for fewer than three tokens."""
        if len(self._times) < 3:
            return None
        return (len(self._times) - 2) / (self._times[-1] - self._times[1])
