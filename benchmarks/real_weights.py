"""A published model in tpullm beside programs of others: the same weights, texts and batches.

    python benchmarks/real_weights.py tasks FOLDER --text FILE ... --peer PEER/bin/python [--ours MODEL] [--batches 8]
    python benchmarks/real_weights.py pretraining FOLDER --text FILE ... --peer PEER/bin/python
    python benchmarks/real_weights.py files GGUF ... --text FILE ... --peer PEER/bin/python

FOLDER is in the format of Hugging Face; text is prose in UTF-8. PEER is an environment with torch, transformers and
`lm_eval`, for `files` with llama-cpp-python. Programs take turns, each in a process of its own.

`tasks` asks 200 questions with choices made of the text (the right one continues a passage), our `everyday` questions,
last words, whole texts, and 50 texts of 32 tokens, by lm-eval: our model beside its own `hf`, item by item. `--ours` is
another MODEL of the same weights, such as a GGUF file. With `--rounds 2` ours
asks twice in a process: in the first pass it compiles.

`pretraining` continues the pretraining of FOLDER by `tpullm pretrain`, and does the same steps on the same batches with
`LlamaForCausalLM` and AdamW, as the Trainer of transformers would: losses, tokens/s, and the largest resident memory.

`files` reads GGUF files with our engine, exactly and as `generate` does, and with llama.cpp: the perplexity of 5,100
tokens in windows of 256, and ten greedy texts of 64 tokens. Where a text differs, it says how far the token of the
other one was behind in each program (nats of ours, logits of llama.cpp).
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

HERE = Path(__file__).parent
STEPS, FIRST, ROWS = 10, 3, 4  # of `pretraining`; the first steps are not timed
WINDOWS, PROMPTS, TOKENS = 20, 10, 64  # of `files`


def main() -> None:
    """Measure, and print a line of JSON for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tasks", "pretraining", "files"))
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", nargs="+", required=True, type=Path)
    parser.add_argument("--peer", default=sys.executable)
    parser.add_argument("--ours", default="")
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8], help="of hf, of which the fastest counts")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--items", type=int, default=200, help="questions with choices; a quarter as many texts")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row in training, and of a window")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    with tempfile.TemporaryDirectory(prefix="tpullm-") as place:
        for found in globals()[options.what](options, Path(place)):
            print(json.dumps(found), flush=True)


def child(python: str, place: Path, function: str, **arguments) -> dict:
    """What a function here returns in a process of its own, with `mib`, its largest resident size."""
    given = place / "arguments.json"
    given.write_text(json.dumps(arguments))
    quiet = {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    quiet |= {"PYTHONPATH": str(HERE.parent)} if python == sys.executable else {}
    with open(place / "said", "w") as said, open(place / "errors", "w") as errors:
        process = subprocess.Popen(
            [python, __file__, "--child", function, str(given)], stdout=said, stderr=errors, env=os.environ | quiet
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{function}: {(place / 'errors').read_text()[-2000:]}")
    return json.loads((place / "said").read_text().splitlines()[-1]) | {"mib": round(usage.ru_maxrss / 1024)}


def prose(files: list[Path]) -> str:
    """The text of all files, with single spaces."""
    return " ".join(" ".join(file.read_text(encoding="utf-8").split()) for file in files)


# --- tasks


def tasks(options, place: Path):
    """Of each type and task: items that are the same; of each kind of request: the times of both, hf's the best."""
    files = write_tasks(place, prose(options.text), options.items)
    for dtype in options.types:
        given = {"files": files, "dtype": dtype}
        ours = child(
            sys.executable, place, "ask_ours", model=options.ours or options.models[0], times=options.rounds, **given
        )
        batches = {b: given | {"model": options.models[0], "batch": b} for b in options.batches}
        hf = {batch: child(options.peer, place, "ask_hf", **more) for batch, more in batches.items()}
        for task, items in ours["items"].items():
            theirs = hf[options.batches[0]]
            scores = {"ours": ours["scores"][task], "hf": theirs["scores"][task]}
            yield {"type": dtype, "task": task} | same_items(items, theirs["items"][task]) | scores
        for kind, passes in ours["seconds"].items():
            row = {"type": dtype, "requests": kind, "mib": [ours["mib"], min(each["mib"] for each in hf.values())]}
            for clock, name in enumerate(("seconds", "processor")):
                best, batch = min((each["seconds"][kind][0][clock], batch) for batch, each in hf.items())
                own = [each[clock] for each in passes]
                row[name] = {"ours": own, "hf": best, "batch": batch, "times": best / own[-1]}
            yield row


def write_tasks(place: Path, text: str, items: int) -> list[str]:
    """YAML files of tasks: questions made of the text, whose right choice continues a passage, and `everyday`."""
    from tests.evaluation import local_tasks

    random.seed(0)

    def passage(least: int, most: int, after: int = 0) -> tuple[str, str]:
        """Some characters that begin and end with a word, and the words after them."""
        start = text.index(" ", random.randrange(len(text) - most - after - 200)) + 1
        end = text.index(" ", start + random.randint(least, most))
        return text[start:end], text[end + 1 : text.index(" ", end + 1 + after)]

    questions = []
    for _ in range(items):
        question, right = passage(200, 500, 40)
        choices = [passage(1, 2, 40)[1] for _ in range(3)]
        choices.insert(label := random.randrange(4), right)
        questions.append((question, choices, label))
    made, kinds = {}, local_tasks.TASKS
    written = kinds["written"] | {"generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 32}}
    texts = [passage(1500, 3000)[0] for _ in range(max(2, items // 25))]
    for name, asked, chosen in (
        ("choices", questions, {"choices": kinds["choice"], "whole_texts": kinds["whole_texts"]}),
        ("everyday", everyday(), {"everyday": kinds["choice_after_examples"]}),
        ("quarter", questions[: items // 4], {"last_words": kinds["last_words"], "texts": written}),
    ):
        (place / name).mkdir()
        made |= local_tasks.write(place / name, asked, texts, chosen)
    return list(made.values())


def everyday() -> list[tuple[str, list[str], int]]:
    """The questions that come with tpullm."""
    lines = (HERE.parent / "tpullm/evaluation/everyday.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["question"], row["choices"], row["choices"].index(row["answer"])) for row in rows]


def same_items(ours: list, theirs: list) -> dict:
    """How many items have the same choice (of a single continuation: whether it is the likeliest) or text.

    Also the largest difference of a log-likelihood, and where choices differ, the largest by which two were apart.
    """
    same, distance, margin = 0, 0.0, 0.0
    for own, peer in zip(ours, theirs, strict=True):
        if isinstance(own[0], list):  # likelihoods, and whether each is the likeliest
            numbers, others = ([one for one, _ in of] for of in (own, peer))
            verdicts = [of.index(max(of)) for of in (numbers, others)] if others[1:] else [own[0][1], peer[0][1]]
            if verdicts[0] != verdicts[1] and others[1:]:
                margin = max(margin, abs(others[verdicts[0]] - others[verdicts[1]]))
        else:
            numbers, others, verdicts = ([], [], [own, peer]) if isinstance(own[0], str) else (own, peer, [0, 0])
        same += verdicts[0] == verdicts[1]
        distance = max([distance, *(abs(one - two) for one, two in zip(numbers, others, strict=True))])
    return {"items": len(ours), "same": same, "largest difference": distance, "margin where they differ": margin}


def ask_ours(model: str, files: list[str], dtype: str, times: int) -> dict:
    """Our model, with matmuls in `dtype` (`evaluate` takes float32 on a CPU)."""
    from tpullm.system.process import environment

    environment.prepare()
    import jax.numpy as jnp

    from tpullm.engine import session
    from tpullm.evaluation.harness import HarnessModel
    from tpullm.evaluation.measured_model import MeasuredModel

    found, compute = session.find_model(model), jnp.dtype(dtype)
    architecture, mesh = session.built_on_mesh(found)
    params = found.params(architecture, session.parameter_targets(architecture, mesh, compute))
    loaded = session.Session(found.tokenizer, architecture, params, mesh, compute, found.talks, found.model)
    return ask(HarnessModel(MeasuredModel(loaded), "model"), files, times)


def ask_hf(model: str, files: list[str], dtype: str, batch: int) -> dict:
    """The harness's own model."""
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return ask(HFLM(model, dtype=dtype, batch_size=batch, device="cpu"), files, 1)


def ask(model, files: list[str], times: int) -> dict:
    """What the harness gets for each item, the scores, and the seconds of each kind of request, each time."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    seconds = {kind: [] for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until")}

    def timed(kind, method):
        def answer(requests, **more):
            start = time.perf_counter(), time.process_time()
            answers = method(requests, **more)
            seconds[kind].append([time.perf_counter() - start[0], time.process_time() - start[1]])
            return answers

        return answer

    for kind in seconds:
        setattr(model, kind, timed(kind, getattr(model, kind)))
    options = {"bootstrap_iters": 0, "torch_random_seed": None, "task_manager": TaskManager(include_defaults=False)}
    for _ in range(times):
        found = simple_evaluate(model, tasks=files, **options)
    by_number = {task: sorted(of, key=lambda one: one["doc_id"]) for task, of in found["samples"].items()}
    items = {task: [[answers[0] for answers in one["resps"]] for one in of] for task, of in by_number.items()}
    scores = {task: {k: v for k, v in of.items() if isinstance(v, float)} for task, of in found["results"].items()}
    return {"items": items, "scores": scores, "seconds": seconds}


# --- pretraining


def pretraining(options, place: Path):
    """Of each type: the losses of both, tokens/s by the clock and by processor time, and memory."""
    for dtype in options.types:
        run, recipe = place / dtype, place / f"{dtype}.yaml"
        recipe.write_text(json.dumps(recipe_of(options, run, dtype)))
        for verb in (["import", options.models[0]], ["collect"], ["tokenize"]):
            words = [*verb[1:], "--config", recipe, "--run", run] if verb[0] == "import" else [recipe, "--run", run]
            tpullm(verb[0], *words)
        batches = child(sys.executable, place, "write_batches", recipe=str(recipe))["batches"]
        for _ in range(options.rounds):
            shutil.rmtree(run / "pretrain", ignore_errors=True)
            metrics = run / "pretrain" / "metrics.jsonl"
            clocks, mib = tpullm("pretrain", recipe, "--run", run, rows=metrics)
            rows = [json.loads(line) for line in metrics.read_text().splitlines() if '"loss"' in line]
            rates = [row["learning_rate"] for row in rows]
            given = {"model": options.models[0], "batches": batches, "rates": rates, "dtype": dtype}
            theirs = child(options.peer, place, "train_torch", **given)
            found = {"type": dtype, "losses": list(zip([row["loss"] for row in rows], theirs["losses"], strict=True))}
            programs = {"tpullm": (clocks, mib), "transformers": (theirs["clocks"], theirs["mib"])}
            for name, (ends, mib) in programs.items():
                clock, processor = (last - first for first, last in zip(ends[FIRST - 1], ends[STEPS - 1], strict=True))
                count = (STEPS - FIRST) * ROWS * options.length
                found[name] = {"tokens/s": count / clock, "of processor time": count / processor, "mib": mib}
            yield found


def recipe_of(options, run: Path, dtype: str) -> dict:
    """A recipe that continues the pretraining of the model on the texts."""
    source = {"kind": "text", "licence": "public domain", "filter": False, "deduplicate": False}
    sources = [{"name": f"text{n}", "path": str(file.resolve())} | source for n, file in enumerate(options.text)]
    optimizer = {"peak_lr": 1e-4, "warmup_steps": 3}
    train = {"steps": STEPS, "batch_size": ROWS, "sequence_length": options.length, "compute": dtype, "log_every": 1}
    train |= {"evaluate_rows": 1, "optimizer": optimizer}
    base = options.models[0]
    return {"name": "real", "run": str(run), "base": base, "corpus": {"sources": sources}, "pretrain": train}


def tpullm(*words: object, rows: Path | None = None) -> tuple[list, int]:
    """Run a verb: for each of `rows`, the clock and the processor time when it came; the largest resident MiB."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    clocks: list[tuple[float, float]] = []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([sys.executable, "-m", "tpullm", *map(str, words)], stderr=errors, env=environment)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG if rows else 0)
            if pid:
                break
            used = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
            came = rows.read_text().count('"loss"') if rows.exists() else 0
            now = time.monotonic(), sum(map(int, used)) / os.sysconf("SC_CLK_TCK")
            clocks += [now] * (came - len(clocks))
            time.sleep(0.02)
        errors.seek(0)
        assert status == 0, errors.read()[-1000:]
    return clocks, round(usage.ru_maxrss / 1024)


def write_batches(recipe: str) -> dict:
    """The batches of the pretraining of a recipe, in a file beside it."""
    import dataclasses

    import numpy as np

    from tpullm.data.stream import pretraining_stream
    from tpullm.recipe.parsing import load

    settings, file = load(recipe), Path(recipe).with_suffix(".npz")
    batches = map(pretraining_stream(settings, Path(settings.run)).batch_at, range(STEPS))
    arrays = {f"{name}{n}": one for n, batch in enumerate(batches) for name, one in dataclasses.asdict(batch).items()}
    np.savez(file, **arrays)
    return {"batches": str(file)}


def train_torch(model: str, batches: str, rates: list[float], dtype: str) -> dict:
    """The same steps in transformers: losses, and clock and processor time after each."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)
    losses, clocks, read = [], [], np.load(batches)
    for step, rate in enumerate(rates):
        names = ("inputs", "targets", "segment_ids", "positions", "weights")
        inputs, targets, segments, positions, weights = (torch.from_numpy(read[f"{name}{step}"]) for name in names)
        mask = None
        if segments.min() != segments.max():  # documents don't see each other
            mask = (segments[:, :, None] == segments[:, None]).tril()[:, None]
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            more = {"position_ids": positions.long(), "attention_mask": mask, "use_cache": False}
            logits = net(inputs.long(), **more).logits
        pairs = logits.float().flatten(0, 1), targets.long().flatten()
        each = torch.nn.functional.cross_entropy(*pairs, reduction="none")
        loss = each @ weights.flatten() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        clocks.append((time.monotonic(), time.process_time()))
    return {"losses": losses, "clocks": clocks}


# --- files


def files(options, place: Path):
    """Of each file: perplexities, texts that are the same, and how far the other token was behind where they differ."""
    text, size = prose(options.text), options.length
    beginnings = [text.index(" ", n * len(text) // (PROMPTS + 1)) + 1 for n in range(1, PROMPTS + 1)]
    prompts = [text[start : text.index(" ", start + 100)] for start in beginnings]
    for file in options.models:
        given = {"file": file, "text": text[: 20 * WINDOWS * size], "prompts": prompts, "size": size}
        theirs = child(options.peer, place, "read_llama_cpp", **given)
        found = {"file": Path(file).name, "MB": round(os.path.getsize(file) / 1e6, 1)}
        found |= {"llama.cpp": round(theirs["perplexity"], 4)}
        for dtype in options.types:
            ours = child(sys.executable, place, "read_ours", exact=dtype == "float32", **given)
            assert ours["ids"] == theirs["ids"], f"{file}: the tokens differ"
            found[dtype] = {"perplexity": round(ours["perplexity"], 4)} | same_texts(ours["texts"], theirs["texts"])
        yield found


def same_texts(ours: list, theirs: list) -> dict:
    """How many texts are the same; where one differs, its place and how far the other's token is behind in each."""
    margins = []
    for own, peer in zip(ours, theirs, strict=True):
        place = next((n for n, (one, two) in enumerate(zip(own, peer, strict=True)) if one[0][0] != two[0][0]), None)
        if place is not None:
            (mine, _), (others, _) = own[place][0], peer[place][0]
            behind = [
                round(of[place][0][1] - dict(of[place]).get(other, float("-inf")), 4)
                for of, other in ((own, others), (peer, mine))
            ]
            margins.append([place, *behind])
    return {"same texts": len(ours) - len(margins), "place, behind in ours, in theirs": margins}


def read_ours(file: str, text: str, prompts: list[str], size: int, exact: bool) -> dict:
    """Our engine: ids of the text, its perplexity, and of each greedy token the likeliest ones."""
    from tpullm.system.process import environment

    environment.prepare()
    import math

    from tpullm.engine.engine import Engine
    from tpullm.engine.request import Request
    from tpullm.engine.session import load_session
    from tpullm.recipe.sampling import GREEDY

    session = load_session(file, exact=exact)
    engine = Engine(session, 1, 2 * size)

    def answer(ids: list[int], tokens: int, **more) -> list:
        found: list = []
        engine.submit(Request(tuple(ids), tokens, GREEDY, **more), found.append)
        while engine.step():
            pass
        return found

    ids = session.tokenizer.encode(text)[: WINDOWS * size]
    windows = [ids[first : first + size] for first in range(0, len(ids), size)]
    told = [
        token.log_probability for window in windows for token in answer(window, 1, top=0, echo=len(window) - 1)[:-1]
    ]
    texts = [[each.top for each in answer(session.tokenizer.encode(of), TOKENS, top=5)] for of in prompts]
    return {"ids": ids, "perplexity": math.exp(-sum(told) / len(told)), "texts": texts}


def read_llama_cpp(file: str, text: str, prompts: list[str], size: int) -> dict:
    """The same by llama.cpp, with keys and values in float32; logits in place of log-probabilities."""
    import llama_cpp
    import numpy as np

    threads = len(os.sched_getaffinity(0))
    options = {"n_threads": threads, "n_threads_batch": threads, "type_k": 0, "type_v": 0}
    model = llama_cpp.Llama(file, n_ctx=2 * size, logits_all=True, verbose=False, **options)

    def scores(ids: list[int], count: int) -> np.ndarray:
        model.eval(ids)
        return np.array(model.scores[model.n_tokens - count : model.n_tokens], np.float64)

    ids, told = model.tokenize(text.encode(), add_bos=False)[: WINDOWS * size], []
    for first in range(0, len(ids), size):
        window = ids[first : first + size]
        model.reset()
        logits = scores(window, len(window))[:-1]
        most = logits.max(-1)
        chosen = logits[np.arange(len(logits)), window[1:]]
        told += (chosen - most - np.log(np.exp(logits - most[:, None]).sum(-1))).tolist()
    texts = []
    for prompt in prompts:
        model.reset()
        last, likeliest = scores(model.tokenize(prompt.encode(), add_bos=False), 1)[0], []
        for _ in range(TOKENS):
            best = np.argsort(-last, kind="stable")[:5].tolist()
            likeliest.append([(token, float(last[token])) for token in best])
            last = scores(best[:1], 1)[0]
        texts.append(likeliest)
    return {"ids": ids, "perplexity": float(np.exp(-np.mean(told))), "texts": texts}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.path.pop(0)  # files in this folder have names that libraries look for, such as `data`
        print(json.dumps(globals()[sys.argv[2]](**json.loads(Path(sys.argv[3]).read_text()))))
    else:
        main()
