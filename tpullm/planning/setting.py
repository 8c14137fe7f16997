"""The numbers that decide the time and the memory of a step; a search makes thousands of them.

`ProgramTraits` are what our programs and MaxText's do differently. With them MaxText's published speeds are compared
with the same formulas.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from tpullm.hardware.chips import Chip
from tpullm.hardware.topologies import Topology
from tpullm.model.attention.kernels import splash_block, splash_fits
from tpullm.model.experts.exchange import round_capacity
from tpullm.model.mesh import RULES
from tpullm.recipe.mesh_axes import AXES, axis_sizes
from tpullm.recipe.schema import AdapterConfig, ModelConfig, OptimizerConfig, TrainConfig
from tpullm.training.losses import CHUNK, CHUNK_ON_CPU

PLACES = {axis: n for n, axis in enumerate(AXES)}
SEQUENCE = PLACES["sequence"]
# The parts of a layer that the backward pass recomputes, by `model.remat` (see model/block.py). The part that gives a
# layer's output is never among them: nothing needs the output again.
RECOMPUTED = {
    "none": (),
    "save_dots": (),
    "offload": (),
    "save_attention": ("qkv", "out", "up"),
    "full": ("qkv", "scores", "out", "up"),
}


@dataclass(frozen=True)
class Job:
    """A training of a model on a mesh over a topology: what is planned, traced and compiled.

    Args:
        model: resolved.
        mesh: devices along each axis.
        adapter: what is trained beside the parameters of the model; None trains them all.
        key: of `config` in the recipe.
    """

    model: ModelConfig
    config: TrainConfig
    mesh: Mapping[str, int]
    topology: Topology
    adapter: AdapterConfig | None = None
    key: str = "pretrain"


@dataclass(frozen=True)
class ProgramTraits:
    """How a program works: ours, or another one whose speed is published.

    Args:
        in_lines: an all-gather over a whole slice goes along the lines of its torus, one dimension after the other
            (`torus.line_groups`).
        sums: how often a gradient goes over the links: 1 for a reduce-scatter, 2 for an all-reduce.
        passes: matmuls of the size of the scores in attention's backward pass, if no schedule of its kernel is known.
        tensor_waits: matmuls do not hide the collectives along `tensor`.
        crossing: bytes of a gradient's element between slices.
        block: queries and keys of an attention block; 0 is `Setting.attention_block`.
        fused: one pass over the scores computes all gradients of attention.
        halves: tokens are dispatched to experts in two halves, one beside the matmuls of the other. The backward pass
            keeps nothing of that, and combines no results (`moe.py`).
        every_expert: a row is multiplied with every expert of its device, and all results but its own are masked.
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


OURS = ProgramTraits()
MAXTEXT = ProgramTraits(in_lines=False, sums=2, tensor_waits=False, crossing=4, block=512, halves=False)
# model/attention/flash.py keeps the weights of the forward pass. On a CPU, XLA multiplies a row by every expert.
CPU = ProgramTraits(in_lines=False, passes=4, every_expert=True)


@dataclass(frozen=True)
class Setting:
    """One way to run a model on a slice.

    Args:
        model: resolved.
        topology: the slices.
        device: the chip of the topology, or what was measured of another device.
        sizes: of the mesh axes, in the order of `AXES`.
        rows: of a global batch.
        length: tokens of a row.
        accumulation: micro-batches of a step.
        recompute: parts of a layer that the backward pass recomputes.
        remat: the policy that decides what is kept.
        attention_block: most queries and keys of an attention block; 0 is the platform's choice.
        loss_chunks: of a device's part of a row; 0 is the platform's choice.
        gradient: bytes of a gradient's element in a collective.
        optimizer: of the training.
        padding: rows that experts multiply, per row that was routed to them.
        offloaded: numbers of a token and a layer that go to the host's memory and back.
        traits: of the program.
        adapter: what is trained beside the parameters of the model, which are frozen; None trains them all.
        key: of the training in the recipe.
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
    traits: ProgramTraits = OURS
    adapter: AdapterConfig | None = None
    key: str = "pretrain"

    def along(self, *axes: str) -> int:
        """The product of the sizes of these mesh axes."""
        size = 1  # a plain loop: this is half of what a candidate of the search costs
        for axis in axes:
            size *= self.sizes[PLACES[axis]]
        return size

    @property
    def on_gpu(self) -> bool:
        """Whether XLA for GPUs makes the program."""
        return self.topology.platform == "gpu"

    @property
    def tokens(self) -> int:
        """Tokens of a device in one micro-batch. The devices along `tensor` have the same tokens."""
        return self.rows * self.length // (self.accumulation * self.along(*RULES.batch, RULES.time))

    @property
    def block(self) -> int:
        """Queries and keys of an attention block."""
        return self.traits.block or _splash_block(self.contiguous, self.attention_block)

    @property
    def contiguous(self) -> int:
        """Contiguous tokens of a row on one device: half of them in zigzag order, which has two pieces."""
        sequence = self.sizes[SEQUENCE]
        return self.length // (2 * sequence if sequence > 1 else 1)

    @property
    def chunks(self) -> int:
        """Chunks of a device's part of a row in the loss. The platform's choice is that of `losses.chunk_length`."""
        if self.loss_chunks:
            return self.loss_chunks
        length = self.length // self.sizes[SEQUENCE]
        most = CHUNK if self.topology.generation != "local" else CHUNK_ON_CPU
        longest = most * length // (4 * self.tokens * self.model.vocabulary_size // self.along("tensor"))
        return _fewest_chunks(length, longest)

    @property
    def global_tokens(self) -> int:
        """Tokens of a step, padding included."""
        return self.rows * self.length

    @property
    def dots(self) -> dict[str, int]:
        """Outputs of a layer's matmuls per token, before `tensor` splits them (`dots` in model/block.py)."""
        model = self.model
        attention = {"qkv": model.head_width * (model.heads + 2 * model.kv_heads), "out": model.width}
        width = model.mlp_width * (2 if model.gated else 1)
        return attention | {"up": width * model.shared_experts + model.experts if model.experts else width}

    @property
    def fullness(self) -> float:
        """Size of the experts' buffers per row, if experts are evenly loaded: see `exchange.round_capacity`."""
        model, devices = self.model, self.along("expert")
        if devices == 1 or not model.experts:
            return 1.0
        rows = self.tokens * model.experts_per_token
        worst = self.tokens * min(model.experts_per_token, model.experts // devices)
        return round_capacity(rows, worst, devices, self.device.ragged_exchange) / rows

    @property
    def adapter_parameters(self) -> float:
        """Elements of the adapter's matrices of one layer."""
        return self.adapter.rank * sum(inputs + outputs for inputs, outputs in self.targets) if self.adapter else 0.0

    @property
    def targets(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the matrices of one layer that have an adapter."""
        model, wanted = self.model, self.adapter.targets if self.adapter else ()
        D, N, K, F = model.width, model.heads * model.head_width, model.kv_heads * model.head_width, model.mlp_width
        attention = {"query": (D, N), "key": (D, K), "value": (D, K), "out": (N, D)}
        mlp = {"gate": (D, F), "down": (F, D)} | ({"up": (D, F)} if model.gated else {})
        found = [size for name, size in attention.items() if name in wanted]
        times = model.experts + model.shared_experts or 1
        return found + [size for name, size in mlp.items() if name in wanted] * times

    @property
    def stacks(self) -> list[tuple["Setting", int]]:
        """Of each stack of layers the setting of a model with such layers alone, and how many they are."""
        if not self.model.dense_layers:
            return [(self, self.model.layers)]
        return [(replace(self, model=of_layer), len(numbers)) for of_layer, numbers in self.model.stacks.values()]

    @property
    def parameters_of_layers(self) -> float:
        """`layer_parameters` of all layers."""
        return sum(count * of.layer_parameters for of, count in self.stacks)

    @property
    def adapters_of_layers(self) -> float:
        """`adapter_parameters` of all layers."""
        return sum(count * of.adapter_parameters for of, count in self.stacks)

    @property
    def table(self) -> float:
        """Elements of one embedding table, on a device that has gathered it."""
        return self.model.vocabulary_size * self.model.width / self.along("tensor")

    @property
    def tables(self) -> int:
        """Number of embedding tables: one, or one for the input and one for the output."""
        return 1 if self.model.tied_embeddings else 2

    @property
    def layer_parameters(self) -> float:
        """Elements of one layer's matrices on a device that has gathered them; `tensor` and `expert` split them."""
        return attention_parameters(self.model) / self.along("tensor") + self.mlp_parameters

    @property
    def mlp_parameters(self) -> float:
        """The feed-forward part of `layer_parameters`."""
        model = self.model
        one = (3 if model.gated else 2) * model.width * model.mlp_width  # of one layer, or of one expert
        if not model.experts:
            return one / self.along("tensor")
        of_experts = one * (model.experts / self.along("expert") + model.shared_experts) / self.along("tensor")
        return of_experts + model.width * model.experts


@lru_cache(maxsize=1000)
def divisors(number: int) -> tuple[int, ...]:
    """All divisors, from 1 to the number itself."""
    return tuple(size for size in range(1, number + 1) if number % size == 0)


@lru_cache(maxsize=1000)
def _fewest_chunks(length: int, longest: int) -> int:
    return next(count for count in divisors(length) if length // count <= max(longest, 1))


@lru_cache(maxsize=1000)
def _splash_block(length: int, most: int) -> int:
    """The block of the splash kernel, or 512 for rows that need the other kernel (`flash`)."""
    return splash_block(length, most) if splash_fits(length, 1) else 512


def attention_parameters(model: ModelConfig) -> int:
    """Elements of the four matrices of a layer's attention."""
    return 2 * model.width * model.head_width * (model.heads + model.kv_heads)


def setting_of(job: Job, device: Chip | None = None, traits: ProgramTraits = OURS) -> Setting:
    """The setting of a training as `pretrain` or `finetune` would run it.

    Args:
        device: if it is not the topology's chip.

    Raises:
        UserError: the mesh does not fit the topology.
    """
    model, config = job.model, job.config
    made = Setting(
        model,
        job.topology,
        device or job.topology.chip,
        axis_sizes(job.mesh, job.topology.devices),
        config.batch_size,
        config.sequence_length,
        config.accumulation,
        attention_block=model.attention_block,
        loss_chunks=config.loss_chunks,
        gradient=4 if model.gradients == "float32" else 2,
        optimizer=config.optimizer,
        traits=traits,
        adapter=job.adapter,
        key=job.key,
    )
    return with_remat(made, model.remat)


def with_remat(setting: Setting, remat: str) -> Setting:
    """The setting with another remat policy.

    Of what it offloads, numbers have names in model/block.py: the output of attention, and `dots`.
    """
    named = setting.model.heads * setting.model.head_width + sum(setting.dots.values())
    return replace(setting, remat=remat, recompute=RECOMPUTED[remat], offloaded=named * (remat == "offload"))
