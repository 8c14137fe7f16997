"""Step 1 as a whole: what comes out, that it is the same each time, and that it is whole or not there."""

import dataclasses
import json
import random

import pytest

from tpullm.cli import collect as command
from tpullm.corpus import collect, document_files, tasks
from tpullm.corpus.files import source_files
from tpullm.recipe.schema import CorpusConfig, Recipe, Source
from tpullm.run import manifest
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.storage import gcs

PLACES = "東京 大阪 京都 札幌 福岡 仙台 広島 奈良 長崎 金沢 新潟 静岡".split()
THINGS = "リンゴ 本 水 魚 肉 野菜 手紙 写真 地図 切符 時計 傘 椅子 鞄 花".split()


def _story(number):
    """A document unlike each other one."""
    return "\n".join(
        f"{number + line}番目に{PLACES[(number * 7 + line) % 12]}で{THINGS[(number * 11 + line * 5) % 15]}を"
        f"{number * 31 + line * 17}個買いました。"
        for line in range(5)
    )


def _write(path, texts):
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def _source(path, name="stories", **settings):
    return Source(name, "jsonl", str(path), licence="CC0-1.0", language="ja", **settings)


def _recipe(*sources, **settings):
    return Recipe(corpus=CorpusConfig(sources=list(sources), **{"workers": 1, "held_out_fraction": 0.1, **settings}))


def _collect(recipe, folder):
    command.main(recipe, folder)
    return json.loads((folder / "documents" / "datacard.json").read_text(encoding="utf-8"))


def _texts(folder, split, name="stories"):
    return [document["text"] for document in document_files.read(folder / "documents", name, split)]


def _bytes(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != manifest.FILE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_every_document_comes_out_once_with_its_facts(tmp_path):
    texts = [_story(number) for number in range(200)]
    card = _collect(_recipe(_source(_write(tmp_path / "a.jsonl", texts))), tmp_path)
    train, held_out = _texts(tmp_path, "train"), _texts(tmp_path, "held_out")
    assert sorted(train + held_out) == sorted(texts) and 5 < len(held_out) < 40
    assert train == [text for text in texts if text in train]  # in the source's order
    first = next(document_files.read(tmp_path / "documents", "stories", "train"))
    assert set(first) == {"id", "source", *document_files.COLUMNS}
    assert first["id"] == first["hash"][:16] and len(first["hash"]) == 64
    assert (first["source"], first["licence"], first["language"]) == ("stories", "CC0-1.0", "ja")
    assert card["documents"] == 200 and card["characters"] == sum(map(len, texts))
    assert card["training_characters"] == {"stories": sum(map(len, train))}
    page = (tmp_path / "documents" / "datacard.md").read_text(encoding="utf-8")
    assert f"| stories | CC0-1.0 | ja | 200 | {card['characters']:,} | 100.0% |" in page


def test_what_is_dropped_is_counted(tmp_path):
    base = _story(1000)
    texts = ["短い", "This text is in English, and it is not what the source says that it is.", "", base, base]
    texts += [base.replace("個買い", "箇買い", 1), "同じ話です。" * 200, *(_story(number) for number in range(30))]
    card = _collect(_recipe(_source(_write(tmp_path / "a.jsonl", texts)), minimum_characters=5), tmp_path)
    reasons = ["empty", "exact duplicate", "near duplicate", "too repetitive", "too short", "wrong language"]
    assert card["dropped"]["stories"] == dict.fromkeys(reasons, 1)
    page = (tmp_path / "documents/datacard.md").read_text()
    assert "| stories | near duplicate | ja | CC0-1.0 | 1 | almost the same text" in page
    assert "Of stories, too short:\n\n- a.jsonl" in page and "`短い`" in page
    assert card["dropped_examples"]["stories"]["near duplicate"][0]["beginning"].startswith("1000番目に")


@pytest.mark.parametrize("few", [False, True])
def test_a_source_that_keeps_its_copies_gives_no_copy_of_what_is_held_out(tmp_path, few):
    """However the other source holds it out: by the hash of documents, or as stretches of a few."""
    texts = [_story(number) for number in range(5 if few else 60)]
    own = _source(_write(tmp_path / "a.jsonl", texts), "own")
    more = [_story(number) for number in range(500, 530)]
    other = _source(_write(tmp_path / "b.jsonl", texts + texts + more), "other", deduplicate=False)
    _collect(_recipe(other, own, held_out_fraction=0.2), tmp_path)
    held_out = _texts(tmp_path, "held_out", "own")
    assert held_out and not any(text in other for text in held_out for other in _texts(tmp_path, "train", "other"))
    left = [text for text in texts if not few and text not in held_out]
    assert [text for text in _texts(tmp_path, "train", "other") if text in texts] == left + left


def test_one_long_document_is_held_out_in_part_and_a_short_one_of_yours_does_not_vanish(tmp_path):
    book = "\n".join(_story(number) for number in range(300)) + "\n"
    (tmp_path / "book.txt").write_text(book, encoding="utf-8")
    recipe = dataclasses.replace(_recipe(held_out_fraction=0.05), text=str(tmp_path / "book.txt"))
    _collect(recipe, tmp_path)
    train, held_out = _texts(tmp_path, "train", "yours"), _texts(tmp_path, "held_out", "yours")
    assert 0.02 < sum(map(len, held_out)) / len(book) < 0.08
    assert sum(map(len, train + held_out)) == len(book)
    assert not any(text in other for text in held_out for other in train)
    (tmp_path / "note.txt").write_text("リンゴを食べた。", encoding="utf-8")
    card = _collect(Recipe(text=str(tmp_path / "note.txt")), tmp_path / "short")
    assert _texts(tmp_path / "short", "train", "yours") == ["リンゴを食べた。"] and card["rows"][0]["held_out"] == 0


def test_a_named_file_is_held_out_whole_and_its_source_must_leave_something(tmp_path):
    held_out = _write(tmp_path / "held.jsonl", [_story(number) for number in range(100, 105)] + ["短い"])
    train = _write(tmp_path / "a.jsonl", [_story(number) for number in range(5)])
    _collect(_recipe(_source(train, held_out=str(held_out))), tmp_path / "run")
    assert len(_texts(tmp_path / "run", "held_out")) == 6 and len(_texts(tmp_path / "run", "train")) == 5
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match=r"no document left in held_out .*empty.jsonl \(dropped: 1 empty\)"):
        _collect(_recipe(_source(train, held_out=str(tmp_path / "empty.jsonl"))), tmp_path / "other")


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(source_files, "BUNDLE_BYTES", 20_000)
    monkeypatch.setattr(collect, "PARALLEL_BYTES", 0)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        _write(folder / f"{number}.jsonl", [_story(number * 100 + index) for index in range(60 + number)])
    for workers in (1, 2):
        recipe = _recipe(_source(folder), workers=workers)
        _collect(recipe, tmp_path / str(workers))
    assert _bytes(tmp_path / "1") == _bytes(tmp_path / "2")
    assert not any("spool" in name or "partial" in name for name in _bytes(tmp_path / "1"))


def test_weights_and_workers_are_no_inputs_and_the_seed_is_one_of_tenki_alone(tmp_path):
    stories = _source(_write(tmp_path / "a.jsonl", ["本"]))
    recipe = _recipe(stories)
    same = dataclasses.replace(_recipe(dataclasses.replace(stories, weight=9.0), workers=7), seed=5)
    assert collect.inputs(recipe) == collect.inputs(same)
    assert collect.inputs(recipe) != collect.inputs(_recipe(stories, minimum_characters=1))
    tenki = Source("t", "tenki", documents=9, licence="Apache-2.0")
    seeds = [collect.inputs(dataclasses.replace(_recipe(tenki), seed=seed)) for seed in (0, 1)]
    assert seeds[0] != seeds[1] and seeds[1][0]["seed"] == 1


def test_a_source_without_a_document_left_says_what_was_dropped(tmp_path):
    path = _write(tmp_path / "a.jsonl", ["短い", "短い話", ""])
    with pytest.raises(UserError, match=r"stories: no document left to train on \(dropped: 1 empty, 2 too short\)"):
        _collect(_recipe(_source(path)), tmp_path / "run")
    path = _write(
        tmp_path / "b.jsonl", ["The sun rises over the hills, and the birds sing all morning in the trees."] * 9
    )
    english = _source(path)
    with pytest.raises(UserError, match="its language is said to be ja; correct `language`, or set filter: false"):
        _collect(_recipe(english, minimum_characters=1), tmp_path / "run")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="there was no text"):
        _collect(_recipe(_source(tmp_path / "empty.jsonl")), tmp_path / "run")
    (tmp_path / "a.txt").write_bytes(("我喜欢吃苹果。今天天气很好。" * 5).encode("gb18030"))
    with pytest.raises(
        UserError, match="no document left .*1 not UTF-8.*a.txt: is not UTF-8; it looks like GB18030: iconv -f GB"
    ):
        _collect(_recipe(Source("notes", "files", str(tmp_path / "a.txt"), licence="CC0-1.0")), tmp_path / "run")
    assert not (tmp_path / "run" / "documents" / manifest.FILE).exists()


def test_a_new_file_is_one_new_part_and_a_filter_makes_those_again_that_it_touches(tmp_path, monkeypatch):
    monkeypatch.setattr(source_files, "BUNDLE_BYTES", 1)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(8):
        _write(folder / f"{number}.jsonl", [_story(number * 100 + index) for index in range(5)])
    other = _source(_write(tmp_path / "b.jsonl", [_story(9000 + number) for number in range(25)]), "b", filter=False)
    made, run_task = [], tasks.run
    monkeypatch.setattr(tasks, "run", lambda task: (made.append(task.part.source), run_task(task)))
    run = tmp_path / "run"

    def again(**settings):
        made.clear()
        _collect(_recipe(_source(folder), other, **settings), run)
        return made

    assert again() == ["stories"] * 8 + ["b"]
    assert again() == []
    _write(folder / "8.jsonl", [_story(7000 + index) for index in range(5)])
    assert again() == ["stories"]
    assert again(minimum_characters=60) == ["stories"] * 9
    assert again(minimum_characters=60, held_out_fraction=0.2) == []
    assert again(minimum_characters=60, near_duplicates=False) == ["stories"] * 9 + ["b"]
    killed = run / "documents" / "parts" / f"{'0' * 32}.parquet"  # what is left of another run that was killed
    killed.write_bytes(b"")
    (run / "documents" / manifest.FILE).unlink()
    again(minimum_characters=60, near_duplicates=False)
    fresh = tmp_path / "fresh"
    _collect(_recipe(_source(folder), other, minimum_characters=60, near_duplicates=False), fresh)
    assert _bytes(run) == _bytes(fresh)


def test_files_on_gs_are_fetched_once_each_and_no_copy_stays(bucket, storage_server, tmp_path, monkeypatch):
    """The ranges of a large file share one copy. `system/storage/test_copies.py` has several readers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there, fetch = [], gcs.download_all

    def counted(*arguments):
        fetch(*arguments)
        there.append([path.name for path in (tmp_path / "cache").rglob("*.jsonl")])

    monkeypatch.setattr(gcs, "download_all", counted)
    monkeypatch.setattr(source_files, "BUNDLE_BYTES", 1)
    monkeypatch.setattr(source_files, "RANGE_BYTES", 10_000)
    for number, count in enumerate((10, 100, 10)):
        lines = (json.dumps({"text": _story(number * 1000 + index)}) + "\n" for index in range(count))
        storage.write_text(bucket / "in" / f"{number}.jsonl", "".join(lines))
    before = len(storage_server.log())
    card = _collect(_recipe(_source(f"{bucket}/in"), near_duplicates=False), tmp_path / "run")
    assert card["documents"] == 120 and len(document_files.parts(tmp_path / "run" / "documents")) > 4
    assert list((tmp_path / "cache/tpullm/brief").iterdir()) == []
    fetched = [line for line in storage_server.log()[before:] if "alt=media" in line and "/in%2F" in line]
    assert len(fetched) == 3 and there == [["0.jsonl"], ["1.jsonl"], ["2.jsonl"]]


MENU = (
    "ホーム・お知らせ・会社の案内・商品の一覧・お問い合わせはこちらから・{}年の更新\n"
    "すべての権利は例の会社にあります。無断の転載を禁じます。\n"
)


def test_documents_that_are_mostly_lines_of_many_documents_are_dropped(tmp_path):
    """But not what the recipe names as held out, nor what keeps its copies or is not filtered."""
    texts = [MENU.format(2000 + number) * (number % 2) + _story(number) for number in range(40)]
    texts.append(MENU + "\n".join(_story(1000 + number) for number in range(3)))
    named = _write(tmp_path / "named.jsonl", [MENU + _story(number) for number in range(2000, 2003)])
    pages = _source(_write(tmp_path / "a.jsonl", texts), rules=[], held_out=str(named))
    others = [MENU + _story(number) for number in range(3000, 3030)]
    unfiltered = _source(_write(tmp_path / "b.jsonl", others), "unfiltered", filter=False)
    more = [MENU + _story(number) for number in range(4000, 4009)]
    copies = _source(_write(tmp_path / "c.jsonl", more * 2), "copies", deduplicate=False, held_out=str(named))
    card = _collect(_recipe(pages, unfiltered, copies, near_duplicates=False, repeated_lines=20), tmp_path / "run")
    assert _texts(tmp_path / "run", "train") == [text for text in texts if text[0] != "ホ"] + texts[-1:]
    assert len(_texts(tmp_path / "run", "held_out")) == 3
    assert card["dropped"] == {"stories": {"lines of many documents": 20}, "unfiltered": {}, "copies": {}}
    examples = card["dropped_examples"]["stories"]["lines of many documents"]
    assert [one["record"] for one in examples] == [f"line {number}" for number in range(2, 22, 2)]
    page = (tmp_path / "run" / "documents" / "datacard.md").read_text()
    assert "stand in more than `corpus.repeated_lines` documents |" in page
    assert "in lines that stand in more than 20 documents" in page


def _lines(seed, count):
    """Lines of ten words that no other seed has."""
    random_ = random.Random(seed)
    return ["".join(random_.choices("aeiou bcdfg hklmn ", k=60)) for _ in range(count)]


def test_a_licence_that_many_documents_share_makes_no_copies_and_a_menu_hides_none(tmp_path):
    licence, menu, article = _lines("licence", 20), _lines("menu", 9), _lines("news", 20)
    pages = [[*licence, *_lines(number, 20)] for number in range(40)]
    short = [[*licence, *_lines(number, 3)] for number in range(100, 120)]  # without the licence not alike
    copies = [[*pages[0][:-1], "and another end"]]
    sites = [[*menu, *_lines(number, 20)] for number in range(200, 220)]
    # 0.62 alike with the menu of their site, 0.9 without: it is a copy, if it shares a band.
    copies += [[*(menu if number % 2 else ()), *article, *_lines(number, 1)] for number in range(300, 320)]
    texts = ["\n".join(lines) for lines in (*pages, *short, *sites, *copies)]
    source = Source("s", "jsonl", str(_write(tmp_path / "a.jsonl", texts)), licence="x", filter=False)
    card = _collect(_recipe(source, held_out_fraction=0.0), tmp_path / "run")
    assert _texts(tmp_path / "run", "train", "s") == texts[:80] + [texts[81]]
    assert card["dropped"]["s"] == {"near duplicate": 20}
