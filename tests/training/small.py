"""A small model and a batch with everything in them: segments, padding, weights of 0, grouped heads."""

import dataclasses
import functools

import jax
import numpy as np

from tpullm.data.batch import Batch
from tpullm.model.architecture import Architecture
from tpullm.model.mesh import make_mesh
from tpullm.recipe.schema import ModelConfig, TrainConfig
from tpullm.training.job import Job
from tpullm.training.step import abstract_state, initial_state, make_step

# Of one layer, which compiles in half the time. `TWO_LAYERS` is for laws of what is between layers, or of each of them.
CONFIG = ModelConfig(layers=1, width=32, heads=4, kv_heads=2, head_width=8, mlp_width=64, context_length=32)
CONFIG = CONFIG.resolved(96)
ARCHITECTURE = Architecture(CONFIG)
TWO_LAYERS = Architecture(dataclasses.replace(CONFIG, layers=2))
# Experts with everything that a mesh could count twice or not at all: biases, sinks, an indivisible number of experts.
EXPERTS = Architecture(
    dataclasses.replace(TWO_LAYERS.config, mlp_width=16, experts=5, experts_per_token=2, mlp_bias=True, sinks=True)
)
# Experts that a mesh can split, with everything that balances their loads.
SPREAD = Architecture(
    dataclasses.replace(EXPERTS.config, experts=8, shared_experts=2, balance_loss=0.1, balance_rate=0.01, remat="full")
)
FIRST_DENSE = Architecture(dataclasses.replace(SPREAD.config, dense_layers=1, dense_width=64))


def mesh():
    """One device."""
    return make_mesh({}, jax.devices()[:1])


def job(directory, load, length: int = 32, rows: int = 4, on=None, config: ModelConfig = CONFIG) -> Job:
    """A job of tuning in float32."""
    settings = TrainConfig(batch_size=rows, sequence_length=length, compute="float32")
    common = {"seed": 0, "evaluations": {}, "bytes_per_token": np.ones(config.vocabulary_size)}
    return Job(directory=directory, model=config, config=settings, mesh=on or mesh(), load=load, **common)


def begun(architecture: Architecture, on, optimizer, config: TrainConfig):
    """The step of a training, its fresh state on the mesh `on`, and where that lies."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(architecture, optimizer, on))
    state = jax.jit(lambda key: initial_state(architecture, optimizer, key), out_shardings=shardings)(jax.random.key(0))
    return make_step(architecture, optimizer, config, np.dtype("float32"), seed=0), state, shardings


def params(seed: int = 0, architecture: Architecture = ARCHITECTURE):
    """Fresh parameters, copied for each caller, since a step donates them."""
    is_kept = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(lambda kept: jax.device_put(*kept), _initial(seed, architecture), is_leaf=is_kept)


@functools.cache
def _initial(seed: int, architecture: Architecture):
    """The values of fresh parameters with their shardings; compiled once."""
    with jax.set_mesh(mesh()):
        made = jax.jit(architecture.init)(jax.random.key(seed))
    return jax.tree.map(lambda leaf: (np.asarray(leaf), leaf.sharding), made)


def batch(rows: int = 4, length: int = 32, seed: int = 0, vocabulary: int = 96) -> Batch:
    """Rows of two documents and some padding; a third of the targets have weight 0."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, vocabulary, (rows, length + 1)).astype(np.int32)
    segments, positions = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
    for row in range(rows):
        cut, end = random.integers(4, length // 2), random.integers(length // 2 + 4, length)
        segments[row, :cut], segments[row, cut:end] = 1, 2
        positions[row, :cut], positions[row, cut:end] = np.arange(cut), np.arange(end - cut)
    weights = (random.random((rows, length)) > 1 / 3).astype(np.float32) * (segments > 0)
    return Batch(tokens[:, :-1], tokens[:, 1:], segments, positions, weights)


def means(sums) -> dict[str, float]:
    """The means of an objective's sums; without those whose weight is 0."""
    return {name: float(total) / float(weight) for name, (total, weight) in sums.items() if float(weight) > 0}
