"""`tpullm evaluate --tasks` beside the harness's own `hf` model: requests a second of each kind.

    python benchmarks/evaluate_tasks.py TEXT... [--sizes 12m 120m] [--kinds rolling] [--rounds 3] [--out FILE]

TEXT is prose. It needs the extras `hf` and `lm-eval`. Both programs run in turns, each in a fresh process, on
the same requests and the same random weights in float32; `hf` with each batch size, of which the best one counts. A
process answers two halves of the requests: `first` is the time of the first half, with what has to be compiled, and
`second` that of the other half. On a machine that others use, the processor time says more than the time.

A third program, `least`, does of the rolling requests only what nobody can leave out, in torch: the matmuls of each
window, and its attention by torch's kernel (no embedding, no norm, no rotation, no log-probability).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import random_model

KINDS = ("choices", "rolling", "generation")
CONTEXT = 1024
FLOOR = "least"
COUNTS = {"12m": (128, 16, 64), "120m": (48, 8, 16)}  # requests of a half, by kind; questions for choices


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", type=Path)
    parser.add_argument("--sizes", nargs="+", default=list(COUNTS), choices=COUNTS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="of hf")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    text = "\n".join(path.read_text(encoding="utf-8") for path in options.text)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            place = Path(folder) / size
            random_model.make(place, size, text, CONTEXT)
            asked = {kind: made for kind, made in requests(text, size).items() if kind in options.kinds}
            (place / "requests.json").write_text(json.dumps(asked), encoding="utf-8")
            found[size] = in_turns(place, options.rounds, options.batches, options.kinds)
            show(size, found[size], options.kinds)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


def requests(text: str, size: str) -> dict[str, list[list]]:
    """Arguments of requests of each kind: two halves, one after the other."""
    random.seed(0)
    questions, texts, prompts = (2 * count for count in COUNTS[size])

    def passage(least: int, most: int) -> str:
        start = random.randrange(len(text) - most)
        return text[start : start + random.randint(least, most)]

    choices = []
    for _ in range(questions):
        question = passage(100, 400)
        choices += [[question, passage(4, 16)] for _ in range(4)]
    settings = {"until": ["\x00"], "max_gen_toks": 64}
    return {
        "choices": choices,
        "rolling": [[passage(1500, 4000)] for _ in range(texts)],
        "generation": [[passage(100, 400), settings] for _ in range(prompts)],
    }


def in_turns(folder: Path, rounds: int, batches: list[int], kinds: list[str]) -> dict:
    """Seconds and seconds of processor time of both halves, by program and kind: the medians of the rounds."""
    programs = {"tpullm": ("ours", "0")} | ({FLOOR: (FLOOR, "1")} if "rolling" in kinds else {})
    programs |= {f"hf, batch {batch}": ("hf", str(batch)) for batch in batches}
    seconds = {name: {kind: [] for kind in kinds if name != FLOOR or kind == "rolling"} for name in programs}
    for number in range(rounds):
        for name, (program, batch) in programs.items():
            for kind, halves in child(program, batch, folder).items():
                seconds[name][kind].append(halves)
            print(f"round {number + 1}: {name}: {seconds[name]}", file=sys.stderr, flush=True)
    median = lambda rounds: [[statistics.median(each) for each in zip(*half)] for half in zip(*rounds)]  # noqa: E731, B905
    return {name: {kind: median(rounds) for kind, rounds in of.items()} for name, of in seconds.items()}


def child(program: str, batch: str, folder: Path) -> dict:
    """What `answer` prints in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:  # so that ours compiles each time
        environment = os.environ | {"XDG_CACHE_HOME": cache, "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, __file__, "--answer", program, batch, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def answer(program: str, batch: str, folder: str) -> None:
    """In the child: answer all requests, and print the seconds of both halves of each kind."""
    if program == "ours":
        from tpullm.system.process import environment

        environment.prepare()
    from lm_eval.api.instance import Instance

    asked = json.loads((Path(folder) / "requests.json").read_text(encoding="utf-8"))
    if program == FLOOR:
        methods = {"rolling": least(folder)}
    else:
        model = ours(folder) if program == "ours" else theirs(folder, int(batch))
        methods = {
            "choices": model.loglikelihood,
            "rolling": model.loglikelihood_rolling,
            "generation": model.generate_until,
        }
    seconds = {}
    for kind, method in [(kind, method) for kind, method in methods.items() if kind in asked]:
        made = [Instance("", {}, tuple(arguments), 0) for arguments in asked[kind]]
        half, seconds[kind] = len(made) // 2, []
        for part in (made[:half], made[half:]):
            start = time.perf_counter(), time.process_time()
            method(part)
            seconds[kind].append([time.perf_counter() - start[0], time.process_time() - start[1]])
    print(json.dumps(seconds))


def ours(folder: str):
    """The model in tpullm."""
    from tpullm.engine.session import load_session
    from tpullm.evaluation.harness import HarnessModel
    from tpullm.evaluation.measured_model import MeasuredModel

    return HarnessModel(MeasuredModel(load_session(folder)), "model")


def theirs(folder: str, batch: int):
    """The model in the harness's `hf`."""
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return HFLM(folder, dtype="float32", batch_size=batch, device="cpu")


def least(folder: str):
    """A function of rolling requests that does the matmuls and the attention of a forward pass over each window."""
    import torch
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from torch.nn.functional import scaled_dot_product_attention
    from transformers import AutoTokenizer, LlamaForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    heads, layers = model.config.num_attention_heads, model.config.num_hidden_layers

    @torch.inference_mode()
    def compute(requests: list) -> None:
        for request in requests:
            windows = get_rolling_token_windows(tokenizer(request.args[0])["input_ids"], 0, CONTEXT, 1)
            for context, continuation in map(make_disjoint_window, windows):
                size = len(context) + len(continuation) - 1
                for layer in linear:
                    layer(torch.ones(size, layer.in_features))
                q, k, v = torch.ones(3, 1, heads, size, model.config.hidden_size // heads)
                for _ in range(layers):
                    scaled_dot_product_attention(q, k, v, is_causal=True)

    return compute


def show(size: str, found: dict, kinds: list[str]) -> None:
    """A table in Markdown: requests a second, and how many times as many as `hf` with its best batch size."""
    counts = dict(zip(KINDS, COUNTS[size], strict=True))
    counts["choices"] *= 4
    print(f"\n{size}, requests a second\n")
    print("| | half | tpullm | hf | of batch | times | times, by processor time |\n" + "| --- " * 7 + "|")
    for kind in kinds:
        for half, name in enumerate(("first", "second")):
            ours, *peers = ([own[kind][half], program] for program, own in found.items() if program != FLOOR)
            best, (least, _) = min(peers), min((peer[0][1], peer[1]) for peer in peers)
            rates = f"{counts[kind] / ours[0][0]:.2f} | {counts[kind] / best[0][0]:.2f} | {best[1].split()[-1]}"
            times = f"{best[0][0] / ours[0][0]:.2f} | {least / ours[0][1]:.2f}"
            print(f"| {kind} | {name} | {rates} | {times} |", flush=True)
    if FLOOR not in found:
        return
    halves = (own["rolling"][1] for program, own in found.items() if program.startswith("hf"))
    wall, processor = (min(peer) / own for *peer, own in zip(*halves, found[FLOOR]["rolling"][1], strict=True))
    print(f"\nrolling, second half: hf takes {wall:.2f} times the least, {processor:.2f} by processor time")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer(*sys.argv[2:])
    else:
        main()
