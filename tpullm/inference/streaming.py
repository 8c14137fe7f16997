"""Text as it grows: tokens to whole characters, up to a stop text."""

import codecs
import time
from collections.abc import Iterable, Iterator, Sequence

from tpullm.tokenizer import Tokenizer


def characters(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of each token as soon as it is whole: a character whose bytes are spread over tokens waits for its last.

    Bytes that are not UTF-8 give U+FFFD, as in `Tokenizer.decode`; but a space that the first token begins with stays,
    since the text goes on from another one (Llama 2's tokenizer takes it for that which begins every text).
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        yield decoder.decode(tokenizer.bytes_of(token))
    yield decoder.decode(b"", final=True)


def until(parts: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The text up to the first of `stops`, without it. What may become a stop is held back until it can't."""
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
    """The length of the longest end of `text` that a stop begins with."""
    lengths = (length for stop in stops for length in range(min(len(stop) - 1, len(text)), 0, -1))
    return max((length for length in lengths if any(stop.startswith(text[-length:]) for stop in stops)), default=0)


class Meter:
    """Counts tokens as they pass, and their rate."""

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
        """From the second token on: before it, programs are compiled. None with less than three tokens."""
        if len(self._times) < 3:
            return None
        return (len(self._times) - 2) / (self._times[-1] - self._times[1])
