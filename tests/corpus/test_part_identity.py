"""A part has another name if and only if what its documents depend on changed."""

import dataclasses
import shutil

import pytest

from tpullm.corpus import sources
from tpullm.corpus.files.source_files import File
from tpullm.recipe.schema import CorpusConfig, Source

CONFIG = CorpusConfig()


def named(folder, source=None, config=CONFIG, seed=0, text="本を読む。", **file):
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text(text, encoding="utf-8")
    source = source or source_of(folder)
    files = [File(folder / "a.txt", "text", (folder / "a.txt").stat().st_size, **file)]
    return sources.key(source, files, config, seed)


def source_of(folder, **settings):
    return Source("s", "files", str(folder), licence="CC0-1.0", **settings)


def test_a_name_is_the_same_wherever_the_files_are(tmp_path):
    one = named(tmp_path / "one")
    assert len(one) == 32 and named(tmp_path / "two") == one == named(tmp_path / "one", seed=9)
    shutil.rmtree(tmp_path / "one")
    assert named(tmp_path / "one") == one


@pytest.mark.parametrize("change", [{"text": "本を読んだ。"}, {"held_out": True}, {"is_part": True}])
def test_another_file_is_another_part(tmp_path, change):
    assert named(tmp_path / "a") != named(tmp_path / "a", **change)


@pytest.mark.parametrize(
    ("settings", "is_other"),
    [
        ({"name": "t"}, True),
        ({"licence": "MIT"}, True),
        ({"language": "ja"}, True),
        ({"filter": False}, True),
        ({"deduplicate": False}, True),
        ({"documents": 3}, True),
        ({"weight": 3.0}, False),
        ({"bytes": 10**6}, False),  # the files say how much of them is read
        ({"held_out": "b"}, False),
    ],
)
def test_a_setting_of_a_source_counts_if_it_changes_documents(tmp_path, settings, is_other):
    source = source_of(tmp_path / "a")
    other = named(tmp_path / "a", dataclasses.replace(source, **settings))
    assert (other != named(tmp_path / "a", source)) is is_other


@pytest.mark.parametrize(
    ("source", "settings", "is_other"),
    [
        ({}, {"maximum_characters": 99}, True),
        ({}, {"near_duplicates": False}, True),
        ({}, {"minimum_characters": 99}, True),
        ({"filter": False}, {"minimum_characters": 99}, False),
        ({}, {"repeated_lines": 5}, True),
        ({"filter": False}, {"repeated_lines": 5}, False),
        ({"deduplicate": False}, {"repeated_lines": 5}, False),
        ({}, {"held_out_fraction": 0.5}, False),
        ({"deduplicate": False}, {"held_out_fraction": 0.5}, True),  # what is held out is signed there, and no more
        ({}, {"workers": 5}, False),
    ],
)
def test_a_setting_of_collect_counts_where_it_is_used(tmp_path, source, settings, is_other):
    made = source_of(tmp_path / "a", **source)
    other = named(tmp_path / "a", made, dataclasses.replace(CONFIG, **settings))
    assert (other != named(tmp_path / "a", made)) is is_other


def test_in_how_many_documents_a_line_may_stand_counts_for_no_part(tmp_path):
    keys = {named(tmp_path / "a", config=dataclasses.replace(CONFIG, repeated_lines=most)) for most in (1, 5, 9)}
    assert len(keys) == 1


def test_the_seed_counts_for_what_is_generated():
    source = Source("t", "tenki", documents=3, licence="Apache-2.0")
    keys = [sources.key(source, [], CONFIG, seed) for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


def test_code_counts_and_what_is_written_about_it_does_not(tmp_path):
    path = tmp_path / "a.py"

    def meaning(code):
        path.write_text(code)
        return sources._meaning(path)

    code = 'def f(x):\n    """Say x."""\n    return x + 1\n'
    assert meaning(code) == meaning("# new\n" + code.replace("Say x", "Say it").replace("x + 1", "(x+1)"))
    assert meaning(code) != meaning(code.replace("1", "2"))


def test_what_comes_after_a_part_or_plans_it_has_no_part_in_it():
    """Each name is a module of the folder, so that a renamed one is not forgotten."""
    folder = sources.Path(sources.__file__).parent
    assert all(len(list(folder.rglob(f"{name}.py"))) == 1 for name in sources._AFTERWARDS)
    assert set(sources.code()) == {"tpullm.corpus", "unicode", *sources.LIBRARIES}
