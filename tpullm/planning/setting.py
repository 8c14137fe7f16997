"""What decides how long a step takes and what it needs: the numbers of a training on a slice, made by the thousand."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from tpullm.hardware.chips import Chip, chip
from tpullm.hardware.slices import Topology
from tpullm.mesh.axes import AXES, axis_sizes
from tpullm.mesh.layout import RULES
from tpullm.model.attention.kernels import splash_block, splash_fits
from tpullm.model.experts.exchange import round_capacity
from tpullm.recipe.schema import ModelConfig, OptimizerConfig, TrainConfig
from tpullm.training.losses import CHUNK, CHUNK_ON_CPU

PLACES = {axis: n for n, axis in enumerate(AXES)}
SEQUENCE = PLACES["sequence"]
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
        in_lines: a gather over a whole slice goes first over a part of it and then along lines (`torus.steps`).
        sums: how often a gradient's bytes go over the links: 1 where it is scattered, 2 where it is summed everywhere.
        passes: products of the scores' size in attention's backward pass, where no schedule of its kernel is known.
        tensor_waits: what goes along `tensor` is not hidden beside the products that it is for.
        crossing: bytes of a gradient between slices.
        block: queries and keys that attention takes at a time; 0 is as `Setting.attention_block` says.
        fused: attention's gradients come from one pass over the scores.
        halves: tokens go to spread experts in two halves, one beside the other's products; nothing of that is kept for
            the backward pass, and no result goes back in it (`moe._over_devices`).
        every_expert: a row is multiplied with every expert that is there, and all but its own are masked.
    """

    in_lines: bool = True
    sums: int = 1
    passes: int = 5
    tensor_waits: bool = True
    crossing: int = 2
    block: int = 0
    fused: bool = False
    halves: bool = True
    every_expert: bool = False


OURS, MAXTEXT = Habits(), Habits(in_lines=False, sums=2, tensor_waits=False, crossing=4, block=512, halves=False)
# attention/blockwise.py keeps the weights of the forward pass; XLA's product with experts is so (see moe.py).
CPU = Habits(in_lines=False, passes=4, every_expert=True)


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
        attention_block: queries and keys that attention's kernel takes at a time, at most; 0 is the platform's choice.
        loss_chunks: of a device's part of a row; 0 is the platform's choice.
        gradient: bytes of a gradient on its way.
        optimizer: of the training.
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
    attention_block: int = 0
    loss_chunks: int = 0
    gradient: int = 2
    optimizer: OptimizerConfig = OptimizerConfig()
    padding: float = 1.0
    offloaded: int = 0
    habits: Habits = OURS

    def along(self, *axes: str) -> int:
        """Devices along these mesh axes together."""
        size = 1  # a plain loop: this is half of what a candidate of the search costs
        for axis in axes:
            size *= self.sizes[PLACES[axis]]
        return size

    @property
    def tokens(self) -> int:
        """Of a device in one micro-batch; along `tensor` devices share them."""
        return self.rows * self.length // (self.accumulation * self.along(*RULES.batch, RULES.time))

    @property
    def block(self) -> int:
        """Queries and keys that attention's kernel takes at a time."""
        if self.habits.block:
            return self.habits.block
        return _block(self.turn, self.attention_block)

    @property
    def turn(self) -> int:
        """Tokens of a row that a device has next to each other."""
        sequence = self.sizes[SEQUENCE]
        return self.length // (2 * sequence if sequence > 1 else 1)

    @property
    def chunks(self) -> int:
        """Parts of a row that the loss is computed in, as `losses.chunk_length` chooses them where nothing is asked."""
        if self.loss_chunks:
            return self.loss_chunks
        length = self.length // self.sizes[SEQUENCE]
        most = CHUNK if self.topology.generation != "local" else CHUNK_ON_CPU
        longest = most * length // (4 * self.tokens * self.model.vocabulary_size // self.along("tensor"))
        return _chunks(length, longest)

    @property
    def global_tokens(self) -> int:
        """Of a step, padding included."""
        return self.rows * self.length

    @property
    def dots(self) -> dict[str, int]:
        """Numbers of a token that the products of a layer give, before `tensor` shares them (`dots` in remat.py)."""
        model = self.model
        attention = {"qkv": model.head_width * (model.heads + 2 * model.kv_heads), "out": model.width}
        width = model.mlp_width * (2 if model.gated else 1)
        return attention | {"up": width * model.shared_experts + model.experts if model.experts else width}

    @property
    def kept_numbers(self) -> int:
        """Numbers of a token and a layer that have names in remat.py: what attention mixed, and `dots`."""
        return self.model.heads * self.model.head_width + sum(self.dots.values())

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


@lru_cache(maxsize=1000)
def divisors(number: int) -> tuple[int, ...]:
    """From 1 to the number itself."""
    return tuple(size for size in range(1, number + 1) if number % size == 0)


@lru_cache(maxsize=1000)
def _chunks(length: int, longest: int) -> int:
    return next(count for count in divisors(length) if length // count <= max(longest, 1))


@lru_cache(maxsize=1000)
def _block(length: int, most: int) -> int:
    """Where the kernel does not take rows of that length, another one goes over blocks of 512."""
    return splash_block(length, most) if splash_fits(length, 1) else 512


def padded_exchange(topology: Topology) -> bool:
    """Whether devices along `expert` must send as many rows to each: see `exchange.has_ragged_all_to_all`."""
    return topology.generation in ("v5e", "local")


def fullness(model: ModelConfig, tokens: int, devices: int, topology: Topology) -> float:
    """Places in the buffers of experts' rows for each row, with an even load: see `exchange.round_capacity`."""
    if devices == 1 or not model.experts:
        return 1.0
    rows, worst = tokens * model.experts_per_token, tokens * min(model.experts_per_token, model.experts // devices)
    return round_capacity(rows, worst, devices, not padded_exchange(topology)) / rows


def attention_parameters(model: ModelConfig) -> int:
    """The four matrices of a layer's attention."""
    return 2 * model.width * model.head_width * (model.heads + model.kv_heads)


def mlp_parameters(model: ModelConfig) -> int:
    """The matrices of one feed-forward layer, or of one expert."""
    return (3 if model.gated else 2) * model.width * model.mlp_width


def setting_of(
    model: ModelConfig, config: TrainConfig, mesh: Mapping[str, int], topology: Topology, device: Chip | None = None
) -> Setting:
    """The setting of a training as `pretrain` would run it.

    Args:
        device: where the topology is none of TPUs.

    Raises:
        UserError: the mesh does not fit the topology.
    """
    made = Setting(
        model,
        topology,
        device or chip(topology),
        axis_sizes(mesh, topology.chips),
        config.batch_size,
        config.sequence_length,
        config.accumulation,
        attention_block=model.attention_block,
        loss_chunks=config.loss_chunks,
        gradient=4 if model.gradients == "float32" else 2,
        optimizer=config.optimizer,
    )
    return with_remat(made, model.remat)


def with_remat(setting: Setting, remat: str) -> Setting:
    """The same with another policy."""
    offloaded = setting.kept_numbers if remat == "offload" else 0
    return replace(setting, remat=remat, recompute=RECOMPUTED[remat], offloaded=offloaded)
