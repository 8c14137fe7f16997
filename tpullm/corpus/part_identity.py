"""What a part of the documents depends on, so that a part is made again if and only if that changed."""

import ast
import functools
import unicodedata
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tpullm import storage
from tpullm.corpus import domains, lines, source_hashes, tenki
from tpullm.corpus.files.source_files import File, name_of
from tpullm.recipe.schema import CorpusConfig, Source

LIBRARIES = (
    *("datatrove", "trafilatura", "lxml", "webencodings", "brotli", "pyarrow", "babel", "py3langid", "hojichar"),
    *("sudachipy", "sudachidict_small"),
)
# Keys of a source that change none of its documents by themselves: the files say it, or the whole corpus.
_OF_THE_WHOLE = ("path", "held_out", "weight", "bytes", "max_bad")
# Modules of this folder that have no part in making a part: they plan parts, or come after them.
_AFTERWARDS = (
    "bad_documents collect datacard datacard_counts datacard_markdown download leak_records marking part_identity "
    "parts range_files reasons reduce repeated_lines selection stretches tracing"
).split()


def key(source: Source, files: Sequence[File], config: CorpusConfig, seed: int, windows: str = "") -> str:
    """The name of a part: 32 hexadecimal digits, the hash of all that its documents depend on.

    Args:
        windows: the identity of the windows of questions that they are searched for; "" if there are none.
    """
    read = [
        (name_of(file, source), source_hashes.of_file(file.path), file.bytes, file.is_part, file.held_out)
        + (file.start, file.stop)
        for file in files
    ]
    settings = {name: value for name, value in vars(source).items() if name not in _OF_THE_WHOLE}
    parts = {"source": settings, "files": read, "config": _settings(source, config), "code": code()}
    if windows:
        parts |= {"leaks": [windows, config.leaks.drop]}
    if source.kind == "tenki":
        parts |= {"tenki": tenki.VERSION, "seed": seed}
    if source.kind in domains.SOURCES:
        parts |= {"domain": [source.path, domains.identity(source.kind, source.path)]}
    return storage.hash_json(parts)[:32]


def _settings(source: Source, config: CorpusConfig) -> dict[str, Any]:
    """The settings of collect that change documents of this source."""
    names = ["maximum_characters", "near_duplicates"]
    names += ["minimum_characters"] if source.filter else []
    names += [] if source.deduplicate else ["held_out_fraction"]
    settings = {name: getattr(config, name) for name in [*names, "licences"]}
    settings["lines"] = lines.are_kept(source, config)
    settings["opted_out"] = source_hashes.at(*config.opted_out)
    if source.filter and "classifier" in source.rules:
        examples = source_hashes.at(config.classifier.good, config.classifier.bad)
        settings["classifier"] = [examples, config.classifier.threshold]
    return settings


@functools.cache
def code() -> dict[str, str]:
    """The code that makes parts, as a hash, and the versions of the libraries that it calls.

    Comments, docstrings and formatting do not count. Python does: its tables of Unicode decide what a letter is.
    """
    folder = Path(__file__).parent
    paths = [path for path in sorted(folder.rglob("*.py")) if path.stem not in _AFTERWARDS]
    trees = {str(path.relative_to(folder)): _meaning(path) for path in paths}
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {"tpullm.corpus": storage.hash_json(trees)[:16], "unicode": unicodedata.unidata_version, **versions}


def _meaning(path: Path) -> str:
    """A Python file without comments, docstrings and formatting."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)
