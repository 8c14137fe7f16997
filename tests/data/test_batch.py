import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.data import batch, packing
from tpullm.data.batch import Lengths, Segments


class Numbered:
    """Documents whose token at place p is 1000 * document + p; the weight of a token is its place."""

    def __init__(self, lengths):
        self.lengths = Lengths.of(lengths)
        self.ids = np.arange(len(lengths), dtype=np.uint64)

    def identities(self, documents):
        return documents, self.ids[documents]

    def read(self, documents, starts, counts):
        places = batch.flat_ranges(starts, counts)
        return (np.repeat(documents, counts) * 1000 + places).astype(np.int32), places.astype(np.float32)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30), sequence_length=st.integers(1, 20))
def test_a_batch_holds_what_the_segments_say(lengths, sequence_length):
    documents = Numbered(lengths)
    packed = packing.pack(documents.lengths, sequence_length, 0)
    rows = np.arange(packed.rows)
    segments = packed.segments(rows, np.zeros_like(rows))
    made = batch.build([(documents, segments)], packed.rows + 1, sequence_length)

    real = made.segment_ids > 0
    assert real.sum() == segments.lengths.sum()
    assert (made.targets[real] == made.inputs[real] + 1).all()  # the next token of the same document
    assert (made.weights[real] == made.targets[real] % 1000).all()  # the weight is the target's
    for array in (made.inputs, made.targets, made.positions, made.weights):
        assert not array[~real].any()
    assert not real[-1].any()  # a row that no segment names
    for row in range(packed.rows):
        column, mine = 0, np.flatnonzero(segments.rows == row)
        for number, piece in enumerate(mine, start=1):
            length = segments.lengths[piece]
            here = np.s_[row, column : column + length]
            assert (made.segment_ids[here] == number).all()
            assert (made.positions[here] == np.arange(length)).all()
            first = 1000 * segments.documents[piece] + segments.starts[piece]
            assert (made.inputs[here] == first + np.arange(length)).all()
            column += length
        assert not made.segment_ids[row, column:].any()


def test_sources_fill_their_own_rows():
    zero = np.zeros(1, np.int64)
    parts = Segments(zero + 1, zero, zero + 3, zero + 1), Segments(zero, zero + 2, zero + 3, zero)
    made = batch.build(list(zip((Numbered([0, 4]), Numbered([6])), parts, strict=True)), 2, 4)
    assert made.inputs.tolist() == [[2, 3, 4, 0], [1000, 1001, 1002, 0]]
    assert made.targets.tolist() == [[3, 4, 5, 0], [1001, 1002, 1003, 0]]
