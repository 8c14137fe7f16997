"""`tpullm collect`: made once, made again when what it read changed."""

import subprocess
import sys
from dataclasses import replace

import pytest

from tests.conftest import ROOT
from tpullm.cli import collect
from tpullm.corpus import document_files, tasks
from tpullm.corpus.files import source_files
from tpullm.recipe.schema import CorpusConfig, Recipe, Source
from tpullm.run import manifest

LINES = [f"{number}番目の日です。今日はいい天気ですね。私はリンゴを{number}個食べました。\n" for number in range(60)]


def _recipe(tmp_path, **settings):
    (tmp_path / "diary.txt").write_text("".join(LINES), encoding="utf-8")
    source = Source("diary", "text", str(tmp_path / "diary.txt"), licence="CC0-1.0", language="ja", filter=False)
    return Recipe(corpus=CorpusConfig(sources=[source], workers=1, **settings))


def test_a_finished_stage_is_skipped_until_what_it_read_changes(tmp_path, capsys):
    recipe, stage = _recipe(tmp_path), tmp_path / "run" / "documents"
    collect.main(recipe, tmp_path / "run")
    names = ["datacard.json", "datacard.md", "manifest.json", "marks", "parts", "parts.json"]
    assert sorted(path.name for path in stage.iterdir()) == names
    printed = capsys.readouterr()
    assert "documents:" in printed.err and printed.out == ""
    identity, made = manifest.finished_identity(stage), (stage / "datacard.json").stat().st_mtime_ns
    weighted = replace(recipe.corpus.sources[0], weight=5.0)
    collect.main(replace(recipe, corpus=replace(recipe.corpus, sources=[weighted], workers=2)), tmp_path / "run")
    assert (stage / "datacard.json").stat().st_mtime_ns == made and "finished, skipped" in capsys.readouterr().err
    with open(tmp_path / "diary.txt", "a", encoding="utf-8") as file:
        file.write("今日は雨でした。\n")
    collect.main(recipe, tmp_path / "run")
    assert (stage / "datacard.json").stat().st_mtime_ns != made and manifest.finished_identity(stage) != identity


def test_halves_that_a_killed_process_left_go(tmp_path):
    recipe, stage = _recipe(tmp_path), tmp_path / "run" / "documents"
    collect.main(recipe, tmp_path / "run")
    places = [stage, stage / "parts", *(stage / "marks").iterdir()]
    assert len(places) == 3
    for place in places:
        (place / ".a.0a.partial").touch()
    (stage / manifest.FILE).unlink()
    collect.main(recipe, tmp_path / "run")
    assert list(stage.rglob("*.partial")) == []


def test_a_process_that_was_interrupted_goes_on_where_it_was(tmp_path, monkeypatch):
    made, real = [], tasks.run

    def counted(task):
        if len(made) == 3:
            made.append("")
            raise KeyboardInterrupt
        made.append(task.result.name)
        real(task)

    monkeypatch.setattr(source_files, "BUNDLE_BYTES", 1)
    monkeypatch.setattr(tasks, "run", counted)
    recipe = _recipe(tmp_path)
    (tmp_path / "diaries").mkdir()
    for number in range(6):
        (tmp_path / "diaries" / f"{number}.txt").write_text("".join(LINES[number * 10 :][:10]), encoding="utf-8")
    source = replace(recipe.corpus.sources[0], path=str(tmp_path / "diaries"))
    recipe = replace(recipe, corpus=replace(recipe.corpus, sources=[source]))
    with pytest.raises(KeyboardInterrupt):
        collect.main(recipe, tmp_path / "run")
    collect.main(recipe, tmp_path / "run")
    parts = [f"{part.key}.json" for part in document_files.parts(tmp_path / "run" / "documents")]
    assert len(made) == len(set(made)) == 7 and set(made) - {""} < set(parts), "and one with what is held out of them"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["documents"]


def test_collecting_imports_neither_jax_nor_what_only_some_files_need():
    program = "import sys, tpullm.cli.collect; print(*{name.split('.')[0] for name in sys.modules})"
    modules = subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT).split()
    assert not {"jax", "datatrove", "pyarrow", "resiliparse", "warcio", "ray"} & set(modules)
