"""How many documents may be bad, and what is said of them."""

from pathlib import Path

import pytest

from tpullm.corpus.document import Raw
from tpullm.corpus.files import readers
from tpullm.recipe.schema import Source
from tpullm.system.errors import UserError


@pytest.mark.parametrize(
    ("max_bad", "bad", "documents", "fine"),
    [
        (0.001, 0, 0, True),
        (0.001, 1, 999, False),
        (0.001, 1, 1000, True),
        (0.001, 2, 1999, False),
        (0, 1, 10**9, False),
        (0, 0, 5, True),
        (-1, 0, 5, True),
        (1, 1, 1, True),
        (1, 2, 10**9, False),
        (5, 5, 5, True),
        (0.5, 3, 5, False),
    ],
)
def test_a_share_or_a_number_of_documents_may_be_bad(max_bad, bad, documents, fine):
    source = Source("s", "jsonl", max_bad=max_bad)
    if fine:
        readers.check(source, bad, documents, ["a"])
        return
    with pytest.raises(UserError, match=f"s: {bad:,} of {documents:,} documents cannot be read: a"):
        readers.check(source, bad, documents, ["a"])


def test_a_small_file_with_one_broken_line_says_so():
    raw = Raw(dropped="broken record", record="line 2", problem="is not JSON (Expecting value)")
    with pytest.raises(UserError) as error:
        readers.check(Source("s", "jsonl"), 1, 3, [readers.described(Path("a\n.jsonl"), raw)])
    assert str(error.value) == (
        "corpus.sources: s: 1 of 3 documents cannot be read: a\\n.jsonl: line 2 is not JSON (Expecting value); correct "
        "or remove it, or put it aside with max_bad: 1 for this source (it is 0.001)"
    )


def test_three_are_named_and_the_others_counted():
    first = ["a: line 1", "a: line 2", "a: line 3"]
    with pytest.raises(UserError, match="read: a: line 1; a: line 2; a: line 3; correct or remove them, or put them"):
        readers.check(Source("s", "jsonl"), 3, 2999, first)


def test_of_many_that_are_alike_the_first_is_named():
    first = [*(f"a: line {number}" for number in range(9)), "b: c", "b: d", "b: e"]
    with pytest.raises(UserError, match="read: a: line 0; b: c; b: d; and 1,997 more; correct or remove them"):
        readers.check(Source("s", "jsonl", max_bad=10), 2000, 3000, first)
