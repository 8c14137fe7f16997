"""Assigns cache rows to requests, and finds cached prefixes to reuse: what another row holds is copied."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tpullm.engine.cache import CHUNK, Cache
from tpullm.engine.request import Request, Token


@dataclass(eq=False)
class Row:
    """A row of the cache: which one, the prompt tokens that it holds as they were read, and whose it is.

    While the prompt of its text is read, it holds what it held before.
    """

    group: int
    index: int
    held: tuple[int, ...] = ()
    held_for: int = 0  # `Text.longest`: rotations may depend on it
    text: "Text | None" = None
    used: int = 0  # the step in which a text last got it


@dataclass(eq=False)
class Text:
    """A request that is computed: its row, how much of its prompt is read, and its new tokens.

    Args:
        number: of the text.
        on_token: gets each token.
        longest: the length that rotations depend on.
        most: the length at which it ends, if not before.
    """

    number: int
    request: Request
    on_token: Callable[[Token], None]
    longest: int
    most: int
    row: Row | None = None
    read: int = 0
    new: list[int] = field(default_factory=list)
    written: int = 0  # the step that wrote its last token, or gave it its row
    unseen: int = 0  # dispatched steps not yet fetched: one token each, or more if guesses are checked
    wrong: int = 0  # guesses in a row
    guess_in: int = 0  # steps
    is_late: bool = False  # its mask is not ready, so it gets no token in this step

    @property
    def length(self) -> int:
        """In tokens; a dispatched step that is not fetched counts as one."""
        return len(self.request.ids) + len(self.new) + self.unseen

    @property
    def is_read(self) -> bool:
        """Whether the whole prompt is read, and in its row."""
        return self.read == len(self.request.ids)

    @property
    def goes_on(self) -> bool:
        """Whether its prompt is read, and it may still grow after the dispatched steps."""
        return self.is_read and self.length < self.most

    def begins_as(self, other: "Text") -> bool:
        """Whether its first token is chosen from the same logits, and nothing before it is echoed."""
        return self.longest == other.longest and not self.request.echo and self.request.ids == other.request.ids

    def shared(self, held: Sequence[int]) -> int:
        """How many tokens of the prompt are as those that are held: whole chunks, and one token at least is left to
        read, and those that are echoed.
        """
        ids = self.request.ids
        most = min(len(ids) - 1 - self.request.echo, len(held)) // CHUNK * CHUNK
        starts = range(0, most, CHUNK)
        return next((start for start in starts if held[start : start + CHUNK] != ids[start : start + CHUNK]), most)


class Rows:
    """The rows of the groups in which texts are written.

    Args:
        groups: how many of the cache's groups these are: the first ones.

    Attributes:
        all: the rows, group by group.
        step: the number of the engine's step.
    """

    def __init__(self, cache: Cache, groups: int):
        self._cache, self.step = cache, 0
        sizes = enumerate(cache.sizes[:groups])
        self.all = [Row(group, index) for group, (count, _) in sizes for index in range(count)]

    def texts(self) -> list[Text]:
        """All that have a row."""
        found = [row.text for row in self.all]  # another thread may count them while a text ends
        return [text for text in found if text is not None]

    def slots(self, row: Row) -> int:
        """How many tokens it has room for."""
        return self._cache.sizes[row.group][1]

    def place(self, text: Text) -> bool:
        """Give a text a row with room for its prompt and a token, the best of the first group that has one."""
        row = self._free(len(text.request.ids) + 1, lambda row: self.shared(row, text))
        if row is None:
            return False
        text.row, row.text = row, text
        row.used = text.written = self.step
        return True

    def shared(self, row: Row, text: Text) -> int:
        """How many tokens of the prompt the row holds, as `Text.shared` has them."""
        return text.shared(row.held) if row.held_for == text.longest else 0

    def keep(self, row: Row) -> None:
        """Copy what a row holds to one that is free and needed later."""
        later = [other for other in self.all if other.group > row.group and self.slots(other) == self.slots(row)]
        if len(row.held) >= CHUNK and (free := [other for other in later if other.text is None]):
            to = min(free, key=lambda other: (bool(other.held), other.used))
            self._cache.copy((to.group, to.index), (row.group, row.index), len(row.held))
            to.held, to.held_for, to.used = row.held, row.held_for, row.used

    def written(self) -> dict[int, Text]:
        """The texts that get a token in a step, by the number of their row: those that go on and have a slot for it."""
        texts = {n: row.text for n, row in enumerate(self.all) if row.text is not None and row.text.goes_on}
        return {n: text for n, text in texts.items() if text.length <= self.slots(text.row) and not text.is_late}

    def crowded(self) -> list[Text]:
        """Those that have outgrown their rows."""
        return [text for text in self.texts() if text.goes_on and text.length > self.slots(text.row)]

    def closing(self) -> list[Text]:
        """The texts of the last group that is in use, if the groups before it have room for all of them."""
        last = max((row.group for row in self.all if row.text is not None), default=0)
        texts = [row.text for row in self.all if row.group == last and row.text is not None]
        most = max((text.length for text in texts), default=0)
        before = [row for row in self.all if row.group < last and row.text is None and self.slots(row) > most]
        return texts if last and all(text.is_read for text in texts) and len(texts) <= len(before) else []

    def move(self, texts: Iterable[Text], room: int = 0) -> None:
        """Give texts other rows, with `room` slots more than they need now; a text stays if none is free."""
        for text in texts:
            old, row = text.row, self._free(text.length + room)
            if row is not None:
                self._cache.copy((row.group, row.index), (old.group, old.index), text.length)
                row.text, row.held, row.held_for, row.used = text, old.held, old.held_for, self.step
                text.row, old.text = row, None

    def _free(self, slots: int, worth: Callable[[Row], int] = lambda row: 0) -> Row | None:
        """A free row in the first group with enough slots: the row of the highest worth, then an empty one, then the
        least recently used.
        """
        free = [row for row in self.all if row.text is None and self.slots(row) >= slots]
        return max(free, key=lambda row: (-row.group, worth(row), not row.held, -row.used, -row.index), default=None)
