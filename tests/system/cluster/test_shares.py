"""Shares of a verb's work: the same bytes as by one process, whoever is killed, fails or comes late."""

import dataclasses
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_until
from tests.corpus.test_collect import _story, _write
from tpullm.cli import collect, main
from tpullm.corpus import collect as corpus_collect
from tpullm.corpus import document_files, tasks
from tpullm.corpus.files import source_files
from tpullm.recipe.schema import CorpusConfig, Recipe, Source
from tpullm.run import manifest
from tpullm.system import log, storage
from tpullm.system.cluster import shares
from tpullm.system.cluster.place import Place
from tpullm.system.cluster.shares import SharedWork, ShareFailed
from tpullm.system.errors import UserError

FILES = 24

# Small parts, so that there is something to share.
SMALL = """
from tpullm.cli import main as cli
from tpullm.corpus import collect, reduce
from tpullm.corpus.files import source_files
from tpullm.system.cluster import shares
source_files.BUNDLE_BYTES, collect.PARALLEL_BYTES, reduce.GROUP_DOCUMENTS, reduce.RANGE_ENTRIES = 1, 10**9, 40, 500
"""
# Each part that is made leaves a line, by whom.
PROGRAM = (
    SMALL
    + """
import os, sys, time
from pathlib import Path
from tpullm.corpus import tasks
from tpullm.system import log
shares.SECONDS_BETWEEN_LOOKS, log.SECONDS_TO_FIRST_LINE, log.SECONDS_BETWEEN_LINES = 0.1, 0.1, 0.1
made, run_task = Path(os.environ["MADE"]), tasks.run
def noted(task):
    time.sleep(float(os.environ["PAUSE"]))
    run_task(task)
    with open(made, "a") as file:
        file.write(f"{task.files[0].path.name.partition('.')[0]:0>6}\\n")
tasks.run = noted
sys.exit(cli.main(["collect", *sys.argv[1:]]) or cli.main(["tokenize", *sys.argv[1:]]))
"""
)


def make_recipe(folder) -> Path:
    """A recipe of a source of 24 files, each a part, with one document that is in all."""
    source = {"name": "stories", "kind": "jsonl", "path": str(folder / "in"), "licence": "CC0-1.0", "language": "ja"}
    source["max_bad"] = 0  # so that a share says at once what it can't read, and not when all is read
    (folder / "in").mkdir()
    for number in range(FILES):
        _write(folder / "in" / f"{number:02}.jsonl", [*(_story(number * 100 + n) for n in range(12)), _story(0)])
    content = {
        "name": "shared",
        "corpus": {"sources": [source], "workers": 1, "held_out_fraction": 0.1},
        "tokenizer": {"vocabulary_size": 400, "words": False, "workers": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("recipe"))


def start(recipe, run, index, count, *words, pause=0.0, made=None, **environment) -> subprocess.Popen:
    """One share, by itself."""
    place = [] if environment else ["--share.count", count, "--share.index", index]
    command = [sys.executable, "-c", PROGRAM, "--config", recipe, "--run", run, *place, *words]
    own = {"PYTHONPATH": str(ROOT), "MADE": str(made or f"{run}.made"), "PAUSE": str(pause)}
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=os.environ | own | environment, **pipes)


def finish(shares) -> list[tuple[int, str]]:
    try:
        said = [share.communicate(timeout=300)[1] for share in shares]
        return [(share.returncode, text) for share, text in zip(shares, said, strict=True)]
    finally:
        for share in shares:
            share.kill()


def succeed(shares) -> list[str]:
    ended = finish(shares)
    assert not any(code for code, _ in ended), "\n".join(text for _, text in ended)
    return [text for _, text in ended]


def kill_at_work(recipe, run, index, made) -> set[str]:
    """Start one of three shares, and kill it after three of its parts; all of these."""
    share, own = start(recipe, run, index, 3, made=made, pause=0.2), {f"{n:06}" for n in range(index, FILES, 3)}
    wait_until(lambda: made.exists() and len(own & set(made.read_text().split())) >= 3)
    share.send_signal(signal.SIGKILL)
    share.communicate()
    return own


def contents(run) -> dict[str, bytes]:
    """All that is in a run directory, but for the time that it took and the name of the directory."""
    files = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for name in [name for name in files if name.endswith(manifest.FILE)]:
        value = json.loads(files[name])
        files[name] = {key: value[key] for key in value if key not in ("finished", "seconds")}
    return {name: content for name, content in files.items() if name not in ("recipe.yaml", ".lock")}


@pytest.fixture(scope="module")
def whole(recipe) -> dict[str, bytes]:
    """What one process makes."""
    run = recipe.parent / "whole"
    succeed([start(recipe, run, 0, 1)])
    found = contents(run)
    assert sorted(Path(f"{run}.made").read_text().split()) == [f"{number:06}" for number in range(FILES)]
    assert len([name for name in found if name.endswith(".parquet") and "dropped" not in name]) == FILES
    assert len([name for name in found if name.startswith("documents/marks")]) > 4
    assert json.loads(found["documents/datacard.json"])["dropped"]["stories"]["exact duplicate"] == FILES
    return found


@pytest.mark.ci
def test_a_killed_share_is_waited_for_and_goes_on_where_it_was(recipe, tmp_path, whole):
    run, made = tmp_path / "run", Path(f"{tmp_path / 'run'}.made")
    others = [start(recipe, run, index, 3) for index in (0, 2)]
    left = len(kill_at_work(recipe, run, 1, made) - set(made.read_text().split()))
    assert left > 0, "it was killed too late"
    wait_until(lambda: len(made.read_text().split()) == FILES - left)
    assert [share.poll() for share in others] == [None, None]
    said = succeed([*others, start(recipe, run, 1, 3)])
    assert re.search(r"\[share 0\] collect: waits for \d+ of 24 parts, from share 1; \d\d% of ", said[0]), said[0]
    assert "[share 2] place: share 2 of 3 (from 0), by the flags --share.*" in said[1]
    assert sorted(made.read_text().split()) == [f"{number:06}" for number in range(FILES)], "none was made twice"
    assert contents(run) == whole
    for text in succeed([start(recipe, run, index, 3) for index in range(2)]):
        assert text.count("finished, skipped") == 3
    assert contents(run) == whole


@pytest.mark.slow  # 20 s
def test_shares_on_gs_make_the_same_though_share_0_is_killed(recipe, tmp_path, whole, bucket):
    run, made = bucket / "run", tmp_path / "made"
    others = [start(recipe, run, index, 3, made=made) for index in (1, 2)]
    kill_at_work(recipe, run, 0, made)
    succeed([*others, start(recipe, run, 0, 3, made=made)])
    assert sorted(made.read_text().split()) == [f"{number:06}" for number in range(FILES)], "none was made twice"
    storage.remote().download_all(run, tmp_path / "run", list(storage.sizes(run)))
    assert contents(tmp_path / "run") == whole


# Forks the shares, so 64 of them take the memory of a few. Kills one at random, again and again, and starts it again.
KILLER = (
    SMALL
    + """
import json, os, random, signal, sys, time, traceback
import numpy, pyarrow.parquet, sentencepiece, rich.progress
from tpullm.cli import collect as _, tokenize
from tpullm.corpus import language_detection
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
        next_kill = time.monotonic() - began + choices.uniform(0, 0.3)
for pid in live:
    os.kill(pid, signal.SIGKILL)
print(json.dumps({"killed": killed, "seconds": round(time.monotonic() - began, 1), "wrong": wrong}))
"""
)


@pytest.mark.slow  # 3 minutes, most of them for 64 shares
@pytest.mark.parametrize("count, kills", [(1, 10), (2, 20), (7, 30), (64, 60)])
def test_killed_shares_make_the_bytes_of_one_process(recipe, tmp_path, whole, count, kills):
    """They are killed at random moments."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", KILLER, *map(str, (recipe, run, count, kills))]
    own = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert not told["wrong"], [Path(f"{run}.{index}.log").read_text() for index in told["wrong"]]
    print(f"{count} shares: {told['killed']} killed, {told['seconds']} s")
    assert contents(run) == whole and min(told["killed"].values()) > 0


@pytest.mark.ci
def test_a_share_that_fails_by_its_input_ends_all_with_its_line(tmp_path):
    """Of a job, also those that start when it has failed already; and the next job is not concerned."""
    recipe = make_recipe(tmp_path)
    broken, run = tmp_path / "in" / "07.jsonl", tmp_path / "run"
    packed = gzip.compress(broken.read_bytes())
    broken.with_suffix(".jsonl.gz").write_bytes(packed[:50])
    broken.unlink()

    def share(index, job="first"):
        variables = {"BATCH_TASK_INDEX": str(index), "BATCH_TASK_COUNT": "4", "BATCH_JOB_UID": job}
        return start(recipe, run, index, 4, **variables)

    early = [share(1)]
    wait_until(lambda: any(run.glob(".collect/notes/1.*")))
    ended = [*finish([share(3), *early]), *finish([share(0)])]
    for code, said in ended:
        assert code == 2 and "07.jsonl.gz" in said.splitlines()[-1], said
        assert len([line for line in said.splitlines() if "tpullm: " in line]) == 1
    assert ended[1][1].splitlines()[-1].startswith("[share 1] tpullm: share 3 (")
    assert not (run / "documents" / manifest.FILE).exists()
    broken.with_suffix(".jsonl.gz").write_bytes(packed)
    succeed([share(index, "second") for index in (0, 1, 2, 3)])
    assert (run / "tokens" / manifest.FILE).exists() and not list(run.glob(".[!l]*"))


def stories(folder, files) -> Recipe:
    folder.mkdir()
    for number in range(files):
        _write(folder / f"{number}.jsonl", [_story(number * 100 + index) for index in range(20)])
    source = Source("s", "jsonl", str(folder), licence="CC0", language="ja")
    return Recipe(corpus=CorpusConfig(sources=[source], workers=1))


def test_a_share_of_another_recipe_is_refused(tmp_path, monkeypatch):
    """Both shares end, with the key in which they differ. Threads stand for processes."""
    monkeypatch.setattr(shares, "SECONDS_BETWEEN_LOOKS", 0.05)
    recipe = stories(tmp_path / "in", 2)
    other = dataclasses.replace(recipe, corpus=dataclasses.replace(recipe.corpus, minimum_characters=7))
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(collect.main, (recipe, other)[n], tmp_path / "run", Place(n, 2)) for n in range(2)]
    for share in both:
        with pytest.raises(UserError, match="config.minimum_characters"):
            share.result()
    assert not (tmp_path / "run" / "documents" / manifest.FILE).exists()


def begun(folder, index, job="", count=2, inputs=None) -> SharedWork:
    work = SharedWork(folder, "collect", Place(index, count, job=job)).__enter__()
    work.begin({"tpullm": "1", "config": inputs or {"seed": 0}})
    return work


def fails(work, error) -> None:
    work.__exit__(type(error), error, None)


def test_a_failure_that_appears_ends_the_others(tmp_path):
    first, second = begun(tmp_path, 0), begun(tmp_path, 1)
    first.look()
    fails(second, UserError("a.txt: is broken"))
    with pytest.raises(ShareFailed, match=r"^share 1 \(.*\) failed: a.txt: is broken$"):
        first.wait(lambda: False)
    fails(first, ShareFailed("..."))
    assert [name for name in os.listdir(first._notes) if name.endswith("failed")] == [f"{second._name}.failed"]


def test_what_the_user_did_not_do_fails_no_other(tmp_path):
    first = begun(tmp_path, 0)
    for error in (KeyboardInterrupt(), RuntimeError("a bug"), SystemExit(1)):
        fails(begun(tmp_path, 1), error)
    first.look()
    fails(begun(tmp_path, 1), OSError(28, "No space left on device"))
    with pytest.raises(ShareFailed, match="no space left on the device"):
        first.look()


@pytest.mark.parametrize("age, starts_again", [(-1e6, True), (1e6, True), (0.0, False)])
def test_an_earlier_failure_fails_no_later_attempt_whose_share_starts_again(tmp_path, age, starts_again, monkeypatch):
    """Whatever the clocks say; its share starts when all others wait."""
    earlier = begun(tmp_path, 1)
    fails(earlier, UserError("a.txt: is broken"))
    for path in earlier._notes.iterdir():
        os.utime(path, (time.time() + age, time.time() + age))
    first = begun(tmp_path, 0)
    first.look()
    second = begun(tmp_path, 1) if starts_again else None
    monkeypatch.setattr(shares, "SECONDS_TO_RESTART", 0.0)
    if second:
        first.look()
        fails(second, UserError("b.txt: is broken"))
    with pytest.raises(ShareFailed, match="b.txt" if second else "a.txt"):
        first.look()


def test_within_a_job_a_failure_counts_whenever_it_was_and_in_another_never(tmp_path, monkeypatch):
    fails(begun(tmp_path, 1, "first"), UserError("a.txt: is broken"))
    with pytest.raises(ShareFailed, match="a.txt"):
        begun(tmp_path, 0, "first").look()
    monkeypatch.setattr(shares, "SECONDS_TO_RESTART", 0.0)
    for job in ("second", ""):
        begun(tmp_path, 0, job).look()


def test_shares_that_were_started_differently_refuse_whoever_comes_first(tmp_path):
    first = begun(tmp_path, 0)
    second = begun(tmp_path, 1, inputs={"seed": 1})
    second.look()  # the other's note may be of an attempt that is over
    with pytest.raises(UserError, match=r"^share 1 \(.*\) has config.seed 1, share 0 \(.*\) has 0; start all shares"):
        first.look()
    more = begun(tmp_path / "b", 0), begun(tmp_path / "b", 1, count=3)
    with pytest.raises(UserError, match="share 1 .* has share.count 3"):
        more[0].look()
    in_job = begun(tmp_path / "c", 0, "job"), begun(tmp_path / "c", 1, "job", inputs={"seed": 1})
    with pytest.raises(UserError, match="share 0 .* has config.seed 0, share 1 .* has 1"):
        in_job[1].look()


def test_nothing_is_left_of_what_succeeded_and_all_parts_of_what_was_interrupted(tmp_path):
    first, second = begun(tmp_path, 0), begun(tmp_path, 1)
    fails(first, KeyboardInterrupt())
    assert (tmp_path / ".collect").exists()
    begun(tmp_path, 0).__exit__(None, None, None)
    second.__exit__(None, None, None)
    late = begun(tmp_path, 1)  # started again when the stage was finished just then
    late.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error, stays", [(UserError("a.txt: is broken"), False), (OSError(28, "full"), True)])
def test_a_full_disk_costs_one_process_no_finished_part(tmp_path, error, stays):
    fails(begun(tmp_path, 0, count=1), UserError("..."))
    work = SharedWork(tmp_path, "collect", Place()).__enter__()
    part = work.begin({"config": {}}) / "000000.npz"
    half = part.with_name(".000001.npz.0a.partial")
    storage.write_text(part, "made")
    half.touch()
    fails(work, error)
    assert part.exists() is stays and not half.exists()


def test_who_waits_for_share_0_tells_for_what_every_minute(tmp_path, monkeypatch, capsys):
    work, now, slept = begun(tmp_path, 1), [0.0], []

    def sleep(seconds):
        now[0] += seconds
        slept.append(seconds)

    monkeypatch.setattr(shares.time, "sleep", sleep)
    monkeypatch.setattr(shares.time, "monotonic", lambda: now[0])
    work.wait(lambda: now[0] > 150, "the tokens")
    assert capsys.readouterr().err.splitlines() == ["waits for the tokens, from share 0"] * 3
    assert slept[0] < 0.1 and max(slept) == shares.SECONDS_BETWEEN_LOOKS


def test_files_from_the_web_are_fetched_by_share_0(tmp_path, monkeypatch):
    url = "https://example.org/a.jsonl"
    source = Source("stories", "jsonl", url, licence="CC0-1.0", language="ja")
    recipe, place = Recipe(corpus=CorpusConfig(sources=[source])), source_files.place(url, tmp_path / "downloads")

    def sleep(_):
        place.parent.mkdir(exist_ok=True)
        _write(place, [_story(1)])

    monkeypatch.setattr(source_files.urllib.request, "urlopen", None)  # would fail if it were called
    monkeypatch.setattr(shares.time, "sleep", sleep)
    work = SharedWork(tmp_path / "run", "collect", Place(1, 2))
    planned = corpus_collect.plan(recipe, {}, tmp_path, work)
    assert [task.files[0].path for task in planned.tasks] == [place]


def test_one_process_that_was_interrupted_goes_on_where_it_was(tmp_path, monkeypatch):
    made, real = [], tasks.run

    def counted(task):
        if len(made) == 3:
            made.append("")
            raise KeyboardInterrupt
        made.append(task.result.name)
        real(task)

    monkeypatch.setattr(source_files, "BUNDLE_BYTES", 1)
    monkeypatch.setattr(tasks, "run", counted)
    recipe = stories(tmp_path / "in", 6)
    with pytest.raises(KeyboardInterrupt):
        collect.main(recipe, tmp_path / "run")
    collect.main(recipe, tmp_path / "run")
    parts = [f"{part.key}.json" for part in document_files.parts(tmp_path / "run/documents")]
    assert len(made) == 7 and set(made) == {"", *parts}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["documents"]


def test_run_is_not_shared_and_help_tells_what_is(capsys, monkeypatch):
    for verb, shared in main.VERBS.items():
        assert shared.shared == (verb in ("collect", "tokenize"))
    monkeypatch.setattr(log, "_name", "")
    assert main.main(["collect", "--help"]) == 0
    assert "--share.count N N processes share the work" in " ".join(capsys.readouterr().out.split())
    assert main.main(["run", "--config", str(ROOT / "tests" / "tiny.yaml"), "--share.count", "2"]) == 2
