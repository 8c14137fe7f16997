"""`tpullm serve` beside other servers: the load of serving_load.py with models of random weights.

    python benchmarks/serving_peers.py --texts TEXT ... --out FILE
      --peer 'transformers=/ENV/bin/transformers serve {model} --continuous-batching --device cpu --dtype {dtype}
              --host 127.0.0.1 --port {port}'
      --peer 'llama.cpp=/BUILD/llama-server -m {gguf} -np 32 -c 32768 --host 127.0.0.1 --port {port}'

For each size of `random_model.py` and each type of matmuls it starts ours and the peers, and asks them in turns. In a
peer's command `{model}` is a folder in the format of Hugging Face with weights in float32, `{dtype}` is `float32` or
`bfloat16`, and `{gguf}` a file for llama.cpp with weights of that type; `{gguf-f16}` is one of another type. With
`--files`, ours and the peers serve these GGUF files in place of random models.
"""

import argparse
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import random_model
from serving_load import add_load, measured, write
from serving_server import named

TYPES = {"float32": "f32", "bfloat16": "bf16"}  # of matmuls → of the weights of a GGUF file
GGUF = re.compile(r"\{gguf(?:-(\w+))?\}")
CONTEXT = 1024


def main(argv: list[str] | None = None) -> None:
    """Print a table for each size and type, or for each file; then the tokens a second of all beside the first peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], help="NAME=COMMAND; may be given several times")
    parser.add_argument("--sizes", nargs="+", default=["12m", "120m"], choices=random_model.SIZES)
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    parser.add_argument("--files", nargs="+", default=[], type=Path, help="GGUF files, in place of sizes and types")
    add_load(parser)
    options = parser.parse_args(argv)
    text = "\n".join(path.read_text(encoding="utf-8") for path in options.texts)
    found, peers = {}, named(options.peer)

    def measure(name: str, commands: dict[str, str]) -> None:
        print(f"\n{name}\n", flush=True)
        found[name] = measured(commands, options)
        write(options.out, found, options)

    for file in options.files:
        ours = shlex.join([sys.executable, "-m", "tpullm", "serve", str(file), "--port"]) + " {port}"
        others = {name: GGUF.sub(shlex.quote(str(file)), command) for name, command in peers.items()}
        measure(str(file), {"tpullm": ours} | others)
    with tempfile.TemporaryDirectory() as place:
        for size in () if options.files else options.sizes:
            model = Path(place) / size / "model"
            random_model.make(model, size, text, CONTEXT)
            for dtype in options.types:
                measure(f"{size}, {dtype}", servers(model, dtype, peers))
    print("\n" + summary(found))


def summary(found: dict[str, dict[str, dict[str, dict]]]) -> str:
    """A table of the medians of ours and of the first peer, and how many times the peer's ours is."""
    counts = list(next(iter(found.values())))
    lines = [f"| | {' | '.join(f'{count} clients' for count in counts)} |", "| --- " * (1 + len(counts)) + "|"]
    for name, of_counts in found.items():
        cells = []
        for servers in of_counts.values():
            medians = [statistics.median(result["rounds"] or [0]) for result in [*servers.values()][:2]]
            cells.append(" / ".join(f"{rate:.0f}" for rate in medians))
            cells[-1] += f" = {medians[0] / medians[1]:.2f}" if medians[1:] and medians[1] else ""
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def servers(model: Path, dtype: str, peers: dict[str, str]) -> dict[str, str]:
    """The command of each server of a model."""
    ours = shlex.join([sys.executable, __file__, "--serve", dtype, str(model)]) + " {port}"
    commands = {"tpullm": ours}
    for name, command in peers.items():
        for kind in {found[1] or TYPES[dtype] for found in GGUF.finditer(command)}:
            gguf(model, kind)
        command = GGUF.sub(lambda found: shlex.quote(str(gguf(model, found[1] or TYPES[dtype]))), command)
        commands[name] = command.replace("{model}", shlex.quote(str(model))).replace("{dtype}", dtype)
    return commands


def gguf(model: Path, kind: str) -> Path:
    """The file for llama.cpp with weights of a type; it is made once, by the verbs of tpullm."""
    run, folder = model.parent / "run", model.parent / f"gguf-{kind}"
    if not run.exists():
        subprocess.run([sys.executable, "-m", "tpullm", "import", model, "--run", run], check=True)
    if not folder.exists():
        words = ["export", run, folder, "--format", "gguf", "--weights", kind]
        subprocess.run([sys.executable, "-m", "tpullm", *words], check=True)
    return folder / f"{folder.name}-{kind}.gguf"


def serve(dtype: str, model: str, port: str) -> None:
    """In a process of its own: ours, with matmuls in `dtype`. A CPU always serves in bfloat16, faster than float32."""
    from tpullm.system.process import environment

    environment.prepare()
    import jax.numpy as jnp

    from tpullm.cli import main as cli
    from tpullm.engine import session

    session.dtype_in_use = lambda exact: jnp.dtype(dtype)
    sys.exit(cli.main(["serve", model, "--port", port]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main()
