"""Write `compiled.yaml`: the peak memory of programs, by the TPU compiler.

    python benchmarks/compiled.py           # all that were not compiled before; one to two minutes each when idle
    python benchmarks/compiled.py 8b 1b     # the programs of these recipes

`tests/planning/test_memory.py` compares `planning/memory.py` with them.
"""

import argparse
import re
from pathlib import Path

import yaml

from tpullm.hardware.topologies import parse
from tpullm.planning.proof import prove
from tpullm.recipe.mesh_axes import written
from tpullm.recipe.parsing import load
from tpullm.system.log import say

FILE = Path(__file__).with_name("compiled.yaml")
RECIPES = Path(__file__).parents[1] / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*")
    chosen = parser.parse_args().recipes
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("  - "):
            program = yaml.safe_load(line)[0]
            if not chosen or program["recipe"] in chosen:
                found = re.sub(r"peak_bytes: \d+", f"peak_bytes: {peak_bytes(program)}", line)
                FILE.write_text(FILE.read_text(encoding="utf-8").replace(line, found), encoding="utf-8")


def peak_bytes(program: dict) -> int:
    """The peak memory of one program; 0 if the compiler refuses it because it needs too much memory."""
    options = [f"--mesh={written(program['mesh'])}", *(f"--{key}={of}" for key, of in program["overrides"].items())]
    (path,) = RECIPES.glob(f"*/{program['recipe']}.yaml")
    recipe = load(path, options)
    proof = prove(recipe, parse(program["topology"]), say)
    peak = 0 if proof.refused else proof.peak_bytes
    say(f"{program['recipe']} {program['topology']} {program['overrides']}: {program['peak_bytes']:,} was, {peak:,} is")
    return peak


if __name__ == "__main__":
    main()
