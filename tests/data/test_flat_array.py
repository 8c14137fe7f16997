"""Any pieces of an array are read as they were written, from a disk and as from a bucket."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.data import token_store

SIZE, SHARD = 3 * 64 + 64, 64


@pytest.fixture(scope="module", params=[SIZE, SIZE - 13], ids=["whole shards", "a part of one at the end"])
def written(request, tmp_path_factory):
    """An array of four shards, of four chunks each."""
    folder = tmp_path_factory.mktemp("arrays") / "array"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(token_store, "CHUNK_TOKENS", SHARD // 4)
        patched.setattr(token_store, "SHARD_TOKENS", SHARD)
        values = np.random.default_rng(0).integers(0, 60_000, request.param).astype(np.uint16)
        token_store.write_all(folder, values)
    return values, [token_store.Mapped(folder), token_store.Remote(folder)]


@given(st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=8))
def test_pieces_come_one_after_the_other(written, ends):
    values, readers = written
    pairs = [sorted((min(one, len(values)), min(other, len(values)))) for one, other in ends]
    begins, ends = (np.array([pair[place] for pair in pairs], np.int64) for place in (0, 1))
    expected = [value for begin, end in pairs for value in values[begin:end].tolist()]
    for reader in readers:
        found = reader.read(begins, ends)
        assert found.dtype == np.int32 and found.tolist() == expected


def test_pieces_that_end_with_a_shard_or_beside_its_end_come_whole(written):
    values, readers = written
    ends = [end for shard in (1, 2, 3) for end in range(shard * SHARD - 2, shard * SHARD + 3)] + [len(values)]
    begins = [end - 5 for end in ends]
    for reader in readers:
        found = reader.read(np.array(begins), np.array(ends))
        assert found.tolist() == [value for end in ends for value in values[end - 5 : end].tolist()]
