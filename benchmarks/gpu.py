"""One NVIDIA GPU: our training beside torch's, our attention beside cuDNN's and torch's, the plan beside the GPU.

    python benchmarks/gpu.py --peer-python PEER/bin/python      all parts, in 8 minutes at most
    python benchmarks/gpu.py --parts kernel                     one part; adds to the results that are there
    python benchmarks/gpu.py --tiny --output FOLDER             everything at tiny sizes, on a CPU too, in 3 minutes

PEER is an environment with torch and transformers; without the option it is this one. Each program has the GPU alone,
in a process of its own: two that take turns could not both fill its memory. Parts:

    train       tokens/s, MFU and peak memory of `125m` and `1b`, beside Llama of transformers and nanoGPT's form
    kernel      attention, forward and with gradients, at 2,048 to 32,768 tokens, with documents and without
    memory      the peak memory of our step beside that of the compiler and of the formulas
    prediction  the time of our step beside the same two

Results are written after each program: gpu-CARD.json and gpu-CARD.md. What is needed and not there is one line.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gpu_table
from figures import OURS, machine, rounded, summary
from gpu_cases import ATTENTION, CALLS, ROUNDS, TINY_ATTENTION, TINY_TRAININGS, TRAININGS, Training, nanogpt
from turns import Worker, WorkerError

from tpullm.hardware.chips import CHIPS
from tpullm.recipe import shipped
from tpullm.recipe.parsing import load
from tpullm.system import storage
from tpullm.system.cluster.place import may_have_gpu
from tpullm.system.errors import UserError
from tpullm.system.log import say
from tpullm.system.process import environment

ROOT = Path(__file__).parents[1]
PARTS = ("train", "kernel", "memory", "prediction")


@dataclass(frozen=True)
class Bench:
    """How it is measured, and the results so far.

    Args:
        tiny: tiny sizes.
        peer_python: the Python that has torch.
        tries: settings of each program that are measured, of those that fit.
        file: for the results, without its extension.
        found: the results.
        proofs: what the compiler says of our steps, by their names; two parts need it.
    """

    tiny: bool
    peer_python: str
    tries: int
    file: Path
    found: dict
    proofs: dict = field(default_factory=dict)

    @property
    def trainings(self) -> dict[str, Training]:
        """The models."""
        return TINY_TRAININGS if self.tiny else TRAININGS

    def save(self) -> None:
        """Write the results and their table."""
        storage.write_json(storage.path(f"{self.file}.json"), self.found)
        storage.write_text(storage.path(f"{self.file}.md"), gpu_table.page(self.found))

    def run(self, program: str, arguments: dict, rounds: int, count: int, **variables: str) -> tuple[dict, list[dict]]:
        """The facts and the answers of a program (`gpu_ours:...` or `gpu_peers:...`) in a process of its own.

        Raises:
            WorkerError: it failed.
        """
        peer = program.startswith("gpu_peers")
        wanted = {
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        python, start = self.peer_python if peer else sys.executable, time.monotonic()
        with Worker(program, arguments, wanted | environment.platforms() | variables, python) as worker:
            facts = worker.facts()
            answers = [worker.run(count) for _ in range(rounds)]
        say(f"{program}: {time.monotonic() - start:.0f} s")
        self.found.setdefault("versions", {})["peers" if peer else OURS] = facts.pop("versions")
        return facts, answers


class OutOfTime(Exception):
    """The minutes are over."""


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--peer-python", default=sys.executable, metavar="FILE", help="the Python that has torch")
    parser.add_argument("--tries", type=int, default=1, help="settings of each program that are measured (default: 1)")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which it ends (default: 8)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, also on a CPU")
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=ROOT / "benchmarks" / "results")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Measure and write; returns 2 for a user error, 1 if the minutes were too few."""
    arguments = parse(argv)
    try:
        bench = prepared(arguments)
        with at_most(arguments.minutes):
            for part in PARTS:
                if part in arguments.parts:
                    MEASURED[part](bench)
                    bench.found.setdefault("dates", {})[part] = time.strftime("%Y-%m-%d", time.gmtime())
                    bench.save()
    except UserError as error:
        return _fail(error, 2)
    except OutOfTime:
        return _fail(f"{arguments.minutes:g} minutes are over; what was measured is in {bench.file}.md", 1)
    except KeyboardInterrupt:
        return _fail("interrupted; what was measured is written", 130)
    print(gpu_table.page(bench.found))
    say(f"written: {bench.file}.json and {bench.file.name}.md")
    return 0


def prepared(arguments: argparse.Namespace) -> Bench:
    """The results that are there, to be added to; `UserError` without a GPU."""
    if not may_have_gpu() and not arguments.tiny:
        raise UserError("no NVIDIA GPU is here; --tiny tries everything on a CPU")
    if shutil.which(arguments.peer_python) is None:
        raise UserError(f"--peer-python: there is no program {arguments.peer_python}")
    card, driver = gpu()
    known = (name for name, chip in CHIPS.items() if card in chip.device_kinds)
    name = "tiny" if arguments.tiny else next(known, card.lower().replace(" ", "-"))
    file = arguments.output.absolute() / f"gpu-{name}"
    before = file.with_suffix(".json")
    found = storage.read_json(before) if before.exists() else {}
    found |= {"card": card, "driver": driver, "machine": machine()}
    return Bench(arguments.tiny, arguments.peer_python, max(1, arguments.tries), file, found)


def gpu() -> tuple[str, str]:
    """The name of the GPU and the version of its driver, by `nvidia-smi`."""
    if shutil.which("nvidia-smi") is None:
        return ("gpu" if may_have_gpu() else "cpu"), ""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True).stdout.splitlines() or ["gpu, "]
    name, _, driver = said[0].partition(", ")
    return name, driver


@contextlib.contextmanager
def at_most(minutes: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block when the minutes are over. SIGTERM ends it like Ctrl-C, and its programs too."""

    def over(*_) -> None:
        raise OutOfTime

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# ---------------------------------------------------------------- training


def train(bench: Bench) -> None:
    """Every model, by us and by the peers."""
    for size in bench.trainings:
        for name in (OURS, "transformers", "nanoGPT"):
            measure_training(bench, size, name)


def measure_training(bench: Bench, size: str, name: str) -> None:
    """The settings of one program in their order, until `bench.tries` have fitted the memory."""
    records, of_size = [], bench.found.setdefault("train", {}).setdefault(size, {})
    steps = bench.trainings[size].steps
    for setting, program, arguments in settings_of(bench.trainings[size], name):
        try:
            record = training_record(*bench.run(program, arguments, ROUNDS, steps), steps)
        except WorkerError as error:
            record = {"failed": str(error)}
        records.append({"setting": setting} | record)
        of_size[name] = records  # only now: what an earlier call measured stands until there is something new
        bench.save()
        failed = record.get("failed", "")
        say(f"{size}, {name}, {setting}: {failed or told(record)}")
        if (failed and not is_full(failed)) or sum("failed" not in one for one in records) == bench.tries:
            return


def settings_of(training: Training, name: str) -> Iterator[tuple[str, str, dict]]:
    """Each setting of a program in words, what a process runs for it, and its arguments."""
    if name == OURS:
        for changes in training.ours:
            words = " ".join(change.rpartition("--")[2].rpartition(".")[2] for change in changes)
            yield words, "gpu_ours:training", {"recipe": training.recipe, "changes": list(changes)}
        return
    recipe = load(Path(shipped.find(training.recipe)), list(training.ours[0]))
    model, length = recipe.model.resolved(recipe.tokenizer.vocabulary_size), recipe.pretrain.sequence_length
    if name == "nanoGPT":
        model = nanogpt(model, training.layers, length)
    for rows in training.rows:
        arguments = {"kind": name, "model": dataclasses.asdict(model), "rows": rows, "length": length}
        yield f"batch_size={rows}", "gpu_peers:training", arguments


def training_record(facts: dict, answers: list[dict], steps: int) -> dict:
    """The figures of a program: medians over its turns, and the peak memory of its process."""
    if not math.isfinite(loss := answers[-1]["loss"]):
        return {"failed": f"the loss is {loss}"}
    seconds = [answer["seconds"] / steps for answer in answers]
    return facts | {
        "step_seconds": summary(seconds),
        "tokens_per_second": summary([facts["tokens"] / one for one in seconds]),
        "peak_bytes": answers[-1]["peak_bytes"],
        "loss": rounded(loss),
    }


def is_full(message: str) -> bool:
    """Whether a program failed for want of memory, in the words of CUDA, torch or XLA."""
    return "out of memory" in message.lower() or "RESOURCE_EXHAUSTED" in message


def told(record: dict) -> str:
    """A line about a program that was measured."""
    held = record["peak_bytes"]
    rate = f"{record['tokens_per_second']['median']:,.0f} tokens/s"
    return rate if held is None else f"{rate}, {held / 2**30:.1f} GiB"


# ---------------------------------------------------------------- attention


def kernel(bench: Bench) -> None:
    """Every shape, by JAX and by torch."""
    found = bench.found.setdefault("kernel", {})
    for case in TINY_ATTENTION if bench.tiny else ATTENTION:
        of_case = {"shape": dataclasses.asdict(case), "errors": {}, "failed": {}}
        for side in ("gpu_ours", "gpu_peers"):
            try:
                facts, answers = bench.run(f"{side}:attention", dataclasses.asdict(case), ROUNDS, CALLS)
            except WorkerError as error:
                of_case["failed"][side] = str(error)
            else:
                add_kernels(of_case, facts, answers)
            found[str(case)] = of_case
            bench.save()
        measured = [name for name in of_case.get("gradient", {})]
        say(f"attention, {case}: {', '.join(measured)} measured; failed: {', '.join(of_case['failed']) or 'none'}")


def add_kernels(of_case: dict, facts: dict, answers: list[dict]) -> None:
    """The figures of each kernel that took part: `of_case[pass][kernel]`."""
    for key in ("errors", "failed"):
        of_case[key] |= facts[key]
    for which, flops in facts["flops"].items():
        for name in answers[0][which]:
            seconds = summary([answer[which][name] for answer in answers])
            figures = {"seconds": seconds, "flops_per_second": rounded(flops / seconds["median"])}
            of_case.setdefault(which, {})[name] = figures


# ---------------------------------------------------------------- the plan


def memory(bench: Bench) -> None:
    """The peak memory of our steps: measured, by the compiler, by the formulas."""
    compare_with_plan(bench, "memory", "peak_bytes", lambda record: record["peak_bytes"])


def prediction(bench: Bench) -> None:
    """The seconds of our steps: measured, by the compiled program, by the formulas."""
    compare_with_plan(bench, "prediction", "step_seconds", lambda record: record["step_seconds"]["median"])


def compare_with_plan(bench: Bench, part: str, figure: str, measured: Callable[[dict], float | None]) -> None:
    """Of each of our steps that was measured: a figure beside what the plan says."""
    found: dict[str, dict] = {}
    for size, training in bench.trainings.items():
        if OURS not in bench.found.get("train", {}).get(size, {}):
            measure_training(bench, size, OURS)
        arguments = {setting: given for setting, _, given in settings_of(training, OURS)}
        for record in bench.found["train"][size][OURS]:
            if "failed" in record or record["setting"] not in arguments:
                continue
            name = f"{size}, {record['setting']}"
            compiled = proof(bench, name, arguments[record["setting"]], record["topology"])
            found[name] = {
                "measured": measured(record),
                "compiled": compiled.get(figure),
                "formula": record["expected"][figure],
                "failed": compiled.get("failed", ""),
            }
            bench.found[part] = found
            bench.save()


def proof(bench: Bench, name: str, arguments: dict, topology: str) -> dict:
    """What the compiler says of our step for an absent card of this kind, or why it says nothing, `failed`."""
    if bench.tiny:
        topology = "h100:1"  # at tiny sizes any card does, so that a CPU tries this too
    if name not in bench.proofs and topology == "local":
        bench.proofs[name] = {"failed": "hardware/chips.yaml does not know this card"}
    if name not in bench.proofs:
        given = arguments | {"topology": topology}
        try:
            bench.proofs[name], _ = bench.run("gpu_ours:proven", given, 0, 0, JAX_PLATFORMS="cpu")
        except WorkerError as error:
            bench.proofs[name] = {"failed": str(error)}
    say(f"{name}: {bench.proofs[name].get('failed') or f'compiled for {topology}'}")
    return bench.proofs[name]


MEASURED = {"train": train, "kernel": kernel, "memory": memory, "prediction": prediction}


def _fail(message: object, code: int) -> int:
    print(f"benchmarks/gpu.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
