"""Compile MaxText's training step for absent chips; `beside_maxtext.py` runs this with MaxText's Python.

MaxText's `train_compile` does the work. This program writes the executable to a file.
"""

import argparse
import gzip
import json
import os
import time
from importlib.metadata import version

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="a file, .json.gz")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE of MaxText's configuration")
    arguments = parser.parse_args()

    import maxtext
    from maxtext.trainers.pre_train import train_compile

    compile_as_is = train_compile.jit_and_compile

    def kept(*positional, **named):
        start = time.time()
        executable = compile_as_is(*positional, **named)
        keep(arguments.output, executable, arguments.settings, time.time() - start)
        return executable

    train_compile.jit_and_compile = kept
    configuration = os.path.join(os.path.dirname(maxtext.__file__), "configs", "base.yml")
    train_compile.main(["train_compile", configuration, *arguments.settings])


def keep(path: str, executable, settings: list[str], seconds: float) -> None:
    """Write what the estimator needs of an executable, with the settings that made it."""
    memory = executable.memory_analysis()
    found = {
        "peak_bytes": memory.peak_memory_in_bytes,
        "text": executable.as_text(),
        "seconds": seconds,
        "settings": settings,
        "versions": {name: version(name) for name in ("maxtext", "jax", "libtpu")},
    }
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
