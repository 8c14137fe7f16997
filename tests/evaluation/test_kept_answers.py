import pytest

from tpullm.evaluation.kept_answers import FILE, KeptAnswers, key_of
from tpullm.system import storage
from tpullm.system.errors import UserError

KEYS = [key_of("model", ("likelihood", (1, 2), (n,))) for n in range(300)]


def added(folder, answers):
    kept = KeptAnswers(folder)
    kept.add(answers)
    kept.close()


def test_what_was_added_is_found(tmp_path):
    added(tmp_path, {KEYS[0]: [-1.25, True]})
    added(tmp_path, {key: [float(n), False] for n, key in enumerate(KEYS[1:250], 1)})
    kept = KeptAnswers(tmp_path)
    assert kept.found(KEYS) == [[-1.25, True], *([float(n), False] for n in range(1, 250)), *[None] * 50]
    kept.close()


@pytest.mark.parametrize("left", [1, 20, 40])
def test_a_line_that_was_cut_off_is_as_if_it_was_not_there(tmp_path, left):
    """A process that is killed, or a full disk, leaves the beginning of a line."""
    added(tmp_path, {KEYS[0]: [1], KEYS[1]: [2]})
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: content.index(b"\n") + 1 + left])
    added(tmp_path, {KEYS[2]: [3]})
    kept = KeptAnswers(tmp_path)
    assert kept.found(KEYS[:4]) == [[1], None, [3], None]
    kept.close()


def test_a_line_of_something_else_is_named(tmp_path):
    added(tmp_path, {KEYS[0]: [1]})
    with open(tmp_path / FILE, "a") as file:
        file.write('{"question": "x"}\n')
    with pytest.raises(UserError, match=f"{FILE}: line 2: is not an answer; remove the file"):
        KeptAnswers(tmp_path)


def test_a_key_is_of_the_parameters_and_of_all_of_the_request():
    requests = [("likelihood", (1, 2), (3,)), ("likelihood", (1,), (2, 3)), ("writing", (1, 2), (3,))]
    keys = [key_of(parameters, request) for parameters in ("one", "two") for request in requests]
    assert len(set(keys)) == 6 and keys[0] == key_of("one", ("likelihood", [1, 2], [3]))


def test_on_gs(bucket):
    folder = storage.path(str(bucket)) / "measured"
    added(folder, {KEYS[0]: [1]})
    added(folder, {KEYS[1]: [2]})
    kept = KeptAnswers(folder)
    assert kept.found(KEYS[:3]) == [[1], [2], None]
    kept.close()
