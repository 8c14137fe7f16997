"""Our compiled step beside MaxText's: same model, slice, batch and recomputation, one estimator for both programs.

    python -m venv MAXTEXT && MAXTEXT/bin/pip install 'maxtext[tpu]'     2.8 GB; Python 3.12 or 3.13
    python benchmarks/beside_maxtext.py --maxtext MAXTEXT/bin/python     6 compilations, 1 to 3 minutes each when idle

Writes benchmarks/results/maxtext.md and maxtext.json. Nothing runs on a TPU: step times are predictions, by
`tpullm/planning/tpu_schedule.py`, which treats both programs alike. MaxText's own `train_compile` makes its program,
with its defaults.
"""

import argparse
import gzip
import json
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tpullm.hardware.topologies import parse
from tpullm.planning.compiling import read_executable
from tpullm.planning.proof import Proof, proof_cache_file, prove, seconds_by_part
from tpullm.planning.tpu_schedule import schedule_on_tpu
from tpullm.recipe.parsing import load
from tpullm.recipe.schema import Recipe
from tpullm.system.errors import UserError
from tpullm.system.log import say

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STEP = Path(__file__).parent / "maxtext_step.py"


@dataclass(frozen=True)
class Case:
    """One model on one slice: settings of ours over `configs/pretrain/8b.yaml`, and of MaxText's."""

    topology: str
    rows: int  # of a chip
    length: int
    ours: tuple[str, ...]
    model_name: str
    compile_topology: str  # of a v5p, MaxText counts cores


LLAMA2 = ("--tokenizer.vocabulary_size=32000", "--model.rope_theta=10000.0")
CASES = {
    "Llama-2-7B": Case(
        "v5e:16x16", 4, 2048, (*LLAMA2, "--model.kv_heads=32", "--model.mlp_width=11008"), "llama2-7b", "v5e-256"
    ),
    "Llama-3.1-8B": Case("v6e:16x16", 3, 8192, (), "llama3.1-8b", "v6e-256"),
    "Llama-2-70B": Case(
        "v5p:8x8x8",
        4,
        4096,
        (*LLAMA2, "--model.layers=80", "--model.width=8192", "--model.heads=64", "--model.mlp_width=28672"),
        "llama2-70b",
        "v5p-1024",
    ),
}


@dataclass(frozen=True)
class Figures:
    """The figures of one program: seconds of a step by part, memory, and the versions that compiled it."""

    step_seconds: float
    peak_bytes: int
    seconds: dict[str, float]
    versions: dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maxtext", required=True, help="the Python that has MaxText")
    parser.add_argument("--keep", type=Path, help="a folder for MaxText's programs, which are not compiled again")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    arguments = parser.parse_args()
    path = RESULTS / "maxtext.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in arguments.cases:
        proof = proven(name)
        theirs = maxtexts(
            name, arguments.maxtext, arguments.keep, read_executable(proof_cache_file(proof.program)).places
        )
        found[name] = {"tpullm": asdict(ours(proof)), "MaxText": asdict(theirs)}
        path.write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "maxtext.md").write_text(page(found))
        say(row(name, found[name]))


def recipe_of(name: str) -> Recipe:
    """Our recipe of a case."""
    case = CASES[name]
    rows = case.rows * parse(case.topology).chips
    settings = [f"--pretrain.batch_size={rows}", f"--pretrain.sequence_length={case.length}", *case.ours]
    return load(ROOT / "configs" / "pretrain" / "8b.yaml", settings)


def proven(name: str) -> Proof:
    """The proof of our step; `UserError` if it does not fit."""
    proof = prove(recipe_of(name), parse(CASES[name].topology), say)
    if proof.refused:
        raise UserError(f"{name}: {proof.refused}")
    return proof


def ours(proof: Proof) -> Figures:
    """The figures of our program."""
    return Figures(proof.step_seconds, proof.peak_bytes, proof.seconds, proof.versions)


def maxtexts(name: str, python: str, keep: Path | None, places: tuple[tuple[int, ...], ...]) -> Figures:
    """The figures of MaxText's program, by the estimator that we use for ours.

    Args:
        keep: folder for its programs.
        places: coordinates of the devices in our mesh; its mesh has the same.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = (keep or Path(scratch)) / f"{CASES[name].model_name}.json.gz"
        if not path.exists():
            say(f"{name}: MaxText is compiling")
            compile_maxtext(CASES[name], python, path, scratch)
        with gzip.open(path, "rt", encoding="utf-8") as file:
            kept = json.load(file)
    items = schedule_on_tpu(kept["text"], parse(CASES[name].topology), places)
    return Figures(sum(item.seconds for item in items), kept["peak_bytes"], seconds_by_part(items), kept["versions"])


def compile_maxtext(case: Case, python: str, path: Path, scratch: str) -> None:
    """Run MaxText's `train_compile`; `UserError` with its last line if that fails."""
    settings = {
        "model_name": case.model_name,
        "compile_topology": case.compile_topology,
        "compile_topology_num_slices": 1,
        "per_device_batch_size": case.rows,
        "max_target_length": case.length,
        "remat_policy": "full",
        "attention": "flash",
        "dataset_type": "synthetic",
        "enable_checkpointing": "false",
        "run_name": "beside",
        "base_output_directory": scratch,
    }
    command = [python, str(STEP), str(path.resolve()), *(f"{key}={value}" for key, value in settings.items())]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, env=os.environ)
    if done.returncode or not path.exists():
        raise UserError(f"MaxText's train_compile failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:500]}")


TOP = """# Our compiled step beside MaxText's

Made by `benchmarks/beside_maxtext.py`: both compiled by the TPU compiler, with float32 parameters, AdamW, products in
bfloat16, all of a layer computed again in the backward pass, FSDP over the whole slice; one estimator over both.
MaxText's settings are its defaults, attention in blocks of 512 among them, where ours takes 1,024. It has no flags of
XLA, where Google's tuned runs set many, and another libtpu. For the second ratio, MaxText's attention kernel and
waiting are given our times, so it compares the rest of both programs. Nothing ran on a TPU.

| model | slice, rows x tokens a chip | step, s: ours | MaxText | ratio | second | GiB a chip: ours | MaxText | ratio |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def page(found: dict) -> str:
    """The results as Markdown: the ratios, then seconds by part."""
    of_parts = "\n\n".join(parts(name, figures) for name, figures in found.items())
    return "\n".join([TOP, *(row(name, figures) for name, figures in found.items())]) + f"\n\n{of_parts}\n"


def row(name: str, figures: dict) -> str:
    """One case's line."""
    case, (a, b) = CASES[name], (figures["tpullm"], figures["MaxText"])
    seconds = f"{a['step_seconds']:.3f} | {b['step_seconds']:.3f} | " + " | ".join(
        f"**{one:.3f}**" for one in ratios(figures)
    )
    memory = f"{gib(a)} | {gib(b)} | **{a['peak_bytes'] / b['peak_bytes']:.3f}**"
    return f"| {name} | {case.topology}, {case.rows} x {case.length} | {seconds} | {memory} |"


def ratios(figures: dict) -> tuple[float, float]:
    """Two ratios of step times, ours divided by MaxText's.

    The first takes both programs as compiled. For the second, the attention kernel and the waiting of MaxText's program
    are given our times.
    """
    a, b = figures["tpullm"], figures["MaxText"]
    same = b["step_seconds"] + sum(a["seconds"][part] - b["seconds"][part] for part in ("attention kernel", "waiting"))
    return a["step_seconds"] / b["step_seconds"], a["step_seconds"] / same


def gib(figures: dict) -> str:
    """Memory at the peak, in GiB."""
    return f"{figures['peak_bytes'] / 2**30:.2f}"


def parts(name: str, figures: dict) -> str:
    """Seconds of a step by part, of both programs. MaxText's names few of its parts: the rest is `other`."""
    ours, theirs = (told(figures[who]["versions"]) for who in ("tpullm", "MaxText"))
    lines = [f"**{name}**, milliseconds of a step by part; ours: {ours}; MaxText's: {theirs}"]
    lines += ["", "| part | ours | MaxText's |", "| --- | --- | --- |"]
    for part in sorted({part for of in figures.values() for part in of["seconds"]}):
        a, b = (figures[who]["seconds"].get(part, 0.0) * 1e3 for who in ("tpullm", "MaxText"))
        lines.append(f"| {part} | {a:,.0f} | {b:,.0f} |")
    return "\n".join(lines)


def told(versions: dict[str, str]) -> str:
    """Versions in one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


if __name__ == "__main__":
    main()
