"""Docstrings: what a function of the running Python does, in the one sentence of its documentation (PSF licence).

Questions ask what a function, class or method does; the answer is the first sentence of its docstring. Those of the
library are read from its files, and nothing of it is imported. The built-in types and functions have no file, and are
there in every Python. An answer is judged by its form too: a docstring says what happens, in one imperative sentence
that ends with a full stop (PEP 257).
"""

import ast
import builtins
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from tpullm.corpus.domains import programming
from tpullm.corpus.domains.packages import wording
from tpullm.corpus.question import Question, form_by_hash, questions_of_lowest_hashes

MOST = 625  # questions: four in five of them are about 500
LENGTHS = range(20, 121)  # characters of a sentence
SENTENCE = re.compile(r".+?[.](?=\s|$)")
VERBS = frozenset(wording("docstrings")["verbs"].split())

# What such a sentence looks like: by name, whether an answer keeps a rule.
RULES: Mapping[str, Callable[[str], bool]] = {
    "one sentence": lambda said: re.search(r"[.!?:]\s|\n", said.strip()) is None,
    "begins with a verb": lambda said: said.strip().partition(" ")[0] in VERBS,
    "ends with a full stop": lambda said: said.strip().endswith("."),
    "20 to 120 characters": lambda said: len(said.strip()) in LENGTHS,
}


def questions() -> list[Question]:
    """The questions of the lowest hashes. None is about a name that is defined twice, or whose sentence others have."""
    found = [*_of_builtins(), *_of_library()]
    named = Counter(name for name, _ in found)
    said = Counter(sentence.lower() for _, sentence in found)
    asked = (
        Question(form_by_hash(wording("docstrings")["forms"], name).format(name), (sentence,), "docstring", name)
        for name, sentence in found
        if named[name] == said[sentence.lower()] == 1
        and sentence.isascii()
        and all(r(sentence) for r in RULES.values())
    )
    return questions_of_lowest_hashes(asked, MOST)


def first_sentence(docstring: str | None) -> str:
    """The first sentence of the first paragraph, on one line; "" if there is none."""
    paragraph = " ".join(inspect.cleandoc(docstring or "").partition("\n\n")[0].split())
    sentence = SENTENCE.match(paragraph)
    return sentence[0] if sentence else ""


def _of_builtins() -> Iterator[tuple[str, str]]:
    """The names and sentences of built-in functions, and of the methods of built-in types."""
    for name, value in sorted(vars(builtins).items()):
        if name.startswith("_") or not callable(value) or isinstance(value, type) and issubclass(value, BaseException):
            continue
        if type(value).__module__ == "builtins":  # `site` adds others: exit, help, license
            yield name, first_sentence(value.__doc__)
        for method, of in sorted(vars(value).items()) if isinstance(value, type) else ():
            if not method.startswith("_") and inspect.isroutine(of) and not isinstance(of, staticmethod):
                yield f"{name}.{method}", first_sentence(of.__doc__)


def _of_library() -> Iterator[tuple[str, str]]:
    """The names and sentences of the public functions, classes and methods of well-known modules."""
    known, public = set(wording("docstrings")["modules"].split()), wording("docstrings")["public"]
    for path in programming.files(programming.CODE):
        module = programming.module_name(path)
        if module in known or module in public:
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
            yield from _below(tree, public.get(module, module))


def _below(scope: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    for node in scope.body:
        is_class = isinstance(node, ast.ClassDef)
        if (is_class or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield f"{name}.{node.name}", first_sentence(ast.get_docstring(node))
            if is_class:
                yield from _below(node, f"{name}.{node.name}")
