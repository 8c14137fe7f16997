"""Kill each kind of stage of tuning with -9 at random moments, and compare the end with a run that nobody killed.

    python -m tests.run.tuning_kills --kills 10 --seed 1

A kill comes a random time after the stage has begun or resumed, often before its first step. All numbers of the last
checkpoint of each stage, and of its log, must be the same bits.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from tests.cli.test_finetune import arrays
from tests.conftest import QUICK_TO_COMPILE, ROOT, TINY
from tests.run.test_resume import metrics
from tpullm.run import manifest

STEPS, EVERY = 40, 4
SECONDS_TO_END = 300
SECONDS_AFTER = 0.5  # at most, after a line of the log: a stage lasts 1 to 4 s


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


def recipe(folder: Path, kinds: list[str]) -> Path:
    """The tiny recipe with the stages of these names, or all."""
    whole = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    train = whole["finetune"]["talk"]["train"] | {"steps": STEPS, "evaluate_every": 20, "log_every": 1}
    train |= {"checkpoint": {"every_steps": EVERY}, "evaluate_rows": 8}
    chosen = {name: stage for name, stage in stages(folder).items() if not kinds or name in kinds}
    whole["finetune"] = {name: stage | {"train": train} for name, stage in chosen.items()}
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    return path


def tpullm(*words: object) -> subprocess.Popen:
    """A verb, begun."""
    environment = os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE, "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "tpullm", *map(str, words)], cwd=ROOT, env=environment, **pipes)


def end(process: subprocess.Popen) -> None:
    """Wait for it; it must succeed."""
    said = process.communicate(timeout=SECONDS_TO_END)[1]
    if process.returncode:
        raise RuntimeError(said[-500:])


def lines(stage: Path) -> int:
    """Lines of its log."""
    log = stage / "metrics.jsonl"
    return len(log.read_bytes().splitlines()) if log.exists() else 0


def kill(run: Path, config: Path, stage: str, moments: random.Random) -> int | None:
    """Kill the verb a random time after the stage's log has changed, or the stage has begun; the lines it had."""
    process, before = tpullm("finetune", config, "--run", run), lines(run / stage)
    early, began = moments.random() < 0.3, time.monotonic()
    while process.poll() is None and time.monotonic() - began < SECONDS_TO_END:
        if (run / stage / "inputs.json").exists() and (early or lines(run / stage) != before):
            break
        time.sleep(0.01)
    wait = time.monotonic() + moments.uniform(0, SECONDS_AFTER)
    while process.poll() is None and time.monotonic() < wait:
        time.sleep(0.005)
    if process.poll() is not None:
        process.communicate()
        return None
    process.kill()
    process.communicate()
    return lines(run / stage)


def killed(run: Path, config: Path, stage: str, moments: random.Random, count: int) -> list[int]:
    """Kill a stage so many times; how many lines its log had each time."""
    done: list[int] = []
    while len(done) < count:
        at = kill(run, config, stage, moments)
        if at is not None and not (run / stage / manifest.FILE).exists():
            done.append(at)
            continue
        # It ended before the kill: it is made again from a checkpoint.
        (run / stage / manifest.FILE).unlink(missing_ok=True)
        for checkpoint in (run / stage / "checkpoints").iterdir():
            if checkpoint.name.isdigit() and int(checkpoint.name) > EVERY:
                shutil.rmtree(checkpoint)
    return done


def main(arguments: list[str] | None = None) -> int:
    """1 if a stage ended otherwise than the one that nobody killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", metavar="NAME", default=[], help="these, not all")
    given = parser.parse_args(arguments)
    moments, wrong = random.Random(given.seed), []
    with tempfile.TemporaryDirectory(prefix="tpullm-") as name:
        whole, run = Path(name) / "whole", Path(name) / "run"
        config = recipe(Path(name), given.stages)
        for verb in ("collect", "tokenize", "pretrain"):
            end(tpullm(verb, config, "--run", whole))
        for copy in (run, Path(name) / "teacher"):
            shutil.copytree(whole, copy)
        end(tpullm("finetune", config, "--run", whole))
        kills = {}
        for stage in yaml.safe_load(config.read_text(encoding="utf-8"))["finetune"]:
            kills[stage] = killed(run, config, stage, moments, given.kills)
            print(f"{stage}: killed at lines {kills[stage]} of its log", flush=True)
        end(tpullm("finetune", config, "--run", run))
        for stage, done in kills.items():
            expected, found = (arrays(folder / stage, STEPS) for folder in (whole, run))
            same = expected.keys() == found.keys() and all(np.array_equal(expected[key], found[key]) for key in found)
            same = same and metrics(whole / stage) == metrics(run / stage)
            wrong += [] if same else [stage]
            print(f"{stage}: {len(done)} kills: {'the same bits' if same else 'WRONG'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
