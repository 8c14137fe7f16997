"""Run the command line with steps of `SECONDS`: each device sleeps so long in the compiled step, after its work.

So a step takes as long on a busy machine as on an idle one. It is the callback of the program that sleeps, not the
training loop, which waits for it as it waits for a TPU. The variable `SECONDS_OF_A_STEP` says how long.
"""

import os
import sys
import time

import jax
from jax.sharding import PartitionSpec as P

from tpullm.cli import main
from tpullm.training import programs, step

SECONDS = float(os.environ.get("SECONDS_OF_A_STEP", 3.0))


def _sleep(value):
    time.sleep(SECONDS)
    return value


def _made(*arguments, **options):
    plain = step.make_step(*arguments, **options)

    def slow(state, batch, frozen):
        state, values = plain(state, batch, frozen)
        asleep = jax.shard_map(
            lambda loss: jax.pure_callback(_sleep, jax.ShapeDtypeStruct(loss.shape, loss.dtype), loss),
            in_specs=P(),
            out_specs=P(),
            check_vma=False,
        )
        return state, values | {"loss": asleep(values["loss"])}

    return jax.jit(slow, donate_argnums=0)


if __name__ == "__main__":
    programs.make_step = _made
    sys.exit(main.main())
