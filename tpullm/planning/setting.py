"""What decides how long a step takes and what it needs: a recipe's numbers on a slice, small enough to make by the thousand."""

import math
from dataclasses import dataclass, replace

from tpullm.axes import AXES, axis_sizes
from tpullm.config import ModelConfig, Recipe, TrainConfig
from tpullm.planning.chips import Chip, chip
from tpullm.sharding import RULES
from tpullm.topology import Topology

# What the backward pass computes again, by `model.remat`: parts of a layer (see model/remat.py). What gives a layer's
# output is never among them: nothing needs it again.
RECOMPUTED = {
    "none": (),
    "save_dots": (),
    "offload": (),
    "save_attention": ("qkv", "out", "up"),
    "full": ("qkv", "scores", "out", "up"),
}


@dataclass(frozen=True)
class Habits:
    """How a program does what it does: ours, or another one's whose speed is published.

    Args:
        in_lines: a gather over a whole slice goes first over a part of it and then along lines (`sharding._steps`).
        sums: how often a gradient's bytes go over the links: 1 where it is scattered, 2 where it is summed everywhere.
        passes: of attention's kernel over the scores in the backward pass, in products of the forward one's 2.
        tensor_waits: what goes along `tensor` is not hidden beside the products that it is for.
        crossing: bytes of a gradient between slices.
    """

    in_lines: bool = True
    sums: int = 1
    passes: int = 7
    tensor_waits: bool = True
    crossing: int = 2


OURS, MAXTEXT = Habits(), Habits(in_lines=False, sums=2, tensor_waits=False, crossing=4)


@dataclass(frozen=True)
class Setting:
    """One way to run a model on a slice.

    Args:
        model: resolved.
        topology: the slices.
        device: what a device of it can do.
        sizes: of the mesh axes, as `AXES`.
        rows: in a global batch.
        length: tokens in a row.
        accumulation: micro-batches of a step.
        recompute: parts of a layer that the backward pass computes again.
        remat: the policy that says what is kept.
        resting: bytes of a parameter at rest.
        gradient: bytes of a gradient on its way.
        padding: rows that go through experts, for each that should.
        offloaded: numbers that travel to the host's memory and back, of a token and a layer.
        habits: of the program.
    """

    model: ModelConfig
    topology: Topology
    device: Chip
    sizes: tuple[int, ...]
    rows: int
    length: int
    accumulation: int = 1
    recompute: tuple[str, ...] = ()
    remat: str = "full"
    resting: int = 4
    gradient: int = 2
    padding: float = 1.0
    offloaded: int = 0
    habits: Habits = OURS

    def along(self, *axes: str) -> int:
        """Devices along these mesh axes together."""
        return math.prod(self.sizes[AXES.index(axis)] for axis in axes)

    @property
    def tokens(self) -> int:
        """Of a device in one micro-batch; along `tensor` devices share them."""
        return self.rows * self.length // (self.accumulation * self.along(*RULES.batch, RULES.time))

    @property
    def global_tokens(self) -> int:
        """Of a step, padding included."""
        return self.rows * self.length

    @property
    def layer_parameters(self) -> float:
        """Matrices of one layer, on a device that has gathered them (its share along `tensor` and `expert`)."""
        return attention_parameters(self.model) / self.along("tensor") + self.mlp_parameters

    @property
    def mlp_parameters(self) -> float:
        """The feed-forward part of `layer_parameters`."""
        model, one = self.model, mlp_parameters(self.model)
        if not model.experts:
            return one / self.along("tensor")
        of_experts = one * (model.experts / self.along("expert") + model.shared_experts) / self.along("tensor")
        return of_experts + model.width * model.experts


def attention_parameters(model: ModelConfig) -> int:
    """The four matrices of a layer's attention."""
    return 2 * model.width * model.head_width * (model.heads + model.kv_heads)


def mlp_parameters(model: ModelConfig) -> int:
    """The matrices of one feed-forward layer, or of one expert."""
    return (3 if model.gated else 2) * model.width * model.mlp_width


def setting_of(model: ModelConfig, config: TrainConfig, mesh: dict[str, int], topology: Topology) -> Setting:
    """The setting of a training as `pretrain` would run it.

    Raises:
        UserError: the mesh does not fit the topology.
    """
    made = Setting(
        model,
        topology,
        chip(topology),
        axis_sizes(mesh, topology.chips),
        config.batch_size,
        config.sequence_length,
        config.accumulation,
        RECOMPUTED[model.remat],
        model.remat,
        gradient=4 if model.gradients == "float32" else 2,
        offloaded=kept_numbers(model) if model.remat == "offload" else 0,
    )
    return replace(made, padding=_padding(made))


def recipe_setting(recipe: Recipe, topology: Topology) -> Setting:
    """The setting of a recipe's pretraining."""
    model = recipe.model.resolved(recipe.tokenizer.vocabulary_size)
    return setting_of(model, recipe.pretrain, recipe.mesh, topology)


def kept_numbers(model: ModelConfig) -> int:
    """What the layers name `attention` and `dots` (see model/remat.py): numbers of a token and a layer."""
    heads = model.head_width * (2 * model.heads + 2 * model.kv_heads)  # queries, keys, values, what attention mixed
    dense = 0 if model.experts else model.mlp_width * (2 if model.gated else 1) + model.width
    shared = model.shared_experts * model.mlp_width * (2 if model.gated else 1) + model.width
    return (
        heads + model.width + (dense if not model.experts else model.experts + (shared if model.shared_experts else 0))
    )


def _padding(setting: Setting) -> float:
    """Buffers of a round hold half more than an even load where experts are spread (`moe.most_in_a_round`)."""
    return 1.0
