"""Prove every recipe on the topology that it names: `make plan-all` writes runs/benchmark/plan.md and plan.json.

`make plan-all RESULTS=benchmarks/results` records them: there, and in the heads of the recipes.

A program that was compiled before is not compiled again. The others are compiled in parallel, as many as memory and
cores allow. `--no-compile` compiles nothing and shows which proofs are outdated: it hashes the traced step of each
recipe, its topology and the compiler's options again, 2 seconds a recipe.
"""

import argparse
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from tpullm.hardware.topologies import memory_holder, parse
from tpullm.planning.program import job_of, stage_of
from tpullm.planning.proof import Proof, program_hash, prove
from tpullm.planning.search import Candidate, assess_memory
from tpullm.planning.setting import setting_of
from tpullm.recipe.parsing import load
from tpullm.recipe.schema import Recipe
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import say, warn

ROOT = Path(__file__).parents[1]
RECIPES = {
    path.stem: path for folder in ("pretrain", "tune") for path in sorted((ROOT / "configs" / folder).glob("*.yaml"))
}
RESULTS = ROOT / "benchmarks" / "results"
COMPILE_BYTES = 4 << 30  # the most that a compilation of a shipped recipe takes
STALE = "older than the code"
HEADER = re.compile(r"^#   time      .*\n#   result    .*$", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="recipes; all that name a topology if none is given")
    parser.add_argument("--no-compile", action="store_true", help="report outdated proofs, and compile nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER", help="default: %(default)s")
    arguments = parser.parse_args()
    recipes = {name: load(path) for name, path in RECIPES.items()}
    recipes = {name: recipe for name, recipe in recipes.items() if recipe.topology}
    results = arguments.output.resolve()
    proofs = recorded(results / "plan.json")
    if not arguments.no_compile:
        chosen = arguments.names or list(recipes)
        proofs |= proven({name: recipes[name] for name in chosen})
        text = json.dumps({name: asdict(of) for name, of in proofs.items()}, indent=1) + "\n"
        storage.write_text(results / "plan.json", text)
        for name in chosen if results == RESULTS else ():
            write_header(RECIPES[name], proofs.get(name))
    stale = {name for name, proof in proofs.items() if name in recipes and is_stale(recipes[name], proof)}
    storage.write_text(results / "plan.md", page(recipes, proofs, stale))
    for name in sorted(stale):
        warn(f"{name}: its proof is {STALE}; make plan-all renews it")


def recorded(path: Path) -> dict[str, Proof]:
    """The proofs of an earlier run, by recipe."""
    return {name: Proof.from_json(of) for name, of in json.loads(path.read_text()).items()} if path.exists() else {}


def proven(recipes: dict[str, Recipe]) -> dict[str, Proof]:
    """The proofs of recipes, each on its own topology. A recipe without a proof is logged and left out."""

    def one(name: str) -> Proof | None:
        try:
            return prove(recipes[name], parse(recipes[name].topology), say)
        except UserError as error:
            warn(f"{name}: {error}")
            return None

    with ThreadPoolExecutor(at_once()) as executor:
        found = dict(zip(recipes, executor.map(one, recipes), strict=True))
    return {name: proof for name, proof in found.items() if proof}


def at_once() -> int:
    """The number of parallel compilations that memory and cores allow, at least one."""
    available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    by_memory = int(available[1]) * 1024 // COMPILE_BYTES if available else 1
    return max(1, min(by_memory, os.cpu_count() or 1))


def is_stale(recipe: Recipe, proof: Proof) -> bool:
    """Whether the code now makes another program of a recipe than the proven one."""
    return program_hash(job_of(recipe, parse(proof.topology)), proof.versions) != proof.program


def result(proof: Proof) -> str:
    """The text about the proof in the header of a recipe."""
    if proof.refused:
        return f"not trained yet; {proof.refused}"
    topology = parse(proof.topology)
    return (
        f"not trained yet; compiled for it by the {topology.platform.upper()} compiler: "
        f"{proof.peak_bytes / 2**30:.1f} GiB of {round(proof.limit_bytes / 2**30)} a {memory_holder(topology)}, "
        f"{speed(proof):,.0f} tokens/s a chip expected"
    )


def speed(proof: Proof) -> float:
    """Predicted tokens a second of one chip."""
    return proof.tokens / proof.step_seconds / parse(proof.topology).chips


def duration(proof: Proof, steps: int) -> str:
    """The text about the time in the header of a recipe: the predicted time of all steps."""
    hours = proof.step_seconds * steps / 3600
    if proof.refused:
        return "unknown"
    return f"{hours:.1f} hours expected" if hours < 48 else f"{hours / 24:.1f} days expected"


def write_header(path: Path, proof: Proof | None) -> None:
    """Write the proof into the header of a recipe."""
    if proof:
        text, steps = path.read_text(encoding="utf-8"), stage_of(load(path)).config.steps
        fields = f"#   time      {duration(proof, steps)}\n#   result    {result(proof)}"
        path.write_text(HEADER.sub(fields, text, count=1), encoding="utf-8")


def page(recipes: dict[str, Recipe], proofs: dict[str, Proof], stale: set[str]) -> str:
    """The table of all recipes and the findings of each, as Markdown."""
    rows = [
        row(proofs[name], name in stale, estimated(recipes[name]))
        if name in proofs
        else f"| {name} | not proven{9 * ' |'}"
        for name in recipes
    ]
    found = [f"\n**{name}**\n\n{findings(proofs[name])}" for name in recipes if name in proofs]
    return "\n".join([TOP, *rows, "\n## What should be otherwise", *found]) + "\n"


TOP = """# The shipped recipes, proven

Made by `make plan-all`: the step of each recipe, compiled by the compiler of the devices that the recipe names, and the
evaluation between steps, for its memory (with the optimizer's state). GiB are of one device, two of which are a chip of
Ironwood (tpu7x). Step time and tokens/s are predicted: for TPUs from the compiler's cycles
(`tpullm/planning/tpu_schedule.py`), for GPUs from the FLOPs and bytes of each instruction (`gpu_schedule.py`). Beside
them what `tpullm plan` says without the compiler. Nothing ran on a TPU or a GPU.

| recipe | topology | GiB | estimated | evaluation | step, s | estimated | tokens/s a chip | waiting | program |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def estimated(recipe: Recipe) -> Candidate:
    """The recipe as `tpullm plan` sees it."""
    return assess_memory(setting_of(job_of(recipe, parse(recipe.topology))))


def row(proof: Proof, stale: bool, beside: Candidate) -> str:
    """One recipe's line."""
    compiler = parse(proof.topology).compiler
    made = (
        f"{proof.program} {proof.date[:10]}, {compiler} {proof.versions[compiler]}{f', **{STALE}**' if stale else ''}"
    )
    memory = f"{proof.peak_bytes / 2**30:.1f} of {proof.limit_bytes / 2**30:.1f} | {beside.memory.peak / 2**30:.1f}"
    memory += f" | {proof.evaluation_bytes / 2**30:.1f}"
    if proof.refused:
        return f"| {proof.recipe} | {proof.topology} | {memory} | does not fit | | | | {made} |"
    waiting = sum(of.exposed_seconds for of in proof.traffic) / proof.step_seconds
    expected = beside.estimate.step_seconds
    numbers = f"{proof.step_seconds:.2f} | {expected:.2f} | {speed(proof):,.0f} | {waiting:.1%}"
    return f"| {proof.recipe} | {proof.topology} | {memory} | {numbers} | {made} |"


def findings(proof: Proof) -> str:
    """The findings of one program, a line each."""
    if proof.refused:
        return f"- {proof.refused}"
    return "\n".join(f"- {one.seconds * 1e3:,.0f} ms: {one.text}" for one in proof.findings) or "- nothing"


if __name__ == "__main__":
    main()
