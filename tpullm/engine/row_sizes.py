"""How many rows of how many slots an engine's memory has: bands of rows, and the blocks of a row.

Why there are bands and blocks stands in `row_memory.py`, which has the programs on them.
"""

import itertools

# Rows that are computed if there are no more texts. 12 M parameters, JAX 0.12: 12 to 32 rows give the same bits in
# float32, 2 to 7, 4 to 8 and 40 to 48 others. In bfloat16 2 to 7 and 12 to 64 do. 2 rows took 12 ms, 32 took 19.
GROUPS = (2, 12)
# A prompt is read in chunks of so many tokens; what is used again for another text is a whole number of these. 64
# tokens at a time or more give the same bits, in any number of rows; 32 tokens give others in float32 (12 M parameters,
# JAX 0.12). How many blocks are attended to changes no bit.
CHUNK, SIZE = 32, 64  # and it is read in pieces of so many
SHORT = 512  # slots of the rows with the fewest
BLOCK = 128  # slots of the first block of a row; see `block_sizes`
FEW = 2 * BLOCK  # slots that are attended to at least: a softmax over one block is computed in another way
# Bands of the shortest rows if all rows are computed in each step, and how many bytes each has at least. 64 rows, 12 M
# parameters, float32, two cores: 47 ms with 256 slots in one band, 36 in two, 32 in four; with 384 slots 52, 47 and 46;
# with 384 in half of four and 256 in the others 39, 48 if there are two. XLA for a CPU computes side by side only where
# more than eight things can be computed. To compile a step of four takes 4 s, of one 1.2.
MOST_BANDS, BAND = 4, 1 << 26
LEAST_ROWS = 8  # of each: a step of 64 rows took 42 ms with bands of 8, 32 with 16, 36 with 32


def bands(context: int, rows: int, parts: int, groups: bool, slot_bytes: int = 0) -> list[tuple[int, int]]:
    """Rows and slots of each band, for texts of up to `context` tokens.

    Args:
        rows: of all bands. Each size of band has four times the slots and a quarter of the rows of the one before.
        parts: of the mesh that share the rows.
        groups: each size is several bands, a few rows first: a step of few texts computes few. Of long rows one comes
            first, as there is seldom more than one long text, and attention reads whole bands.
        slot_bytes: what a token's keys and values take. If they are no groups, the first size is several bands of
            equal size if it takes much: texts of like length can stand together.
    """
    whole = -(-context // CHUNK) * CHUNK
    sizes = [min(SHORT, whole)]
    while sizes[-1] < whole:
        sizes.append(min(4 * sizes[-1], whole))
    longer = [_divided(rows >> 2 * n, parts) for n in range(1, len(sizes))]
    first = _divided(rows - sum(longer), parts)
    if not groups:
        count = max(1, min(MOST_BANDS, rows * context * slot_bytes // BAND, first // (LEAST_ROWS * parts)))
        shares = [_divided((first + n) // count, parts) for n in range(count)]
        return [*((share, sizes[0]) for share in shares), *zip(longer, sizes[1:], strict=True)]
    ends = sorted({_divided(count, parts) for count in GROUPS})
    ends = [end for end in ends if end + _divided(2, parts) <= first]
    grouped = [(end - before, sizes[0]) for before, end in itertools.pairwise([0, *ends, first])]
    one = [(parts, slots) for slots in sizes[1:]]
    return [*grouped, *one, *((count - parts, slots) for count, slots in zip(longer, sizes[1:], strict=True))]


def block_sizes(slots: int, equal: bool = False) -> list[int]:
    """The slots of each block of a row; two blocks or more, for a softmax over one has no rows of zeros beside it.

    Args:
        equal: up to `SHORT` slots no block is longer than `BLOCK`, so less is attended to, by more programs.
    """
    ends = [min(BLOCK, slots // 2)]
    while ends[-1] < slots:
        ends.append(min(ends[-1] + (BLOCK if equal and ends[-1] < SHORT else ends[-1]), slots))
    return [end - before for before, end in itertools.pairwise([0, *ends])]


def _divided(rows: int, parts: int) -> int:
    """As many rows, or more: the same number for each part, and two at least."""
    return max(2, -(-rows // parts)) * parts
