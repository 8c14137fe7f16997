"""Text while it is generated: tokens to whole characters, up to a stop text, and their rate."""

import codecs
import time
from collections.abc import Iterable, Iterator, Sequence

from tpullm.tokenizer import Tokenizer


class Characters:
    """The text of tokens that come one by one. A character whose bytes are in several tokens comes with the last one.

    Bytes that are not UTF-8 give U+FFFD, as in `Tokenizer.decode`. A space at the start of the first token stays,
    because the text continues another one; Llama 2's tokenizer would remove it as the space that begins every text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._bytes_of = tokenizer.bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """The characters that end with this token."""
        return self._decoder.decode(self._bytes_of(token))

    def rest(self) -> str:
        """What is left after the last token: U+FFFD for part of a character."""
        return self._decoder.decode(b"", final=True)


class Until:
    """The text up to the first of `stops`, without it, part by part. Text that can still become a stop is held back.

    Attributes:
        found: whether a stop came; no part may be added after it.
        held: what was not given: what can still become a stop, or the stop that came and all after it.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops, self.held, self.found = stops, "", False

    def add(self, part: str) -> str:
        """The text that is known to belong to the answer, now that `part` came."""
        held = self.held + part
        found = [held.index(stop) for stop in self._stops if stop and stop in held]
        self.found = bool(found)
        keep = len(held) - min(found) if found else _possible_stop(held, self._stops)
        self.held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """What was held back, if no stop came."""
        return "" if self.found else self.held


def characters(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of each token, and what is left at the end; see `Characters`."""
    text = Characters(tokenizer)
    for token in ids:
        yield text.add(token)
    yield text.rest()


def until(parts: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The text up to the first of `stops`, without it; see `Until`."""
    text = Until(stops)
    for part in parts:
        yield text.add(part)
        if text.found:
            return
    yield text.rest()


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
