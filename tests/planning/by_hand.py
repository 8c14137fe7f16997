"""Two small models on a chip with round figures, of which all can be counted by hand; and shipped recipes."""

import dataclasses

from tests.conftest import ROOT
from tpullm.hardware.chips import Chip
from tpullm.hardware.topologies import parse
from tpullm.planning.program import job_of
from tpullm.planning.setting import Setting, setting_of
from tpullm.recipe.parsing import load
from tpullm.recipe.schema import ModelConfig

CHIP = Chip(
    ("made up",),
    peak_flops=1e12,
    hbm_bytes=1 << 30,
    hbm_bandwidth=1e10,
    link_bandwidth=1e9,
    dcn_bandwidth=1e8,
    host_bandwidth=1e7,
    matmul_efficiency=0.8,
    grouped_efficiency=0.5,
    attention_efficiency=0.25,
    hbm_efficiency=0.5,
    link_efficiency=0.5,
    overlap_loss=0.25,
    dcn_efficiency=0.4,
    latency_seconds=1e-6,
    offloads_collectives=True,
)
SHAPE = {"layers": 3, "width": 512, "heads": 8, "kv_heads": 4, "head_width": 64, "mlp_width": 1024}
DENSE = ModelConfig(**SHAPE, context_length=256, qk_norm="none").resolved(1024)
EXPERTS = dataclasses.replace(DENSE, experts=8, experts_per_token=2)
ATTENTION = 512 * 512 + 2 * 512 * 256 + 512 * 512  # parameters of queries, keys and values, output
MLP = 3 * 512 * 1024
TABLE = 1024 * 512


def setting(model: ModelConfig = DENSE, topology: str = "v6e:4x4", *, chip: dict | None = None, **options) -> Setting:
    """16 rows of 256 tokens; the mesh axes are options too."""
    sizes = tuple(options.pop(axis, 1) for axis in ("data", "fsdp", "expert", "sequence", "tensor"))
    device = dataclasses.replace(CHIP, **(chip or {}))
    return Setting(model, parse(topology), device, sizes, **{"rows": 16, "length": 256} | options)


def shipped(name: str, topology: str = "", **options) -> Setting:
    """A recipe on its own topology or another one; options are keys, `pretrain__batch_size` for example."""
    (path,) = (ROOT / "configs").glob(f"*/{name}.yaml")
    recipe = load(path, [f"--{key.replace('__', '.')}={value}" for key, value in options.items()])
    return setting_of(job_of(recipe, parse(topology or recipe.topology)))
