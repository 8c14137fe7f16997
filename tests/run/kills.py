"""Kill every verb with -9 at random moments, start it again, and compare the result with that of a run nobody killed.

    python -m tests.run.kills --kills 1000 --seed 0 --log kills.jsonl
    python -m tests.run.kills --kills 80 --seed 1 --log kills.jsonl --hosts 1 --verbs finetune --stages all

One round makes a whole run (collect, tokenize, pretrain, finetune, export, import of the export), on one host or on
four, with its run directory on a disk or on an emulated `gs://`. A verb is killed a few times, each time after a random
part of the time that it takes, and then ends. Of four hosts one is killed, at random. The bytes of the documents, the
tokens, the exported and the imported model, and all numbers of the log must be those of the reference. A line of the
log is a kill or the end of a round. CI makes five kills (`tests/run/test_resume.py`). With `--stages` the recipe has
stages of tuning of those kinds in place of `talk`.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from tests.bucket import emulator
from tests.conftest import QUICK_TO_COMPILE, ROOT, TINY
from tests.run.test_resume import metrics
from tpullm.recipe.parsing import load
from tpullm.system import storage
from tpullm.system.cluster.handshake import free_port

VERBS = ("collect", "tokenize", "pretrain", "finetune", "export", "import")
MOST_KILLS_OF_A_VERB = 12
SECONDS_TO_END = 600
SECONDS_TO_NOTICE = 60
STEPS, EVERY = 40, 4  # of a stage of tuning, and from one save to the next
SHORT = ("--pretrain.steps=20", "--pretrain.evaluate_every=0")


class Round:
    """One run that is killed and started again.

    Args:
        run: its directory, here or on `gs://`.
        hosts: that train together.
        config: of its recipe. An export whose last stage has an adapter is not imported.

    Attributes:
        verbs: of the run.
    """

    def __init__(self, run: str, hosts: int, config: Path):
        self.run, self.hosts, self.config = run, hosts, config
        self._recipe = load(config)
        has_adapter = self._recipe.finetune[self._recipe.trained[-1]].adapter.rank
        self.verbs = VERBS[:-1] if has_adapter else VERBS

    def start(self, verb: str) -> list[subprocess.Popen]:
        """The processes of a verb: one, or one of each host."""
        words = {
            "export": ["export", self.run, f"{self.run}-out"],
            "import": ["import", f"{self.run}-out", "--run", f"{self.run}-in"],
        }.get(verb, [verb, "--config", self.config, "--run", self.run, *SHORT])
        count = self.hosts if verb in ("pretrain", "finetune") else 1
        flags = f"--xla_force_host_platform_device_count={4 // count} {QUICK_TO_COMPILE}"
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        address, command = f"127.0.0.1:{free_port()}", [sys.executable, "-m", "tpullm", *map(str, words)]
        started = []
        for index in range(count):
            place = ["--hosts.coordinator", address, "--hosts.count", str(count), "--hosts.index", str(index)]
            arguments = [*command, *(place if count > 1 else [])]
            pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(arguments, cwd=ROOT, env=environment, **pipes))
        return started

    def digests(self) -> dict[str, str]:
        """What has to be equal, by name: hashes of files, and of the logs without their times."""
        found = {}
        for part in ("documents", "tokens", "tokenizer"):
            for name, content in _files(storage.path(self.run) / part):
                if Path(name).name not in ("manifest.json", "inputs.json"):
                    found[f"{part}/{name}"] = _hash(content)
        for stage in self._recipe.trained:
            # The line of a step's answers comes before that of the step before it, which is still computed, or after.
            rows = sorted(json.dumps(row, sort_keys=True) for row in metrics(storage.path(self.run) / stage))
            found[f"{stage}/metrics"] = _hash("\n".join(rows).encode())
        for folder in (f"{self.run}-out", f"{self.run}-in/base/tokenizer")[: 2 if "import" in self.verbs else 1]:
            for name, content in _files(storage.path(folder)):
                if name.endswith((".safetensors", "tokenizer.json", "config.json")):
                    found[f"{folder.removeprefix(self.run)}/{name}"] = _hash(content)
        return found


def stages(folder: Path) -> dict[str, dict]:
    """A stage of each kind."""
    pairs = [{"prompt": f"{n}は？", "chosen": f"{n}です。", "rejected": f"{n}だよ。"} for n in range(60)]
    lines = [json.dumps(pair, ensure_ascii=False) for pair in pairs]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    judged = [
        {"prompt": pair["prompt"], "completion": pair[key], "label": key == "chosen"}
        for pair in pairs
        for key in ("chosen", "rejected")
    ]
    lines = [json.dumps(answer, ensure_ascii=False) for answer in judged]
    (folder / "judged.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rewarded = {"prompts": ["tenki"], "rewards": [{"name": "polite"}, {"name": "length", "most": 8, "edge": 40}]}
    small = {"prompts": 4, "answers": 4, "tokens": 12}
    adapter = {"adapter": {"rank": 4}}
    return {
        "field": {"documents": {"tenki": 1.0}},
        "talk": {"conversations": ["tenki"], "documents": {"tenki": 0.2}, **adapter},
        "pairs": {"preferences": [str(folder / "pairs.jsonl")], **adapter},
        "rules": rewarded | {"policy": small, **adapter},
        "again": rewarded | {"policy": small | {"updates": 3, "kind": "dapo"}},
        "judged": {"judged": [str(folder / "judged.jsonl")], "preference": {"kind": "kto"}, **adapter},
        "taught": {"documents": {"tenki": 1.0}, "teacher": {"model": str(folder / "teacher"), "top": 8}},
        "corrected": {"prompts": ["tenki"], "policy": small | {"answers": 1}, **adapter}
        | {"teacher": {"model": str(folder / "teacher"), "kind": "reverse_kl"}},
    }


def recipe(folder: Path, names: list[str]) -> Path:
    """The tiny recipe with the stages of these names, or all; without names, with its own."""
    whole = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    whole["finetune"]["talk"]["train"] |= {"checkpoint": {"every_steps": EVERY}}
    train = {"steps": STEPS, "evaluate_every": 20, "log_every": 1, "evaluate_rows": 8}
    train = whole["finetune"]["talk"]["train"] | train
    chosen = {name: stage for name, stage in stages(folder).items() if name in names or "all" in names}
    if names:
        whole["finetune"] = {name: stage | {"train": train} for name, stage in chosen.items()}
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    return path


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    here = storage.local_copy(folder)
    for path in sorted(Path(here).rglob("*")):
        if path.is_file():
            yield path.relative_to(here).as_posix(), path.read_bytes()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit code and last line of each process."""
    found = []
    for process in processes:
        said = process.communicate(timeout=SECONDS_TO_END)[1].strip().splitlines()
        found.append((process.returncode, said[-1] if said else ""))
    return found


def without_the_victim(processes: list[subprocess.Popen], victim: subprocess.Popen) -> None:
    """End the others if they do not end themselves: for a host that was killed before it joined they wait 5 minutes."""
    for process in processes:
        if process is not victim:
            try:
                process.wait(SECONDS_TO_NOTICE)
            except subprocess.TimeoutExpired:
                process.kill()


def killed(
    round_: Round, verbs: list[str], seconds: dict[str, float], moments: random.Random, budget: int, log: Callable
) -> int:
    """Make the run, with at most `budget` kills, of these verbs; how many there were.

    Raises:
        RuntimeError: a verb ended otherwise than it should.
    """
    kills = 0
    for verb in round_.verbs:
        for _ in range(min(moments.randint(0, MOST_KILLS_OF_A_VERB), budget - kills) if verb in verbs else 0):
            processes, wait = round_.start(verb), moments.uniform(0, seconds[verb])
            victim, began = moments.choice(processes), time.monotonic()
            while time.monotonic() - began < wait and victim.poll() is None:
                time.sleep(0.005)
            alive = victim.poll() is None
            if alive:
                victim.kill()
                without_the_victim(processes, victim)
            found = ended(processes)
            alive = alive and victim.returncode != 0
            kills += alive
            log({"verb": verb, "hosts": round_.hosts, "run": round_.run, "after": round(wait, 2), "killed": alive})
            codes = {code for process, (code, _) in zip(processes, found, strict=True) if process is not victim}
            if not codes <= ({0, 75, -9} if alive else {0}):
                raise RuntimeError(f"{verb}: a host ended with {found}")
            if not alive:  # it had ended: there is nothing left to kill
                break
        found = ended(round_.start(verb))
        # An export that was whole before the kill is not written again. Whether it is whole, its digests tell.
        done = verb == "export" and "is not an empty folder" in found[0][1]
        if any(code for code, _ in found) and not done:
            raise RuntimeError(f"{verb}: {found}")
    return kills


def reference(hosts: int, folder: Path, config: Path) -> tuple[dict[str, str], dict[str, float]]:
    """The digests of a run that nobody kills, and the seconds that each verb takes."""
    run, seconds = Round(str(folder / "whole"), hosts, config), {}
    for verb in run.verbs:
        began = time.monotonic()
        found = ended(run.start(verb))
        if any(code for code, _ in found):
            raise RuntimeError(f"{verb}: {found}")
        seconds[verb] = time.monotonic() - began
        if verb == "pretrain" and not (config.parent / "teacher").exists():
            shutil.copytree(run.run, config.parent / "teacher")
    return run.digests(), seconds


def main(arguments: list[str] | None = None) -> int:
    """Make rounds until there were enough kills; 1 if one ended otherwise than the reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS), help="that are killed")
    parser.add_argument("--stages", nargs="+", default=[], help="of tuning, by the names in `stages`, or all")
    parser.add_argument("--where", nargs="+", choices=("disk", "gs"), default=["disk", "gs"])
    parser.add_argument("--log", type=Path, required=True)
    given = parser.parse_args(arguments)
    moments, kills = random.Random(given.seed), 0

    def log(line: dict) -> None:
        with open(given.log, "a") as file:
            file.write(json.dumps(line) + "\n")

    with tempfile.TemporaryDirectory(prefix="tpullm-") as name, emulator() as server:
        folder = Path(name)
        config = recipe(folder, given.stages)
        wholes = {hosts: reference(hosts, folder / f"of-{hosts}", config) for hosts in given.hosts}
        for number in range(1_000_000):
            if kills >= given.kills:
                break
            hosts, where = moments.choice(given.hosts), moments.choice(given.where)
            run = f"{server.make(f'kills-{number}')}/run" if where == "gs" else str(folder / f"round-{number}" / "run")
            round_, (expected, seconds) = Round(run, hosts, config), wholes[hosts]
            done = killed(round_, given.verbs, seconds, moments, given.kills - kills, log)
            kills += done
            found = round_.digests()
            wrong = sorted(key for key in expected | found if expected.get(key) != found.get(key))
            log({"round": number, "hosts": hosts, "where": where, "kills": done, "all": kills, "wrong": wrong})
            print(f"round {number}: {hosts} host(s), {where}: {done} kills ({kills}): {wrong or 'the same bits'}")
            if wrong:
                return 1
            shutil.rmtree(folder / f"round-{number}", ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
