"""The host's work between steps: milliseconds of the training loop's thread while it waits for no device.

    python benchmarks/overhead.py [devices] [steps]

The real loop trains the quickstart's model on a CPU that simulates several devices. Counted is the processor time of
the thread that runs the loop, without waiting and without the computation in the devices' threads.
"""

import os
import sys

DEVICES, STEPS = int((sys.argv[1:] or ["8"])[0]), int((sys.argv[2:] or ["40"])[0])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"  # before JAX is imported
os.environ["JAX_PLATFORMS"] = "cpu"

import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import defaultdict  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
from data import VOCABULARY  # noqa: E402
from data import write as write_tokens  # noqa: E402
from sizes import shapes  # noqa: E402

from tpullm.data.stream import Stream  # noqa: E402
from tpullm.data.token_store import TokenStore  # noqa: E402
from tpullm.model.mesh import make_mesh  # noqa: E402
from tpullm.recipe.schema import TrainConfig  # noqa: E402
from tpullm.training import loop  # noqa: E402
from tpullm.training.meter import Meter  # noqa: E402
from tpullm.training.resume import Start  # noqa: E402

WARM_UP = 5  # steps that are not counted: they compile, and reading ahead starts
STEP_MS = 200.0  # of a device that is worth its money; the share is of this


class Stopwatch:
    """Processor time of this thread in ms, of each call, by part of the loop."""

    def __init__(self):
        self.parts: dict[str, list[float]] = defaultdict(list)

    def timed(self, part: str, function: Callable) -> Callable:
        """Wrap `function` so that its calls count as `part`."""

        def call(*arguments, **options):
            began = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                self.parts[part].append(1e3 * (time.thread_time() - began))

        return call

    def read(self, batches: Iterator) -> Iterator:
        """The same batches; how long each took to come is the part `next batch`, from one to the next `the step`."""
        began, following = None, self.timed("next batch", lambda: next(batches, None))
        while (batch := following()) is not None:
            now = time.thread_time()
            if began is not None:
                self.parts["the step"].append(1e3 * (now - began))
            began = now
            yield batch


def measure(folder: Path) -> dict[str, tuple[float, float]]:
    """Median and mean of each part, in ms, over the steps after `WARM_UP`."""
    watch, config = Stopwatch(), TrainConfig(steps=WARM_UP + STEPS)
    store = TokenStore(write_tokens("short documents", folder / "tokens"))
    stream = Stream({"text": store}, {"text": 1.0}, config.batch_size, config.sequence_length, seed=0)
    loop.put = watch.timed("put", loop.put)
    make_step = loop.make_step
    loop.make_step = lambda *arguments: watch.timed("dispatch", make_step(*arguments))
    batches = stream.batches
    stream.batches = lambda *arguments: watch.read(batches(*arguments))
    Meter.read = watch.timed("report", Meter.read)
    loop.train(
        loop.Job(
            directory=folder / "run",
            model=shapes(4, 128, 4, VOCABULARY, config.sequence_length),
            config=config,
            seed=0,
            mesh=make_mesh({"fsdp": -1}),
            stream=stream,
            evaluations={},
            bytes_per_token=np.ones(VOCABULARY, np.int32),
        ),
        description={},
        start=Start(0, []),
    )
    counted = {part: values[WARM_UP : WARM_UP + STEPS - 1] for part, values in watch.parts.items()}
    return {part: (statistics.median(of), statistics.mean(of)) for part, of in counted.items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    print(f"{DEVICES} CPU devices, {STEPS} steps, JAX {jax.__version__}; ms of the loop's thread, median and mean")
    for part, (median, mean) in sorted(found.items(), key=lambda item: -item[1][1]):
        print(f"{part:<12} {median:7.2f} {mean:7.2f}   {mean / STEP_MS:6.2%} of a step of {STEP_MS:.0f} ms")
