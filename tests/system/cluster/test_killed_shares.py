"""Shares that are killed at random moments, and started again, make the bytes of one process that nobody killed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.corpus.test_collect import _story, _write
from tests.system.cluster.test_shares import contents

# Forks the shares, so 64 of them take the memory of a few. Kills one at random, again and again, and starts it again.
PROGRAM = """
import json, os, random, signal, sys, time, traceback
import numpy, pyarrow.parquet, sentencepiece, rich.progress
from tpullm.cli import collect as _, main as cli, tokenize
from tpullm.corpus import collect, language_detection, reduce
from tpullm.corpus.files import source_files
from tpullm.system.cluster import shares
source_files.BUNDLE_BYTES, collect.PARALLEL_BYTES, reduce.GROUP_DOCUMENTS, reduce.RANGE_ENTRIES = 1, 10**9, 20, 500
recipe, run, count, kills = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
shares.SECONDS_BETWEEN_LOOKS = 0.1 + count / 64
choices, began = random.Random(count), time.monotonic()

def start(index):
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.dup2(os.open(f"{run}.{index}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        words = ["--config", recipe, "--run", run, "--share.count", str(count), "--share.index", str(index)]
        code = cli.main(["collect", *words]) or cli.main(["tokenize", *words])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)

def wait(pid, how):  # a share that was killed starts again, one that failed is noted
    ended, code = os.waitpid(pid, how)
    if ended:
        index = live.pop(pid)
        if code == signal.SIGKILL:
            killed[verb()] += 1
            live[start(index)] = index
        elif code:
            wrong.append(index)

def verb():
    return "tokenize" if os.path.exists(f"{run}/documents/manifest.json") else "collect"

killed, wrong, next_kill = {"collect": 0, "tokenize": 0}, [], 0.0
live = {start(index): index for index in choices.sample(range(count), count)}
while live and not wrong:
    time.sleep(0.005)
    for pid in list(live):
        wait(pid, os.WNOHANG)
    if live and killed[verb()] < kills and time.monotonic() - began > next_kill:
        pid = choices.choice(sorted(live))
        os.kill(pid, signal.SIGKILL)
        wait(pid, 0)
        next_kill = time.monotonic() - began + choices.uniform(0, 2)
for pid in live:
    os.kill(pid, signal.SIGKILL)
print(json.dumps({"killed": killed, "seconds": round(time.monotonic() - began, 1), "wrong": wrong}))
"""


def make_recipe(folder) -> Path:
    """Sources with copies in themselves and in each other: 40 + 30 + 20 files, each a part, and a generated one."""
    choices = random.Random(0)
    stories = [_story(number * 50) for number in range(160)]
    sources = []
    for name, files, more in (("stories", 40, {}), ("copies", 30, {"deduplicate": False}), ("notes", 20, {})):
        path = folder / name
        path.mkdir()
        for number in range(files):
            texts = choices.sample(stories, 5)
            if name == "notes":
                (path / f"{number:02}.txt").write_text(texts[0], encoding="utf-8")
            else:
                _write(path / f"{number:02}.jsonl", texts)
        kind = "text" if name == "notes" else "jsonl"
        sources.append({"name": name, "kind": kind, "path": str(path), "licence": "CC0-1.0", "language": "ja"} | more)
    sources[2]["held_out"] = str(folder / "notes" / "07.txt")
    sources.append({"name": "tenki", "kind": "tenki", "documents": 100, "licence": "Apache-2.0", "filter": False})
    content = {
        "name": "killed",
        "corpus": {"sources": sources, "workers": 1, "held_out_fraction": 0.1},
        "tokenizer": {"vocabulary_size": 400, "words": False, "workers": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def make(recipe, run, count, kills) -> dict:
    """Collect and tokenize by `count` shares, with so many kills in each, if it takes long enough; what was done."""
    command = [sys.executable, "-c", PROGRAM, recipe, run, count, kills]
    own = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert not told["wrong"], [Path(f"{run}.{index}.log").read_text() for index in told["wrong"]]
    return told


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def whole(recipe) -> dict[str, bytes]:
    """What one process makes."""
    make(recipe, recipe.parent / "whole", 1, 0)
    found = contents(recipe.parent / "whole")
    card = json.loads(found["documents/datacard.json"])
    assert set(card["dropped"]["stories"]) == {"exact duplicate", "near duplicate"}
    for count, folder in ((90, "documents/parts"), (10, "documents/marks"), (7, "tokens")):
        assert len([name for name in found if name.startswith(folder)]) > count
    return found


@pytest.mark.slow  # 5 minutes, of which 64 shares take 3
@pytest.mark.parametrize("count, kills", [(1, 10), (2, 20), (7, 30), (64, 60)])
def test_killed_shares_make_the_bytes_of_one_process(recipe, tmp_path, whole, count, kills):
    told = make(recipe, tmp_path / "run", count, kills)
    print(f"{count} shares: {told['killed']} killed, {told['seconds']} s")
    found = contents(tmp_path / "run")
    assert sorted(found) == sorted(whole)
    assert [name for name in whole if found[name] != whole[name]] == []
    assert min(told["killed"].values()) > 0
