"""Sources: what is refused before anything is read."""

import dataclasses

import pytest

from tpullm.corpus import sources
from tpullm.recipe.schema import CorpusConfig, Recipe, Source
from tpullm.system.errors import UserError


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source("a", "text", "."), "a has no licence; the data card"),
        (Source("a", "text", licence="CC0-1.0"), "a has no path"),
        (Source("a", "text", "nowhere", licence="CC0-1.0"), "nowhere: no such file or folder"),
        (Source("a", "text", ".", "nowhere", licence="CC0-1.0"), "nowhere: no such file or folder"),
        (Source("a/b", "text", ".", licence="CC0-1.0"), "cannot be a folder's name"),
        (Source("a", "tenki", licence="Apache-2.0"), "documents must say how many"),
        (Source("a", "text", ".", licence="CC0-1.0", language="jp"), "a: language: jp cannot be .* did you mean ja"),
        (Source("a", "text", ".", licence="CC0-1.0", language="tlh"), "a: language: tlh cannot be .* leave it out"),
    ],
)
def test_what_is_refused(source, message):
    with pytest.raises(UserError, match=message) as error:
        sources.check([source])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [{"language": "code"}, {"language": "bn"}, {"language": "tlh", "filter": False}])
def test_a_language_has_to_be_known_only_where_texts_are_filtered_by_it(settings):
    sources.check([Source("a", "text", ".", licence="CC0-1.0", **settings)])


def test_no_source_is_refused():
    with pytest.raises(UserError, match="--text"):
        sources.check([])


def test_your_own_text_is_a_source_of_its_own_and_a_third_of_the_training():
    others = [Source("a", "text", ".", licence="CC0-1.0", weight=3.0), Source("b", "text", ".", licence="CC0-1.0")]
    recipe = Recipe(text="notes", corpus=CorpusConfig(sources=others))
    *rest, own = sources.sources(recipe)
    assert rest == others
    assert (own.name, own.path, own.licence, own.filter, own.weight) == ("yours", "notes", "your own", False, 2.0)
    assert sources.sources(Recipe(text="notes"))[0].weight == 1.0
    taken = dataclasses.replace(others[0], name="yours")
    with pytest.raises(UserError, match="the name yours is taken"):
        sources.sources(Recipe(text="notes", corpus=CorpusConfig(sources=[taken])))
