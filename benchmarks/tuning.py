"""The speed and the memory of tuning with an adapter on a CPU, compared with trl and peft on torch, or with EasyDeL.

    python benchmarks/tuning.py --python PEER/bin/python                 SFT, DPO and GRPO of 12M and 120M
    python benchmarks/tuning.py --python PEER/bin/python --kinds grpo --sizes 12M --rounds 1
    python benchmarks/tuning.py --python PEER/bin/python --peer easydel --sizes 12M

Both sides tune the same model folder with the same LoRA on the same examples, in the type that each is fastest in. They
take turns, each in a process of its own, as a user would start it. PEER is an environment with `trl`, `peft` and
`torch` (`pip install trl peft torch`), or with `easydel` (`pip install easydel pillow`).

Speed, after the first steps: tokens/s without padding (SFT), pairs/s (DPO, where our rows hold a prompt once), tokens
of answers/s (GRPO, sampling and training together). Memory is the largest resident size of the process. Ours runs once
more before the turns, as `first`: it compiles then, GRPO a program for each number of rows that comes; later runs find
these programs in the cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

HERE = Path(__file__).parent
KINDS = ("sft", "dpo", "grpo")
# Steps that are measured, and those before them that are not.
STEPS, FIRST = {"12M": 24, "120M": 4}, 3
ROWS, LENGTH = {"12M": 16, "120M": 8}, 256
PROMPTS, ANSWERS, TOKENS = {"12M": 8, "120M": 4}, 8, 64
RANK, RATE = 16, 1e-4
SHAPES = {
    "12M": {"layers": 6, "width": 384, "heads": 6, "kv_heads": 6, "mlp_width": 1024},
    "120M": {"layers": 12, "width": 768, "heads": 12, "kv_heads": 12, "mlp_width": 2048},
}
VOCABULARY = {"12M": 4096, "120M": 32768}


def main() -> int:
    """Measure, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="of an environment with the peer")
    parser.add_argument("--peer", choices=("trl", "easydel"), default="trl")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="tpullm-") as name:
        folder = Path(name)
        for size in given.sizes:
            prepare(folder / size, size)
            for kind in given.kinds:
                first = ours(folder / size, kind, size)["speed"]
                turns = [
                    {"ours": ours(folder / size, kind, size), "peer": peer(folder / size, kind, size, given)}
                    for _ in range(given.rounds)
                ]
                results[f"{kind} {size}"] = summary(turns) | {"ours first": round(first, 1)}
                print(f"{kind} {size}: {json.dumps(results[f'{kind} {size}'])}", flush=True)
    print(json.dumps(results))
    return 0


def summary(turns: list[dict]) -> dict:
    """The medians over turns, and our ratios to the peer."""
    median = lambda side, key: statistics.median(turn[side][key] for turn in turns)  # noqa: E731
    found = {f"{side} {key}": round(median(side, key), 1) for side in ("ours", "peer") for key in ("speed", "mib")}
    ratios = [turn["ours"]["speed"] / turn["peer"]["speed"] for turn in turns]
    return found | {
        "speed ratio": round(statistics.median(ratios), 2),
        "memory ratio": round(median("ours", "mib") / median("peer", "mib"), 2),
    }


def prepare(folder: Path, size: str) -> None:
    """A model folder, a run that imported it, and examples for each kind."""
    from tpullm.corpus import tenki

    folder.mkdir()
    documents = list(tenki.documents(6000, 0))
    long = ["".join(documents[n : n + 2]) for n in range(0, len(documents), 2)]
    asked = [{"role": "user", "content": f"{n}番の話をしてください。"} for n in range(len(long))]
    talk = [{"messages": [ask, {"role": "assistant", "content": said}]} for ask, said in zip(asked, long, strict=True)]
    pairs = [
        {"prompt": ask["content"], "chosen": documents[2 * n], "rejected": documents[2 * n + 1]}
        for n, ask in enumerate(asked)
    ]
    prompts = [{"prompt": ask["content"]} for ask in asked]
    for name, rows in (("sft", talk), ("dpo", pairs), ("grpo", prompts)):
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / f"{name}.jsonl").write_text(text + "\n", encoding="utf-8")
    recipe = yaml.safe_load((HERE.parent / "tests" / "tiny.yaml").read_text(encoding="utf-8"))
    recipe["model"] = SHAPES[size] | {"context_length": 512, "vocabulary_size": VOCABULARY[size]}
    recipe["pretrain"] |= {"steps": 1, "evaluate_every": 0}
    recipe["finetune"]["talk"]["train"] |= {"steps": 1}  # what was tuned to talk is exported with its chat template
    (folder / "made.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for verb in ("collect", "tokenize", "pretrain", "finetune"):
        tpullm(verb, folder / "made.yaml", "--run", folder / "made")
    tpullm("export", folder / "made", folder / "model", "--licence", "Apache-2.0")


def tpullm(*words: object) -> int:
    """Run a verb; its largest resident size in MiB."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([sys.executable, "-m", "tpullm", *map(str, words)], stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        errors.seek(0)
        assert status == 0, errors.read()[-500:]
    return usage.ru_maxrss / 1024


def ours(folder: Path, kind: str, size: str) -> dict:
    """Tokens/s and MiB of `tpullm finetune`."""
    run = folder / f"run-{kind}-{time.time():.0f}"
    steps = FIRST + STEPS[size]
    train = {"steps": steps, "batch_size": ROWS[size], "sequence_length": LENGTH, "log_every": 1}
    train |= {"evaluate_every": 0, "evaluate_rows": 1, "optimizer": {"peak_lr": RATE}}
    stage = {"adapter": {"rank": RANK}, "train": train, "held_out_fraction": 0.0}
    stage |= {
        "sft": {"conversations": [str(folder / "sft.jsonl")]},
        "dpo": {"preferences": [str(folder / "dpo.jsonl")]},
        "grpo": {
            "prompts": [str(folder / "grpo.jsonl")],
            "rewards": [{"name": "length", "most": 20, "edge": 100}],
            "policy": {"prompts": PROMPTS[size], "answers": ANSWERS, "tokens": TOKENS},
        },
    }[kind]
    if kind == "grpo":
        # Four of the longest answers fill a row. In longer rows more of the attention is computed and masked.
        train |= {"sequence_length": 288, "batch_size": 2 * PROMPTS[size]}
    recipe = {"name": kind, "base": str(folder / "model"), "finetune": {kind: stage}}
    (folder / f"{kind}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    tpullm("import", folder / "model", "--config", folder / f"{kind}.yaml", "--run", run)
    mib = tpullm("finetune", folder / f"{kind}.yaml", "--run", run)
    rows = [json.loads(line) for line in (run / kind / "metrics.jsonl").read_text().splitlines()]
    if kind == "grpo":
        tokens = {row["step"]: row["answers"] * row["answer_tokens"] for row in rows if "answers" in row}
        measured = {row["step"]: row["step_seconds"] for row in rows if row.get("step", 0) > FIRST and "loss" in row}
        return {"speed": sum(tokens[step] for step in measured) / sum(measured.values()), "mib": mib}
    measured = [row for row in rows if row["step"] > FIRST and "loss" in row]
    seconds = sum(row["step_seconds"] for row in measured)
    counting = [sys.executable, __file__, "--counted", str(run), kind]
    counted = float(subprocess.run(counting, capture_output=True, text=True, check=True).stdout)
    return {"speed": counted * len(measured) / seconds, "mib": mib}


def counted(run: str, kind: str) -> float:
    """Tokens without padding (SFT) or pairs (DPO) in a step, the mean over those that are measured."""
    from tpullm.data.stream import Stream
    from tpullm.data.tuning_data import tuning_data
    from tpullm.recipe import parsing
    from tpullm.tokenizer import load

    recipe = parsing.of_command_line(["--run", run])
    settings = recipe.finetune[kind]
    data = tuning_data(recipe, Path(run), kind, load(Path(run) / kind / "tokenizer"))
    train = settings.train
    stream = Stream(data.read, data.weights, train.batch_size, train.sequence_length, recipe.seed)
    if kind == "dpo":
        return statistics.fmean(len(stream.documents_at(step)) for step in range(FIRST, train.steps))
    return statistics.fmean(float((stream.batch_at(step).segment_ids > 0).sum()) for step in range(FIRST, train.steps))


def peer(folder: Path, kind: str, size: str, given: argparse.Namespace) -> dict:
    """The same of the peer."""
    script = HERE / f"tuning_{given.peer}.py"
    process = subprocess.Popen(
        [given.python, script, json.dumps({"folder": str(folder), "kind": kind, "size": size})],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    return json.loads(out.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--counted"]:
        print(counted(*sys.argv[2:]))
    else:
        sys.exit(main())
