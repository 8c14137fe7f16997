"""The loss of each step of tuning beside trl and peft, of any model, on identical batches in float32.

    python benchmarks/real_tuning.py MODEL --peer PEER/bin/python
    python benchmarks/real_tuning.py MODEL --peer PEER/bin/python --cases dpo serve --steps 3 --folder WORK

MODEL is a folder in the format of Hugging Face with a chat template. PEER is an environment with trl, peft, torch and
bitsandbytes (`pip install trl peft torch bitsandbytes`). If the template is not ChatML, `--template FILE` names it with
`{% generation %}` around what the assistant says, as trl's `assistant_only_loss` needs it. All of it takes 4 GiB, and
25 minutes for 135 million parameters on two cores.

`tpullm finetune` trains first, and notes what its steps read: ids, which of them count, the advantages of answers. trl
gets these ids in the same steps, at the same learning rates, a text in each row. It prepares the same files itself, and
its ids and masks have to be those that were noted. Both adapters begin as peft made them.

| case | what |
| --- | --- |
| sft | all parameters; conversations, packed, in two micro-batches; trl: `assistant_only_loss` |
| lora | the same with an adapter |
| packed | the same, and trl packs too: `padding_free` |
| dpo | an adapter, pairs; the model without it is the reference |
| grpo | an adapter, own answers, two steps learn from the same; trl computes advantages, likelihoods before |
| qlora | an adapter beside nf4; peft beside bitsandbytes, whose numbers have to be ours |
| serve | `tpullm serve` of the model with our adapter (`dpo`) and trl's (`lora`), 10 greedy answers of each over HTTP |

Memory is the largest resident size of a process, with what compiling takes; seconds are those of a step, the median
after the first three: on the clock, and of processors. trl samples too in `grpo`; its answers are then replaced.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
CASES = ("sft", "lora", "packed", "dpo", "grpo", "qlora", "serve")
RANK, ACCUMULATION, ROWS, LENGTH, FIRST = 16, 2, 2, 80, 3
PROMPTS, ANSWERS, TOKENS, KL = 1, 4, 16, 0.04
OPTIMIZER = {"warmup_steps": 2, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "clip_norm": 1.0}
RATES = {"sft": 2e-5, "lora": 1e-3, "packed": 1e-3, "dpo": 2e-4, "grpo": 1e-4, "qlora": 1e-3}
TARGETS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
SAID = "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
MARKED = (
    "{{'<|im_start|>' + message['role'] + '\\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{message['content'] + '<|im_end|>'}}{% endgeneration %}{% else %}{{message['content'] + '<|im_end|>'}}{% endif %}"
    "{{'\\n'}}"
)


def main() -> int:
    """Compare, and print a table and a line of JSON; 1 if a loss is more than 1e-4 away or a text is another one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=lambda name: str(Path(name).resolve()))
    parser.add_argument("--peer", required=True, help="of an environment with trl, peft, torch and bitsandbytes")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--template", default="", help="the chat template with generation markers")
    parser.add_argument("--folder", default="", help="where to work, and what is kept; default: a temporary folder")
    given = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="tpullm-") as name:
        folder = Path(given.folder or name).resolve()
        folder.mkdir(exist_ok=True)
        write_examples(folder)
        if not (folder / "start").exists():
            peer(given, folder, "start")
        for case in given.cases:
            results[case] = served(given, folder) if case == "serve" else beside(given, folder, case)
            print(f"{case}: {json.dumps(results[case])}", flush=True)
    print("| case | largest distance of a loss | first, last loss | s a step | processor s a step | MiB |")
    for case, of in results.items():
        if case != "serve":
            pairs = (f"{of['ours'][key]:,.5g} and {of['trl'][key]:,.5g}" for key in ("seconds", "processor", "mib"))
            print(f"| {case} | {of['distance']:.1e} | {of['first']:.4f}, {of['last']:.4f} | {' | '.join(pairs)} |")
    print(json.dumps(results))
    wrong = lambda of: [of.get("others"), of.get("nf4"), of.get("trl", {}).get("advantages", 0) > 1e-4]  # noqa: E731
    return int(any(of.get("distance", 0) > 1e-4 or any(wrong(of)) for of in results.values()))


def write_examples(folder: Path) -> None:
    """Conversations of two turns and of one, pairs, prompts and other questions: the docstrings of this Python."""
    from tpullm.corpus.domains import docstrings

    asked = [(one.question, one.answers[0]) for one in docstrings.questions()]
    asked.sort(key=lambda pair: sum(map(len, pair)))  # two turns of the shortest ones fit a row
    message = lambda role, text: {"role": role, "content": text}  # noqa: E731
    system, kinds = message("system", "Answer."), {"sft": [], "dpo": [], "grpo": []}
    for number, two in enumerate(zip(asked[:400:2], asked[1:400:2], strict=True)):
        (question, answer), (_, other) = two
        before = [system, message("user", question)]
        turns = [message(*of) for turn in two[: 1 + number % 2] for of in zip(("user", "assistant"), turn, strict=True)]
        kinds["sft"].append({"messages": [system, *turns]})
        chosen, rejected = ([message("assistant", text)] for text in (answer, other))
        kinds["dpo"].append({"prompt": before, "chosen": chosen, "rejected": rejected})
        kinds["grpo"].append({"prompt": before})
    for kind, rows in kinds.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "questions.json").write_text(json.dumps([question for question, _ in asked[400:410]]))


def run(command: list, **more) -> tuple[str, float]:
    """What a command prints, and its largest resident size in MiB."""
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=errors, env=os.environ | more)
        _, status, usage = os.wait4(process.pid, 0)
        errors.seek(0)
        out.seek(0)
        assert status == 0, errors.read()[-3000:]
        return out.read(), usage.ru_maxrss / 1024


def tpullm(*words: object) -> float:
    """Run a verb; its largest resident size in MiB."""
    return run([sys.executable, __file__, "--ours", *words], PYTHONPATH=str(HERE.parent))[1]


def peer(given: argparse.Namespace, folder: Path, case: str, **more) -> dict:
    """Run a function of `real_tuning_trl.py` in the peer's environment; what it gives, and its MiB."""
    job = {"case": case, "model": given.model, "folder": str(folder), "template": given.template, **more}
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    out, mib = run([given.peer, HERE / "real_tuning_trl.py", json.dumps(job)], **quiet)
    return json.loads(out.splitlines()[-1]) | {"mib": round(mib)}


def beside(given: argparse.Namespace, folder: Path, case: str) -> dict:
    """Train with both, and compare the losses of all steps."""
    import yaml

    directory, kind = folder / f"run-{case}", case if case in ("dpo", "grpo") else "sft"
    train = {"steps": given.steps, "batch_size": ROWS, "sequence_length": LENGTH, "log_every": 1, "compute": "float32"}
    train |= {"evaluate_rows": 1, "optimizer": OPTIMIZER | {"peak_lr": RATES[case]}}
    stage = {"train": train, "held_out_fraction": 0.0}
    if case != "sft":
        stage["adapter"] = {"start": str(folder / "start"), "quantize_base": "nf4" if case == "qlora" else ""}
    if kind == "sft":
        stage["conversations"] = [str(folder / "sft.jsonl")]
        train["accumulation"] = ACCUMULATION
    elif kind == "dpo":
        stage["preferences"] = [str(folder / "dpo.jsonl")]
    else:
        stage["prompts"] = [str(folder / "grpo.jsonl")]
        stage["rewards"] = [{"name": "length", "most": 10, "edge": 200}]
        stage["policy"] = {"prompts": PROMPTS, "answers": ANSWERS, "tokens": TOKENS, "updates": 2, "kl_weight": KL}
        train["batch_size"] = 2 * PROMPTS
    recipe = {"name": "real", "base": given.model, "finetune": {case: stage}}
    (folder / f"{case}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    if not (folder / "imported").exists():
        tpullm("import", given.model, "--config", folder / f"{case}.yaml", "--run", folder / "imported")
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(folder / "imported", directory)
    mib = tpullm("finetune", "--config", folder / f"{case}.yaml", "--run", directory)
    rows = [json.loads(line) for line in (directory / case / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "losses" in row]
    theirs = peer(given, folder, kind, name=case, rates=[row["learning_rate"] for row in steps])
    noted = [json.loads(line) for line in (directory / "noted.jsonl").read_text().splitlines()]
    ours = pace([one["clock"] for one in noted]) | {"mib": round(mib)}
    losses, others = [row["losses"][-1] for row in steps], theirs.pop("losses")
    assert len(losses) == len(others) == given.steps
    apart = [abs(own - other) for own, other in zip(losses, others, strict=True)]
    found = {"distance": max(apart), "first": losses[0], "last": losses[-1], "ours": ours, "trl": theirs}
    if case == "qlora":
        found["nf4"] = numbers_apart(given, folder)
    return found | {"losses": losses, "trl losses": others}


def pace(clock: list[list[float]]) -> dict[str, float]:
    """Seconds and processor seconds of a step, medians, from what both clocks said at each one."""
    apart = [
        [after - before for after, before in zip(two, one, strict=True)]
        for one, two in zip(clock[:-1], clock[1:], strict=True)
    ]
    seconds, processor = map(statistics.median, zip(*(apart[FIRST:] or apart), strict=True))
    return {"seconds": round(seconds, 3), "processor": round(processor, 3)}


def ours(words: list[str]) -> int:
    """`tpullm`, which notes in `RUN/noted.jsonl` what each step reads. Serves in float32 if FLOAT32 is set."""
    sys.path.pop(0)  # files in this folder have names that libraries look for, such as `data`
    from tpullm.cli.main import entry
    from tpullm.system.process import environment

    if words[0] == "finetune":
        environment.prepare()
        import jax

        from tpullm.training.programs import Programs

        step, clocks = Programs.step, (time.perf_counter, time.process_time)

        def noted(self, state, batch):
            with open(self._job.directory.parent / "noted.jsonl", "a", encoding="utf-8") as file:
                texts = sequences(jax.device_get(batch))
                file.write(json.dumps({"clock": [clock() for clock in clocks], "texts": texts}) + "\n")
            return step(self, state, batch)

        Programs.step = noted
    if words[0] == "serve" and os.environ.get("FLOAT32"):
        environment.prepare()
        from tpullm.engine import session

        in_use = session.dtype_in_use
        session.dtype_in_use = lambda exact: in_use(True)
    sys.argv = ["tpullm", *words]
    return entry()


def sequences(batch) -> list[dict]:
    """The texts of a batch: ids, 1 where one counts in the loss, and of answers their advantage."""
    import numpy as np

    from tpullm.data.batch import BRANCH

    found = []
    for row, segments in enumerate(batch.segment_ids):
        numbers, branches = segments % BRANCH, segments // BRANCH
        for number in range(1, numbers.max() + 1):
            own = numbers == number
            for branch in [each for each in np.unique(branches[own]) if each] or [0]:
                places = np.flatnonzero(own & np.isin(branches, (0, branch)))
                ids = [*batch.inputs[row, places], batch.targets[row, places[-1]]]
                text = {"ids": list(map(int, ids)), "counts": [0, *map(int, batch.weights[row, places])]}
                if hasattr(batch, "advantages"):
                    text["advantage"] = float(batch.advantages[row, places[-1]])
                found.append(text)
    return found


def numbers_apart(given: argparse.Namespace, folder: Path) -> float:
    """The largest distance between the numbers that our nf4 codes and those of bitsandbytes stand for."""
    import jax
    import jax.numpy as jnp

    from tpullm.engine.session import load_session
    from tpullm.model.quantized import rounded_matrices

    peer(given, folder, "nf4")
    own, theirs = (load_session(name, mesh={}) for name in (given.model, folder / "nf4"))
    with jax.set_mesh(own.mesh):
        rounded = jax.jit(rounded_matrices, static_argnums=1)(own.params, "nf4")
        far = lambda one, other: jnp.max(jnp.abs(one.astype(jnp.float32) - other))  # noqa: E731
        apart = jax.tree.map(far, rounded, theirs.params)
    return max(map(float, jax.tree.leaves(apart)))


def served(given: argparse.Namespace, folder: Path) -> dict:
    """How many answers of a server are those of transformers and peft, by model; in its own type, and in float32."""
    stage, trls = folder / "run-dpo" / "dpo", folder / "sft-lora"
    for name, more in (("adapter", []), ("merged", ["--merge", "--dtype", "float32"])):
        if not (folder / name).exists():
            tpullm("export", stage, folder / name, *more)
    theirs = peer(given, folder, "texts", adapters=[str(folder / "adapter"), str(trls)], merged=str(folder / "merged"))
    questions, found = json.loads((folder / "questions.json").read_text()), {"others": 0}
    for dtype, more in (("bfloat16", {}), ("float32", {"FLOAT32": "1"})):
        command = [sys.executable, __file__, "--ours", "serve", folder / "run-dpo" / "base"]
        command += ["--adapter", stage, "--adapter", trls, "--port", "0", "--longest", "512"]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)} | more
        server = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, env=environment)
        try:
            lines = iter(server.stderr.readline, "")
            address = next(line for line in lines if " at http://" in line).split(" at ")[1].split(";")[0]
            next(line for line in lines if "serve: ready" in line)  # before, requests are refused
            for model, name in (("base", "base"), ("dpo", "adapter"), ("sft-lora", "sft-lora")):
                texts = [answer(address, model, question) for question in questions]
                for form in ("float32", "bfloat16", "merged"):
                    of = theirs[name][form]
                    found[f"{model} in {dtype}, {form}"] = sum(map(str.__eq__, texts, of))
                found["others"] += sum(map(str.__ne__, texts, theirs[name]["float32"])) * (dtype == "float32")
        finally:
            server.terminate()
            server.wait()
    return found | {"differ": theirs["differ"]}


def answer(address: str, model: str, question: str) -> str:
    """The likeliest answer of a model of the server."""
    asked = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 48}
    request = urllib.request.Request(
        f"{address}/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as opened:
        return json.load(opened)["choices"][0]["message"]["content"]


if __name__ == "__main__":
    sys.exit(ours(sys.argv[2:]) if sys.argv[1:2] == ["--ours"] else main())
