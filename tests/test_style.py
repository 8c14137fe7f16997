"""The rules of CONTRIBUTING.md that a program can hold: short functions and files, docstrings, no stray output."""

import ast
import functools
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tpullm").rglob("*.py"))
PRINTING_ALLOWED = ("tpullm/cli/", "tpullm/system/log.py")
JAPANESE = [*ROOT.glob("docs/ja/*.md"), ROOT / "README.ja.md", ROOT / "tpullm/report/ja.yaml"]
JAPANESE += [ROOT / "tpullm" / name for name in ("serving/templates/texts.yaml", "system/ja.yaml", "cli/explain.yaml")]
# The Japanese glossary: what is written, and the other spellings of it.
SPELLINGS = {
    "実行フォルダー": "実行ディレクトリ",
    "正答率": "正解率",
    "コマンド": "動詞を(実行|始め)",
    "…ー": "(トークナイザ|パラメータ|フォルダ|メモリ|ブラウザ|ライブラリ|リポジトリ|アダプタ|サーバ|ユーザ)(?!ー)",
}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def modules() -> dict[str, ast.Module]:
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in FILES}


def found(kind) -> list[tuple[str, ast.AST]]:
    return [(name, node) for name, module in modules().items() for node in ast.walk(module) if isinstance(node, kind)]


def test_functions_and_files_are_short():
    lines = [(node.end_lineno - node.lineno + 1, name, node.name) for name, node in found(FUNCTION)]
    assert statistics.median(count for count, *_ in lines) <= 12
    assert [place for place in lines if place[0] > 80] == []
    assert [path for path in FILES if len(path.read_text("utf-8").splitlines()) > 500] == []


def test_what_is_public_has_a_docstring():
    places = [(name, node) for name, module in modules().items() for node in module.body]
    public = [(name, node) for name, node in places if isinstance(node, (*FUNCTION, ast.ClassDef))]
    without = [(name, node) for name, node in public if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert [name for name, node in without if "overload" not in "".join(map(ast.unparse, node.decorator_list))] == []
    assert [name for name, module in modules().items() if module.body and not ast.get_docstring(module)] == []


def test_only_commands_print():
    calls = [(name, node.lineno) for name, node in found(ast.Call) if getattr(node.func, "id", "") == "print"]
    assert [place for place in calls if not place[0].startswith(PRINTING_ALLOWED)] == []


def test_no_error_is_swallowed():
    """`except: pass` and `except Exception: pass` hide a broken program; a named error may be expected."""
    kinds, nothing = (None, "Exception", "BaseException"), ast.Pass | ast.Continue
    handlers = found(ast.ExceptHandler)
    broad = [(name, node) for name, node in handlers if (node.type and ast.unparse(node.type)) in kinds]
    assert [(name, of.lineno) for name, of in broad if all(isinstance(node, nothing) for node in of.body)] == []


def test_japanese_pages_spell_a_word_in_one_way():
    texts = {path.name: path.read_text("utf-8") for path in JAPANESE}
    found = [
        (name, word, hit[0])
        for name, text in texts.items()
        for word, other in SPELLINGS.items()
        for hit in re.finditer(other, text)
    ]
    assert found == [] and all(word in "".join(texts.values()) for word in SPELLINGS if word != "…ー")
