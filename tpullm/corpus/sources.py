"""The sources of a recipe: checks of what they say, and identities of what their documents depend on.

`upstream` has hashes of everything that the documents depend on beside the recipe. When one changes, `collect` runs
again. `key` names a part by all that it depends on, so it is made again if and only if that changed.
"""

import ast
import functools
import platform
import re
import unicodedata
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tpullm.corpus import domains, language_detection, tenki
from tpullm.corpus.files import kinds, source_files
from tpullm.corpus.files.desktop import extra
from tpullm.corpus.files.source_files import File, name_of
from tpullm.recipe.schema import CorpusConfig, Recipe, Source
from tpullm.system import storage
from tpullm.system.errors import UserError

YOURS = "yours"


def sources(recipe: Recipe) -> list[Source]:
    """The sources of the recipe and, if `text` is set, the user's own text as a source named `yours`.

    The user's own text gets a third of the training tokens (half the weight of all other sources). It is not filtered,
    however short it is: only empty, unreadable and duplicate documents are dropped.
    """
    named = list(recipe.corpus.sources)
    if not recipe.text:
        return named
    if any(source.name == YOURS for source in named):
        raise UserError(f"corpus.sources: the name {YOURS} is taken by your own text ({recipe.text}); choose another")
    weight = sum(source.weight for source in named) / 2 or 1.0
    own = {"licence": "your own", "weight": weight, "bytes": recipe.text_bytes, "filter": False}
    own |= {"text_key": recipe.text_key, "assistant": recipe.text_assistant}
    return [*named, Source(YOURS, "files", recipe.text, **own)]


def check(found: list[Source]) -> None:
    """Refuse sources that cannot be read or should not be used; `UserError` names the source and the key."""
    if not found:
        advice = "name at least one, or give your own text with --text FILE_OR_FOLDER"
        raise UserError(f"corpus.sources: there is none; {advice}")
    for source in found:
        where = f"corpus.sources: {source.name}"
        if not re.fullmatch(r"\w[\w.-]*", source.name):
            raise UserError(f"{where!r} cannot be a folder's name; use letters, digits, - and _ only")
        if not source.licence.strip():
            cards = "the data card and the model card of everything trained on it"
            raise UserError(f"{where} has no licence; {cards} must name it; write for example licence: CC-BY-4.0")
        if source.filter and source.language not in ("", "code"):
            language_detection.check(source.language, f"{where}: language")
        if source.kind == "tenki" and source.documents <= 0:
            raise UserError(f"{where}: documents must say how many to generate, for example documents: 20000")
        if source.kind in domains.SOURCES:
            domains.files(source.kind, source.path)
        elif source.kind not in ("tenki", "python"):
            if not source.path:
                raise UserError(f"{where} has no path; write the file, folder or URL to read")
            for path in filter(None, (source.path, source.held_out)):
                if not source_files.is_url(path) and not storage.path(path).exists():
                    if set(str(path)) & set("*?["):
                        raise UserError(f"{where}: {path}: patterns are not read; name a folder, or a file")
                    raise UserError(f"{where}: {path}: no such file or folder; correct the path")


HASHED_BYTES = 1 << 30  # of a larger file, size and time are compared: hashing it takes seconds at each start


def upstream(found: list[Source]) -> dict[str, Any]:
    """Hashes of local files, and the versions of Python, of packages and of tenki, as far as the sources use them.

    tenki is named by `tenki.VERSION` and not by the hash of its source files: a changed comment changes no document.
    """
    hashes: dict[str, Any] = {}
    for source in found:
        if source.kind == "python":
            hashes["python"] = platform.python_version()
        elif source.kind == "tenki":
            hashes["tenki"] = tenki.VERSION
        elif source.kind in domains.SOURCES:
            hashes |= domains.identity(source.kind, source.path)
        else:
            hashes[source.name] = hashes_at(source.path, source.held_out)
            if source.kind == "files" and _needs_extra(hashes[source.name]):
                hashes["documents"] = extra.versions()
    return hashes


def _needs_extra(hashes: Sequence[Any]) -> bool:
    """Whether a library of the extra `documents` may read some of the files: it may be installed later."""
    names = [name for found in hashes for name in ([found] if isinstance(found, str) else found)]
    ends = {ending for kind in (*extra.LIBRARIES, "zip") for ending in kinds.DESKTOP[kind]} | {""}
    return any(source_files.extension(Path(name)) in ends for name in names)


def hashes_at(*locations: str) -> list[Any]:
    """The hashes of the files at some locations. A URL stands for itself, since its file is downloaded once."""
    hashes: list[Any] = []
    for location in filter(None, locations):
        if source_files.is_url(location):
            hashes.append(location)
            continue
        path = storage.path(location)
        found = [(path, path.stat())] if path.is_file() else source_files.files_below(path)
        looked = ((file, status or source_files.status_of(file)) for file, status in found)
        own = ((str(file.relative_to(path)), _identity_by_status(file, status)) for file, status in looked if status)
        hashes.append({source_files.printable(name): identity for name, identity in own})
    return hashes


def _identity_by_status(path: Path, status: Any) -> str:
    if storage.is_remote(path):  # without reading it
        return f"{status.st_size} bytes, {status.digest}"
    if status.st_size > HASHED_BYTES:
        return f"{status.st_size} bytes at {status.st_mtime_ns}"
    return _remembered_file_hash(path, status.st_size, status.st_mtime_ns)


def file_identity(path: Path) -> str:
    """The identity of one file: its hash, or its size and time where that is quicker."""
    return _identity_by_status(path, _remote_files(path.parent)[path.name] if storage.is_remote(path) else path.stat())


_remote_files = functools.cache(lambda folder: storage.remote().files(folder))
# A file is read once by a process while its size and time are the same.
_remembered_file_hash = functools.cache(lambda path, size, time: storage.hash_file(path))

_WEB = "datatrove resiliparse lxml webencodings brotli"
_PERSONAL_DATA = "phonenumbers python-stdnum tld"
LIBRARIES = f"{_WEB} {_PERSONAL_DATA} pyarrow babel py3langid hojichar sudachipy sudachidict_small".split()
# Keys of a source that change none of its documents by themselves: the files say it, or the whole corpus.
_OF_THE_WHOLE = ("path", "held_out", "weight", "bytes", "max_bad")
# Modules of this room that have no part in making a part: they plan parts, or come after them.
_AFTERWARDS = "collect datacard law_questions near_copies reduce repeated_lines sources told tracing".split()


def part_key(source: Source, files: Sequence[File], config: CorpusConfig, seed: int, windows: str = "") -> str:
    """The name of a part: 32 hexadecimal digits, the hash of all that its documents depend on.

    Args:
        windows: the identity of the windows of questions that they are searched for; "" if there are none.
    """
    read = [
        (name_of(file, source), file_identity(file.path), file.bytes, file.is_part, file.held_out)
        + (file.start, file.stop)
        for file in files
    ]
    settings = {name: value for name, value in vars(source).items() if name not in _OF_THE_WHOLE}
    # The settings of collect that change documents of this source.
    names = ["maximum_characters", "near_duplicates", "licences"]
    names += ["minimum_characters"] if source.filter else []
    names += [] if source.deduplicate else ["held_out_fraction"]
    own = {name: getattr(config, name) for name in names}
    own["lines"] = config.near_duplicates or config.repeated_lines > 0
    own["opted_out"] = hashes_at(*config.opted_out)
    if source.filter and "classifier" in source.rules:
        examples = hashes_at(config.classifier.good, config.classifier.bad)
        own["classifier"] = [examples, config.classifier.threshold]
    parts = {"source": settings, "files": read, "config": own, "code": code_identity()}
    if windows:
        parts |= {"leaks": [windows, config.leaks.drop]}
    if source.kind == "tenki":
        parts |= {"tenki": tenki.VERSION, "seed": seed}
    if source.kind in domains.SOURCES:
        parts |= {"domain": [source.path, domains.identity(source.kind, source.path)]}
    return storage.hash_json(parts)[:32]


@functools.cache
def code_identity() -> dict[str, str]:
    """The code that makes parts and its tables, as a hash, and the versions of the libraries that it calls.

    Comments, docstrings and formatting do not count. Python does: its tables of Unicode decide what a letter is.
    """
    folder = Path(__file__).parent
    paths = [path for path in sorted(folder.rglob("*.py")) if path.stem not in _AFTERWARDS]
    trees = {str(path.relative_to(folder)): _code_without_comments(path) for path in paths}
    tables = {name: (folder / name).read_text(encoding="utf-8") for name in ("filters/words.yaml", "languages.yaml")}
    versions = {name: metadata.version(name) for name in LIBRARIES}
    versions |= extra.versions()
    return {"tpullm.corpus": storage.hash_json(trees | tables)[:16], "unicode": unicodedata.unidata_version, **versions}


def _code_without_comments(path: Path) -> str:
    """A Python file without comments, docstrings and formatting."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)
