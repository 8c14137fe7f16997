"""What a step asks of the model's own answers, and what the log says of them."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.small import mesh
from tpullm.recipe.schema import TrainConfig
from tpullm.training.rollouts import OwnAnswers

END = 7


def made(batch_size=8, accumulation=1):
    """Of all that it holds, what the functions under test read."""
    config = TrainConfig(batch_size=batch_size, accumulation=accumulation)
    return OwnAnswers(None, None, None, config, SimpleNamespace(stop_ids=(END,)), None, mesh(), None, 0)


@given(st.integers(1, 400), st.integers(1, 4))
def test_at_most_a_fifth_of_a_batch_is_empty_and_few_sizes_are_possible(parts, accumulation):
    sizes = made(parts * accumulation, accumulation).possible_rows()
    assert sizes == sorted(set(sizes)) and sizes[-1] == parts * accumulation
    assert all(size % accumulation == 0 for size in sizes)
    for needed in range(1, parts + 1):
        taken = min(size for size in sizes if size >= needed * accumulation)
        assert taken - needed * accumulation <= taken / 5
    assert len(sizes) <= 8 + 4 * parts.bit_length()


def test_what_the_log_says_of_answers():
    said = [[1, 2, END], [1, 2, 3, 4, 5, 6], [3, 3, 3, 3, 3, END]]
    # The last has the runs 3333, 3333 and 333(END): one of three stood before.
    expected = {"answers": 3, "answer_tokens": 5.0, "cut_off": 1 / 3, "repeated": 1 / 9}
    assert made().figures(said) == {name: pytest.approx(value) for name, value in expected.items()}
