"""The sources of a recipe, and the checks of what they say."""

import re

from tpullm import storage
from tpullm.corpus import domains, language_detection
from tpullm.corpus.files import download
from tpullm.errors import UserError
from tpullm.recipe.schema import Recipe, Source

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
    yours = Source(
        YOURS, "files", recipe.text, licence="your own", weight=weight, bytes=recipe.text_bytes, filter=False
    )
    return [*named, yours]


def check(found: list[Source]) -> None:
    """Refuse sources that cannot be read or should not be used; `UserError` names the source and the key."""
    if not found:
        raise UserError(
            "corpus.sources: there is none; name at least one, or give your own text with --text FILE_OR_FOLDER"
        )
    for source in found:
        _check_source(source)


def _check_source(source: Source) -> None:
    where = f"corpus.sources: {source.name}"
    if not re.fullmatch(r"\w[\w.-]*", source.name):
        raise UserError(f"{where!r} cannot be a folder's name; use letters, digits, - and _ only")
    if not source.licence.strip():
        raise UserError(
            f"{where} has no licence; the data card and the model card of everything trained on it must name it; "
            "write for example licence: CC-BY-4.0"
        )
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
            if not download.is_url(path) and not storage.path(path).exists():
                raise UserError(f"{where}: {path}: no such file or folder; correct the path")
