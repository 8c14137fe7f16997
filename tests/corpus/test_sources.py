"""Sources are checked, and they and their parts are known by what their documents depend on."""

import ast
import dataclasses
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.corpus.test_source_files import _write
from tpullm.corpus import sources, tenki
from tpullm.corpus.files.desktop import extra
from tpullm.corpus.files.source_files import File
from tpullm.recipe.schema import CorpusConfig, Recipe, Source
from tpullm.system.errors import UserError

REFUSED = {
    "a has no licence; the data card": {"licence": ""},
    "a has no path": {"path": ""},
    "nowhere: no such file or folder": {"path": "nowhere"},
    "elsewhere: no such file or folder": {"held_out": "elsewhere"},
    "cannot be a folder's name": {"name": "a/b"},
    "documents must say how many": {"kind": "tenki"},
    "a: language: jp cannot be .* did you mean ja": {"language": "jp"},
    "a: language: tlh cannot be .* leave it out": {"language": "tlh"},
    "there is none; .*--text": None,
}


def test_what_is_refused():
    fine = Source("a", "text", ".", licence="CC0-1.0")
    for message, changes in REFUSED.items():
        with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
            sources.check([] if changes is None else [dataclasses.replace(fine, **changes)])
    # A language has to be known only where texts are filtered by it.
    for settings in ({"language": "code"}, {"language": "bn"}, {"language": "tlh", "filter": False}):
        sources.check([dataclasses.replace(fine, **settings)])


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


def test_the_fingerprint_follows_the_content_of_held_out_files_too(tmp_path):
    _write(tmp_path, "a.txt", "b.txt")
    source = Source("s", "text", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    before = sources.upstream([source])
    Path(tmp_path, "a.txt").touch()
    assert sources.upstream([source]) == before and len(before["s"]) == 2
    for name in ("a.txt", "b.txt"):
        Path(tmp_path, name).write_text("changed")
        assert sources.upstream([source]) != before
        before = sources.upstream([source])
    # What is not a file is known by its version or its address.
    url = "https://example.com/a.txt"
    found = [Source("t", "tenki", documents=9), Source("p", "python"), Source("u", "text", url, url)]
    expected = {"tenki": tenki.VERSION, "python": platform.python_version(), "u": [url, url]}
    assert sources.upstream(found) == expected


def test_a_large_file_is_known_by_its_size_and_time(tmp_path, monkeypatch):
    """Hashing it takes seconds, at each start."""
    monkeypatch.setattr(sources, "HASHED_BYTES", 10)
    for size, is_hashed in ((10, True), (11, False)):
        path = tmp_path / f"{size}.txt"
        path.write_text("x" * size)
        os.utime(path, ns=(5, 7))
        ((identity,),) = (found.values() for found in sources.upstream([Source("s", "text", str(path))])["s"])
        assert identity == f"{size} bytes at 7" if not is_hashed else len(identity) == 64


CONFIG = CorpusConfig()


def named(folder, source=None, config=CONFIG, seed=0, text="本を読む。", **file):
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text(text, encoding="utf-8")
    source = source or source_of(folder)
    files = [File(folder / "a.txt", "text", (folder / "a.txt").stat().st_size, **file)]
    return sources.part_key(source, files, config, seed)


def source_of(folder, **settings):
    return Source("s", "files", str(folder), licence="CC0-1.0", **settings)


def test_a_name_is_the_same_wherever_the_files_are(tmp_path):
    one = named(tmp_path / "one")
    assert len(one) == 32 and named(tmp_path / "two") == one == named(tmp_path / "one", seed=9)
    shutil.rmtree(tmp_path / "one")
    assert named(tmp_path / "one") == one
    for change in ({"text": "本を読んだ。"}, {"held_out": True}, {"is_part": True}):
        assert named(tmp_path / "one", **change) != one


@pytest.mark.parametrize(
    ("source", "changed", "settings", "is_other"),
    [
        ({}, {"name": "t"}, {}, True),
        ({}, {"licence": "MIT"}, {}, True),
        ({}, {"language": "ja"}, {}, True),
        ({}, {"filter": False}, {}, True),
        ({}, {"deduplicate": False}, {}, True),
        ({}, {"documents": 3}, {}, True),
        ({}, {"weight": 3.0}, {}, False),
        ({}, {"bytes": 10**6}, {}, False),  # the files say how much of them is read
        ({}, {"held_out": "b"}, {}, False),
        ({}, {}, {"maximum_characters": 99}, True),
        ({}, {}, {"near_duplicates": False}, True),
        ({}, {}, {"minimum_characters": 99}, True),
        ({"filter": False}, {}, {"minimum_characters": 99}, False),
        ({}, {}, {"repeated_lines": 5}, False),  # the lines are there for near copies
        ({}, {}, {"held_out_fraction": 0.5}, False),
        ({"deduplicate": False}, {}, {"held_out_fraction": 0.5}, True),  # what is held out is signed there, and no more
        ({}, {}, {"workers": 5}, False),
    ],
)
def test_a_setting_counts_if_it_changes_documents(tmp_path, source, changed, settings, is_other):
    made = source_of(tmp_path / "a", **source)
    other = named(tmp_path / "a", dataclasses.replace(made, **changed), dataclasses.replace(CONFIG, **settings))
    assert (other != named(tmp_path / "a", made)) is is_other


def test_in_how_many_documents_a_line_may_stand_counts_for_no_part_and_the_seed_for_what_is_generated(tmp_path):
    keys = {named(tmp_path / "a", config=dataclasses.replace(CONFIG, repeated_lines=most)) for most in (1, 5, 9)}
    assert len(keys) == 1
    source = Source("t", "tenki", documents=3, licence="Apache-2.0")
    keys = [sources.part_key(source, [], CONFIG, seed) for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


def test_code_counts_and_what_is_written_about_it_does_not(tmp_path):
    path = tmp_path / "a.py"

    def meaning(code):
        path.write_text(code)
        return sources._code_without_comments(path)

    code = 'def f(x):\n    """Say x."""\n    return x + 1\n'
    assert meaning(code) == meaning("# new\n" + code.replace("Say x", "Say it").replace("x + 1", "(x+1)"))
    assert meaning(code) != meaning(code.replace("1", "2"))
    # What comes after a part or plans it has no part in it. Each is a module, so that a renamed one is not forgotten.
    folder = sources.Path(sources.__file__).parent
    assert all(len(list(folder.rglob(f"{name}.py"))) == 1 for name in sources._AFTERWARDS)
    assert set(sources.code_identity()) == {"tpullm.corpus", "unicode", *sources.LIBRARIES, *extra.versions()}


def test_the_version_of_each_library_that_makes_parts_counts():
    """Where another version finds other phone numbers or languages, the parts are made again."""
    imported, folder = set(), sources.Path(sources.__file__).parent
    for path in folder.rglob("*.py"):
        if path.stem not in sources._AFTERWARDS:
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
                imported |= {name.partition(".")[0] for name in names}
    others = imported - set(sys.stdlib_module_names) - {"tpullm", "numpy", "yaml"}  # these two change no document
    packages = metadata.packages_distributions()
    named = {name.lower().replace("_", "-") for name in sources.LIBRARIES}
    assert [name for name in sorted(others) if named.isdisjoint(one.lower() for one in packages[name])] == []
