"""Functions to complete, in the form of HumanEval (Chen et al. 2021): a signature and a docstring → the body.

A function combines which values it takes, what it makes of each, and what it returns: "the sum of the squares of the
even numbers". Held out are combinations that tuning never asks for, though it has each part. An answer is right if its
function passes the tests, whatever its text is. The tests are the results of the right function on fixed inputs, and
two functions that they do not tell apart are both left out.

The library's own functions are not asked for: they need the rest of their module, no inputs are known for them, and
they differ between versions of Python.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tpullm.corpus.question import Question, form


@dataclass(frozen=True)
class Part:
    """A part of a function: English words, Japanese words, code, and its word in the function's name."""

    english: str
    japanese: str
    code: str
    name: str = ""


@dataclass(frozen=True)
class Family:
    """Functions of one argument: all combinations of a choice, a change and a result.

    Args:
        argument: the name of the argument.
        each: the name of one value, in code.
        values: code for all values.
        choices: which values it takes; the code is a condition, or "" for all.
        changes: what it makes of each value; the code is an expression.
        results: what it returns; the code has `{values}`, a generator without parentheses.
        inputs: the arguments of the tests. The first makes the example in the docstring.
    """

    argument: str
    each: str
    values: str
    choices: tuple[Part, ...]
    changes: tuple[Part, ...]
    results: tuple[Part, ...]
    inputs: tuple[object, ...]


NUMBERS = Family(
    "numbers",
    "n",
    "numbers",
    (
        Part("the numbers", "数", "", "numbers"),
        Part("the even numbers", "偶数", "n % 2 == 0", "even"),
        Part("the odd numbers", "奇数", "n % 2 == 1", "odd"),
        Part("the positive numbers", "正の数", "n > 0", "positive"),
        Part("the negative numbers", "負の数", "n < 0", "negative"),
        Part("the multiples of 3", "3の倍数", "n % 3 == 0", "threes"),
        Part("the multiples of 5", "5の倍数", "n % 5 == 0", "fives"),
        Part("the numbers above 4", "4より大きい数", "n > 4", "large"),
        Part("the numbers below 4", "4より小さい数", "n < 4", "small"),
        Part("the numbers from 1 to 9", "1から9までの数", "1 <= n <= 9", "digits"),
    ),
    (
        Part("", "", "n"),
        Part("the squares of", "二乗", "n * n", "squares"),
        Part("the cubes of", "三乗", "n ** 3", "cubes"),
        Part("the doubles of", "二倍", "n * 2", "doubles"),
        Part("the opposites of", "符号を変えた値", "-n", "opposites"),
        Part("the absolute values of", "絶対値", "abs(n)", "sizes"),
        Part("the successors of", "次の整数", "n + 1", "successors"),
        Part("the remainders by 7 of", "7で割った余り", "n % 7", "remainders"),
    ),
    (
        Part("a list of", "リスト", "[{values}]", "all"),
        Part("a sorted list of", "昇順のリスト", "sorted({values})", "ascending"),
        Part("the set of", "集合", "set({values})", "distinct"),
        Part("the sum of", "合計", "sum({values})", "total"),
        Part("the largest of", "最大値", "max({values})", "largest"),
        Part("the smallest of", "最小値", "min({values})", "smallest"),
    ),
    (
        [6, -5, 3, 10],
        [5, 8, -3, 10, 6, -4, 1, 8],
        [4, 15, -9, 3, 2, -10, 7],
        [-6, 30, 9, -15, 5, 12, -1, -2],
        [1, -5, 6, 45, -8, -30],
    ),
)
WORDS = Family(
    "text",
    "word",
    "text.split()",
    (
        Part("the words", "単語", "", "words"),
        Part("the words of more than 4 letters", "4文字より長い単語", "len(word) > 4", "long"),
        Part("the words of less than 4 letters", "4文字より短い単語", "len(word) < 4", "short"),
        Part("the words that begin with b", "bで始まる単語", 'word.startswith("b")', "begin_b"),
        Part("the words that end with e", "eで終わる単語", 'word.endswith("e")', "end_e"),
        Part("the words that contain a", "aを含む単語", '"a" in word', "with_a"),
    ),
    (
        Part("", "", "word"),
        Part("the upper case of", "大文字にしたもの", "word.upper()", "upper"),
        Part("the first letters of", "最初の文字", "word[0]", "first"),
        Part("the last letters of", "最後の文字", "word[-1]", "last"),
        Part("the reverses of", "逆順にしたもの", "word[::-1]", "reversed"),
        Part("the lengths of", "長さ", "len(word)", "lengths"),
    ),
    (
        Part("a list of", "リスト", "[{values}]", "all"),
        Part("a sorted list of", "昇順のリスト", "sorted({values})", "ascending"),
        Part("the set of", "集合", "set({values})", "distinct"),
        Part("the largest of", "最大値", "max({values})", "largest"),
        Part("the smallest of", "最小値", "min({values})", "smallest"),
    ),
    (
        "a brave bee",
        "the big blue apple is a bit bare",
        "brave cats be at the same old gate bat",
        "one bad bee ate some late bread and a tree",
        "baboon tie bone an able mango sea be banana",
    ),
)
FAMILIES = (NUMBERS, WORDS)
JAPANESE = "この関数の本体を書いてください。"
FORMS = ("Complete this function.", "Write the body of this function.", "What is missing here?", JAPANESE)


def questions() -> list[Question]:
    """A question for each combination of parts, in a fixed order. Combinations with the same results are left out."""
    made = [(_question(family, *parts), _results(family, *parts)) for family in FAMILIES for parts in _parts(family)]
    often = Counter(results for _, results in made)
    return [question for question, results in made if often[results] == 1]


def _parts(family: Family) -> Iterator[tuple[Part, Part, Part]]:
    return itertools.product(family.choices, family.changes, family.results)


def _body(family: Family, choice: Part, change: Part, result: Part) -> str:
    condition = f" if {choice.code}" if choice.code else ""
    values = f"{change.code} for {family.each} in {family.values}{condition}"
    return f"return {result.code.format(values=values)}"


def _results(family: Family, *parts: Part) -> tuple[str, ...]:
    """What the right function returns for each input, as Python writes it."""
    expression = _body(family, *parts).removeprefix("return ")
    function = eval(f"lambda {family.argument}: {expression}")  # our own words, all of them in this file
    return tuple(_literal(function(given)) for given in family.inputs)


def _literal(value: object) -> str:
    """A value as Python writes it; a set in sorted order, since Python's own order differs from run to run."""
    return f"{{{', '.join(map(repr, sorted(value)))}}}" if isinstance(value, set) else repr(value)


def _question(family: Family, choice: Part, change: Part, result: Part) -> Question:
    name = "_".join(part.name for part in (result, change, choice) if part.name)
    results = _results(family, choice, change, result)
    calls = [f"{name}({given!r})" for given in family.inputs]
    asked = form(FORMS, name)
    if asked == JAPANESE:
        what = "の".join(part.japanese for part in (choice, change, result) if part.japanese)
        says = f"{family.argument}の{what}を返す。"
    else:
        what = " ".join(part.english for part in (result, change, choice) if part.english)
        says = f"Return {what} in {family.argument}."
    prompt = f'def {name}({family.argument}):\n    """{says}\n\n    >>> {calls[0]}\n    {results[0]}\n    """\n'
    tests = "".join(f"assert {call} == {value}\n" for call, value in zip(calls, results, strict=True))
    fields = {"prompt": prompt, "tests": tests}
    return Question(f"{asked}\n\n{prompt}", (_body(family, choice, change, result),), "completion", name, fields)
