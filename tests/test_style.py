"""The rules of CONTRIBUTING.md that a program can hold: short functions and files, docstrings, no stray output."""

import ast
import functools
import re
import statistics
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tpullm").rglob("*.py"))
PRINTING_ALLOWED = ("tpullm/cli/", "tpullm/system/log.py")
JAPANESE = [*ROOT.glob("docs/ja/*.md"), *ROOT.glob("docs/*.ipynb"), ROOT / "README.ja.md"]
JAPANESE += [ROOT / "tpullm" / name for name in ("report/ja.yaml", "serving/templates/texts.yaml", "system/ja.yaml")]
JAPANESE += [ROOT / "tpullm/cli/explain.yaml"]
# The Japanese glossary: the term, what is written for it, and what is not.
GLOSSARY = {
    "activations": ("活性値", "アクティベーション"),
    "chat template": ("チャットテンプレート", "(会話|対話)テンプレート"),
    "context": ("コンテキスト", "文脈"),
    "CPU time": ("CPU時間", "プロセッサー?時間"),
    "default": ("既定", "デフォルト"),
    "distillation": ("蒸留", "ディスティレーション"),
    "embedding": ("埋め込み", "エンベディング"),
    "estimate": ("見積もり", "見積り"),
    "expert": ("エキスパート", "専門家（experts）"),
    "export": ("書き出", "エクスポート[しす]"),
    "extra": ("追加機能", "追加パッケージ|エクストラ|（extra"),
    "fine-tuning": ("チューニング", "微調整|調律"),
    "held-out": ("評価用", "(ヘルド|ホールド)アウト"),
    "matmul": ("行列積", "行列乗算|行列の積"),
    "normalization": ("正規化", "ノルム、バイアス"),
    "one": ("1つ", r'(?<![一"])[一二三]つ(?!ひとつ)'),
    "loss": ("損失", "損失関数値|ロス値"),
    "lr": ("学習率", "ラーニングレート|訓練率"),
    "output layer": ("出力層", "出力ヘッド"),
    "pretraining": ("事前学習", "事前訓練|プレトレーニング"),
    "quantization": ("量子化", "クオンタイズ"),
    "right answers": ("正答率", "正解率"),
    "reward": ("報酬", "リワード"),
    "run directory": ("実行フォルダー", "ディレクトリ"),
    "special token": ("特殊トークン", "特別なトークン|スペシャルトークン"),
    "stage": ("段階", "ステージ"),
    "task": ("課題", "(プログラミング|harness)のタスク|タスクの(指|名)"),
    "tokenization": ("トークン化", "トークナイズ"),
    "tokenizer": ("トークナイザー", "トークナイザ(?!ー)|分かち書き器"),
    "training": ("学習", "(?<!事前)訓練|トレーニング"),
    "verb": ("コマンド", "動詞を(実行|始め)"),
    "vocabulary": ("語彙", "ボキャブラリー?"),
    "web page": ("Web", "ウェブ"),
}
LONG = """
    アダプタ コンテナ コンパイラ コンピュータ サーバ スケジューラ デコーダ ドライバ パラメータ バッファ フォルダ
    ブラウザ プロセッサ ヘッダ メモリ ユーザ ライブラリ リポジトリ ルータ オプティマイザ
""".split()
SPELLINGS = dict(GLOSSARY.values()) | {"サーバー": f"({'|'.join(LONG)})(?!ー)"}
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


def test_japanese_has_one_word_for_a_thing():
    texts = {path.name: path.read_text("utf-8") for path in JAPANESE}
    found = [
        (name, word, hit[0])
        for name, text in texts.items()
        for word, other in SPELLINGS.items()
        for hit in re.finditer(other, text)
    ]
    assert found == [] and [word for word in SPELLINGS if word not in "".join(texts.values())] == []


def test_the_glossary_is_what_explain_says():
    """Of the terms that are in both."""
    explained = yaml.safe_load((ROOT / "tpullm/cli/explain.yaml").read_text("utf-8"))
    both = {term: word for term, (word, _) in GLOSSARY.items() if term in explained}
    assert len(both) > 5 and [term for term, word in both.items() if word not in explained[term]["name"]] == []
