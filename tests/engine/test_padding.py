"""Padding: few shapes hold every prompt, and every row has a last token."""

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tpullm.engine.session import check_context, length_bucket, near_length, padded_ids, row_bucket
from tpullm.model.rows import last_hidden, segments_and_positions
from tpullm.system.errors import UserError


@example(17)
@example(33)
@given(st.integers(1, 10_000))
def test_a_bucket_holds_its_length_and_few_share_one(length):
    assert length <= length_bucket(length) < max(17, 2 * length)
    assert length_bucket(length_bucket(length)) == length_bucket(length)


@example(2_049)
@given(st.integers(1, 10_000))
def test_a_near_length_is_one_of_four_and_at_most_a_quarter_longer(length):
    near, bucket = near_length(length), length_bucket(length)
    assert length <= near <= max(16, length * 5 / 4 + 1) and near_length(near) == near
    assert len({near_length(n) for n in range(bucket // 2 + 1, bucket + 1)}) <= 4


def test_rows_are_at_least_two_and_less_than_double(session):
    found = [row_bucket(session, rows) for rows in range(1, 40)]
    assert found[:4] == [2, 2, 4, 4]
    assert all(rows <= size < max(3, 2 * rows) for rows, size in enumerate(found, 1))


def test_every_row_has_a_last_token_whose_hidden_state_is_found(session):
    tokens, lengths = padded_ids(session, [[5, 6, 7], [8]], 3, 4)
    assert tokens.shape == (3, 4) and lengths.tolist() == [3, 1, 1]
    segments, positions = jax.jit(segments_and_positions)(tokens, lengths[:, None])
    assert segments.sum(axis=1).tolist() == lengths.tolist() and positions[0].tolist() == [0, 1, 2, 3]
    hidden = np.arange(24.0).reshape(3, 4, 2)
    expected = [hidden[row, length - 1] for row, length in enumerate(lengths)]
    np.testing.assert_array_equal(last_hidden(hidden, positions, lengths[:, None]), expected)


def test_only_what_the_model_can_read_fits(session):
    most, vocabulary = session.context_length, session.architecture.config.vocabulary_size
    check_context(session, [vocabulary - 1] * most, "text")
    refused = ([], "text: empty"), ([vocabulary], f"holds token {vocabulary}"), ([1] * (most + 1), "tokens")
    for ids, message in refused:
        with pytest.raises(UserError, match=message):
            check_context(session, ids, "text")
