"""The programs of an engine, and which of them give the same bits: a text is the same alone and among others.

A CPU multiplies few rows in another order than many, in float32 and with JAX 0.10, and reads few tokens of a prompt in
another one too. Which numbers are alike differs between machines, so it is seen here.

Shapes: B rows of a step, R of the first band, C pieces, T tokens of a row, V vocabulary.
"""

import operator
from collections.abc import Sequence

import jax
import numpy as np

from tpullm.engine.guesses import MOST
from tpullm.engine.next_tokens import MOST_TOP, compile_for
from tpullm.engine.row_sizes import FEW, SIZE
from tpullm.engine.session import Session
from tpullm.engine.text_memory import Piece, TextMemory, Written
from tpullm.model.rows import fetch, row_parts
from tpullm.system.log import say

# Of prompts, that are read in a turn. Only the most where all prompts are there from the start: seven that are empty
# take less than the seconds in which the programs for fewer are compiled.
PIECES = (1, 2, 8)
SAMPLES = 32  # tokens that each row is given, to see whether it is as the others

Step = tuple[int, ...]  # of each band how many slots its rows attend to, or 0 if they are not computed


class Programs:
    """Those that read, write and copy. Before `compile` all of them are taken for alike.

    Attributes:
        pieces: by how many a prompt may be read.
        steps: those in which single tokens may be written; the last one is of all rows and slots.
        together: how many tokens of each row of the first band may be written together; 0 is none.
    """

    def __init__(self, session: Session, memory: TextMemory):
        self._session, self._mesh, self._memory = session, session.mesh, memory
        parts = row_parts(session.mesh)
        self.pieces = [-(-count // parts) * parts for count in (PIECES if memory.groups else PIECES[-1:])]
        self.steps, self.together = self._steps_of_groups() if memory.groups else self._steps_of_all(), MOST + 1

    def step_of(self, longest: Sequence[int]) -> Step:
        """The step of the fewest slots for texts of so many tokens in each band."""
        return min((step for step in self.steps if all(map(operator.ge, step, longest))), key=self._memory.slots)

    def first_band(self, seen: int) -> Step:
        """A step of it alone."""
        return (seen, *[0] * (len(self._memory.sizes) - 1))

    def compile(self, guesses: bool) -> None:
        """Compile all, and keep those that give the bits of the one of most pieces, and of that of all rows.

        Args:
            guesses: several tokens of a row are to be written together.
        """
        self._compile_reading()
        held = self._fill_rows()
        tokens_TB = self._ids(0, (MOST + 1, sum(rows for rows, _ in self._memory.sizes)))
        each = [[Written(int(token), held + time, 1) for time, token in enumerate(own)] for own in tokens_TB.T]
        found = {step: self._one_by_one(step, each) for step in self.steps}
        whole_BTV = found[self.steps[-1]]
        alike = lambda step: np.array_equal(found[step], whole_BTV[self._memory.rows(step)])  # noqa: E731
        self.steps = [step for step in self.steps if alike(step)]
        if not self._rows_are_alike(held):
            say("engine: rows give other bits here than others do: a text may depend on what is written beside it")
        if guesses:
            self.together = self._compile_together(each, whole_BTV)

    def _steps_of_all(self) -> list[Step]:
        """All of the bands with the shortest rows, of which none, the first half or all attend to more than `FEW`
        slots; and any number of the longer ones.
        """
        sizes = [slots for _, slots in self._memory.sizes]
        short, few = sizes.count(sizes[0]), min(FEW, sizes[0])
        views = [end for end in self._memory.ends() if end <= sizes[0]]
        first = [[view] * count + [few] * (short - count) for view in views for count in (0, short // 2, short)]
        longer = sizes[short:]
        rest = [longer[:count] + [0] * (len(longer) - count) for count in range(len(longer) + 1)]
        return list(dict.fromkeys((*one, *other) for other in rest for one in first))

    def _steps_of_groups(self) -> list[Step]:
        """Not all that there are: any number of the bands with the shortest rows; where a long text is, the single rows
        in front of the bands of long ones; where several are, all bands as far as some length.
        """
        sizes = [slots for _, slots in self._memory.sizes]
        short = sizes.count(sizes[0])
        single = [n for n in range(short, len(sizes)) if sizes[n] not in sizes[:n]]
        step = lambda bands, most: tuple(min(most, slots) if n in bands else 0 for n, slots in enumerate(sizes))  # noqa: E731
        every, numbers = range(len(sizes)), range(1, short + 1)
        kinds = [step(range(number), most) for most in self._views() for number in numbers]
        beside = [range(min(2, short)), range(short)]
        kinds += [step([*some, *single[:count]], max(sizes)) for some in beside for count in range(1, len(single) + 1)]
        # 12 M parameters, a context of 4,352: a step of all took 100 ms with nine texts of 600 tokens.
        between = [slots for slots in dict.fromkeys(sizes) if sizes[0] < slots < max(sizes)]
        kinds += [step([n for n in every if sizes[n] <= most], view) for most in between for view in (most // 2, most)]
        return list(dict.fromkeys([*kinds, step(every, FEW), step(every, max(sizes))]))

    def _views(self) -> list[int]:
        """How many slots of the shortest rows a step attends to."""
        slots = self._memory.sizes[0][1]
        return list(dict.fromkeys([min(FEW, slots), slots]))

    def _compile_reading(self) -> None:
        """Compile what reads and copies, and find by how many pieces a prompt has the same bits as by most."""
        desk, ends = self._memory.desks[0], self._memory.ends()
        ids = self._ids(1, 2 * SIZE)[: ends[-1]]
        pieces = [Piece(0, start, tuple(ids[start : start + SIZE].tolist()), 1) for start in range(0, len(ids), SIZE)]
        last_V = {}
        for count in self.pieces:
            for end in ends:
                for first in range(0, len(pieces), count):
                    some = pieces[first : first + count]
                    *_, (logits_CV, hidden_CTD) = self._memory.read(desk, some, count, SIZE, end)
                last_V[count, end] = fetch(self._mesh, logits_CV)[len(some) - 1]
            compile_for(self._mesh, logits_CV)
            self._memory.told(hidden_CTD, [], MOST_TOP)
        whole_V = last_V[self.pieces[-1], ends[-1]]
        alike = lambda count: all(np.array_equal(last_V[count, end], whole_V) for end in ends)  # noqa: E731
        self.pieces = [count for count in self.pieces[:-1] if alike(count)] + self.pieces[-1:]
        for band, (_, slots) in enumerate(self._memory.sizes):
            for to, of in ((band, desk), (desk, band), (band, band)):  # single rows are copied in another way
                self._memory.copy((to, 0), (of, 0), slots)

    def _fill_rows(self) -> int:
        """Let every row hold what the desk does, as far as there is room for some tokens more: how many tokens."""
        held = max(0, min(2 * SIZE, self._memory.sizes[0][1] - MOST - 1))
        for band, (rows, _) in enumerate(self._memory.sizes):
            for row in range(rows):
                self._memory.copy((band, row), (self._memory.desks[0], 0), held)
        return held

    def _rows_are_alike(self, held: int) -> bool:
        """Whether all rows of the largest step have the same logits after the same tokens.

        In bfloat16 another order of a sum is seen in one of ten tokens; hence many.
        """
        found: dict[int, bytes] = {}
        for turn in range(SAMPLES):
            numbers = {row: (row + turn) % SAMPLES for row in self._memory.rows(self.steps[-1])}
            tokens = {row: [Written(number, held, 1)] for row, number in numbers.items()}
            logits_BV = fetch(self._mesh, self._memory.write(self.steps[-1], tokens))
            for row, number in numbers.items():
                if found.setdefault(number, logits_BV[row].tobytes()) != logits_BV[row].tobytes():
                    return False
        return True

    def _one_by_one(self, step: Step, each: list[list[Written]]) -> np.ndarray:
        """The logits after each token of each row of a step, `[B, T, V]`, written one at a time."""
        found = []
        for time in range(len(each[0])):
            logits_BV: jax.Array = self._memory.write(step, {n: own[time : time + 1] for n, own in enumerate(each)})
            found.append(fetch(self._mesh, logits_BV))
        compile_for(self._mesh, logits_BV)
        return np.stack(found, axis=1)

    def _compile_together(self, each: list[list[Written]], whole_BTV: np.ndarray) -> int:
        """How many tokens of each row of the first band give the same bits as single ones of all rows, or 0.

        As many tokens as a step of few rows has rows are as its single ones: matmuls do not see whose they are.
        """
        rows = self._memory.sizes[0][0]
        counts = sorted({len(self._memory.rows(step)) // rows for step in self.steps})
        alike = lambda count: all(self._is_as(whole_BTV[:rows], count, each, seen) for seen in self._views())  # noqa: E731
        return next((count for count in counts if count > MOST and alike(count)), 0)

    def _is_as(self, expected_RTV: np.ndarray, count: int, each: list[list[Written]], seen: int) -> bool:
        rows, times, _ = expected_RTV.shape
        logits = self._memory.write(self.first_band(seen), dict(enumerate(each[:rows])), count)
        compile_for(self._mesh, logits)
        found = fetch(self._mesh, logits).reshape(rows, count, -1)
        return np.array_equal(found[:, :times], expected_RTV)

    def _ids(self, seed: int, shape: int | tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(seed).integers(self._session.tokenizer.vocabulary_size, size=shape)
