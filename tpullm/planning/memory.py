"""What a device holds at once, by kind: the state, what the backward pass finds kept, and what the worst moment adds.

Four moments can be the worst: when the tables are gathered, the loss (where the table's gradient is whole, in float32),
a layer's backward pass, and the update. Read off the TPU compiler's programs; tests compare `benchmarks/compiled.yaml`.
"""

from typing import NamedTuple

from tpullm.planning.resting import Resting, of_device
from tpullm.planning.setting import Setting, attention_parameters
from tpullm.planning.traffic import stops

PROGRAM = 34 << 20  # bytes of the program itself: 27 to 56 MiB in those that were compiled


class Memory(NamedTuple):
    """Bytes of one device at the worst moment, by kind, and which moment that is."""

    kinds: dict[str, float]
    moment: str

    @property
    def peak(self) -> float:
        """All kinds together."""
        return sum(self.kinds.values())


def memory(setting: Setting, rests: Resting) -> Memory:
    """The worst moment of a step."""
    parameters = of_device(rests.parameters, setting.sizes)
    state = {"parameters": parameters, "optimizer": of_device(rests.optimizer, setting.sizes)}
    # Layers are cast once, outside of the loop over them.
    kept = {"kept activations": _kept(setting), "cast parameters": 2 * _cast(setting), "program": PROGRAM}
    # Of one layer; in the backward pass the next one's comes while this one's is used.
    layer = 2.0 * setting.offloaded * setting.tokens / setting.along("tensor")
    going, coming = {"on the way to the host": layer}, {"from the host": 2 * layer}
    summed = parameters * (setting.accumulation > 1)
    moments = {
        "gather of the tables": kept | going | {"gradients": summed} | _tables(setting),
        "loss": kept | going | {"gradients": summed} | _loss(setting),
        "backward pass": kept | coming | {"gradients": summed + parameters} | _backward(setting),
        "update": {"gradients": summed + parameters},
    }
    worst = max(moments, key=lambda name: sum(moments[name].values()))
    return Memory(state | moments[worst], worst)


def _cast(setting: Setting) -> float:
    """Numbers of all layers' matrices on one device."""
    return setting.model.layers * setting.layer_parameters / setting.along("fsdp")


def _kept(setting: Setting) -> float:
    """What the forward pass leaves for the backward pass, of all layers: the residual stream, and what remat says."""
    model, tensor = setting.model, setting.along("tensor")
    numbers = {"full": 0, "offload": 0, "save_attention": _attention(setting)}
    dots, split = setting.dots, {"qkv": tensor, "out": 1, "up": 1 if model.experts else tensor}
    numbers["save_dots"] = _attention(setting) + sum(size / split[name] for name, size in dots.items())
    numbers["none"] = _everything(setting) if setting.remat == "none" else 0
    return 2.0 * setting.tokens * model.layers * (model.width + numbers[setting.remat])


def _attention(setting: Setting) -> float:
    """What attention's kernel names: what it mixed, and of each head the logarithm of a sum, float32."""
    model = setting.model
    return model.heads * (_lanes(model.head_width) + 2) / setting.along("tensor")


def _lanes(width: int) -> int:
    """A TPU holds the last dimension of an array in pieces of 128; the kernel's arrays end in a head's width."""
    return -(-width // 128) * 128


def _everything(setting: Setting) -> float:
    """Numbers of a token and a layer if nothing is computed again."""
    model, tensor = setting.model, setting.along("tensor")
    N, K, H = model.heads / tensor, model.kv_heads / tensor, model.head_width
    attention = _attention(setting) + (N + 2 * K) * _lanes(H) + N * H + (model.qk_norm != "none") * (N + K) * H
    hidden = (3 if model.gated else 2) * model.mlp_width / tensor
    if model.experts:
        routed = 0 if setting.along("expert") > 1 else model.experts_per_token * (hidden + 2 * model.width)
        hidden = routed + model.shared_experts * hidden + model.experts
    return 3 * model.width + attention + hidden


def _tables(setting: Setting) -> dict[str, float]:
    """Before the loss: the table as it was gathered and turned around, the one that was looked up in, and zeros."""
    table, hidden = setting.table, 4.0 * setting.tokens * setting.model.width
    return {"table": 2 * (setting.tables + 1) * table, "gradient of the table": 4 * table, "hidden states": hidden}


def _loss(setting: Setting) -> dict[str, float]:
    """The table and its gradient, whole along `fsdp`; a chunk of scores; the last hidden states and their gradient."""
    model, table = setting.model, setting.table
    scores = 4 * setting.tokens * model.vocabulary_size / setting.along("tensor") / setting.chunks
    hidden = 6.0 * setting.tokens * model.width
    return {"table": 2 * table, "gradient of the table": 4 * table, "scores": scores, "hidden states": hidden}


def _backward(setting: Setting) -> dict[str, float]:
    """One layer: its parameters gathered, gradients on their way, what it computes again.

    The table's gradient waits until the end: so the compiler orders it.
    """
    table = setting.gradient * setting.table
    moments = [_mixture(setting)] if setting.model.experts else [_feed_forward(setting), _in_attention(setting)]
    return {"gradient of the table": table} | max(moments, key=lambda moment: sum(moment.values()))


def _feed_forward(setting: Setting) -> dict[str, float]:
    """A layer's backward pass in its feed-forward part."""
    model, tensor = setting.model, setting.along("tensor")
    heads, hidden = model.heads * model.head_width / tensor, model.mlp_width / tensor
    numbers = setting.tokens * (3 * model.width + 2 * heads + 3 * hidden)
    return {"one layer": 2 * numbers, "gathered parameters": 8 / 3 * setting.mlp_parameters}


def _in_attention(setting: Setting) -> dict[str, float]:
    """The same in its attention, where RoPE's gradient is in float32: of queries, and of keys that are as many.

    What the feed-forward part's gradients are made of is still there; all of it where sums go on beside the products.
    """
    model, tensor = setting.model, setting.along("tensor")
    heads, keys = model.heads * model.head_width / tensor, model.kv_heads * model.head_width / tensor
    hidden = (3 if stops(setting)[1] else 4) * model.mlp_width / tensor
    rotated = 4 * (heads + (keys if keys == heads else 0)) + heads * (model.qk_norm != "none")
    numbers = setting.tokens * (3 * model.width + hidden + rotated + 3 * heads + 2 * keys)
    return {"one layer": 2 * numbers, "gathered parameters": 2 * attention_parameters(model) / tensor}


def _mixture(setting: Setting) -> dict[str, float]:
    """The same of a mixture: experts' weights and gradients, and rows on their way, in buffers that are not full."""
    model, M, tensor = setting.model, setting.tokens, setting.along("tensor")
    D, F, k = model.width, model.mlp_width / tensor, model.experts_per_token
    rows, arriving = M * k, M * k * setting.fullness
    on_their_way = 4 * arriving * (D + F) + rows * D
    around = M * (7 * D + 3 * model.heads * model.head_width / tensor)
    parameters = 4 * setting.mlp_parameters + 2 * attention_parameters(model) / tensor
    return {"one layer": 2 * (on_their_way + around), "gathered parameters": parameters}
