"""The published runs of `published.yaml` as settings of the estimate."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import yaml

from tpullm.hardware.chips import CHIPS, Chip
from tpullm.hardware.topologies import parse
from tpullm.model.architecture import matrix_parameters
from tpullm.planning.search import LONG_ROW
from tpullm.planning.setting import MAXTEXT, Setting
from tpullm.recipe.mesh_axes import axis_sizes
from tpullm.recipe.schema import ModelConfig

# XLA for GPUs reduce-scatters gradients, and sums them between hosts in bfloat16.
ON_GPUS = dataclasses.replace(MAXTEXT, sums=1, crossing=2)
FILE = Path(__file__).with_name("published.yaml")


@dataclasses.dataclass(frozen=True)
class Run:
    """One published run.

    Args:
        name: model and topology.
        use: `fit`, `held` or `apart`.
        tokens_per_second: of one chip, as published.
        setting: how it was run.
        dcn_bandwidth: of its network, if it is not that of the chip's entry; else 0.
    """

    name: str
    use: str
    tokens_per_second: float
    setting: Setting
    dcn_bandwidth: float = 0.0

    @property
    def table(self) -> str:
        """Among which runs the documentation tells its error: on `GPUs`, on `tpu7x`, or on the `TPUs` before it."""
        topology = self.setting.topology
        return "GPUs" if topology.chip.gpu else "tpu7x" if topology.generation == "tpu7x" else "TPUs"

    def on(self, chips: Mapping[str, Chip]) -> Setting:
        """The setting with other constants."""
        chip = chips[self.setting.topology.generation]
        if self.dcn_bandwidth:
            chip = dataclasses.replace(chip, dcn_bandwidth=self.dcn_bandwidth)
        return dataclasses.replace(self.setting, device=chip)


def runs() -> list[Run]:
    """All of them, in the order of the file."""
    data = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return [_run(row, _model(row, data["models"][row["model"]])) for row in data["runs"]]


def _model(row: dict, fields: dict) -> ModelConfig:
    windows = tuple(fields.get("windows", ())) * fields["layers"]  # those of the first layers repeat
    fields = fields | {"windows": windows[: fields["layers"]], "matmuls": row.get("matmuls", "compute")}
    return ModelConfig(**fields, context_length=1 << 20, qk_norm="none").resolved(0)


def _run(row: dict, model: ModelConfig) -> Run:
    topology = parse(row["topology"])
    mesh = dict(row.get("mesh", {"fsdp": topology.devices // topology.slices}))
    if math.prod(mesh.values()) != topology.devices:
        mesh["data"] = topology.slices
    setting = Setting(
        model,
        topology,
        CHIPS[topology.generation],
        axis_sizes(mesh, topology.devices),
        rows=round(row["rows"] * topology.chips),
        length=row["length"],
        recompute=tuple(row["recompute"]),
        padding=row.get("padding", 1.0),
        offloaded=row.get("offloaded", 0),
        traits=ON_GPUS
        if topology.platform == "gpu"
        else dataclasses.replace(MAXTEXT, block=row.get("block", MAXTEXT.block), fused=row.get("fused", False)),
    )
    name = f"{row['model']} on {topology}" + (f" ({row['source']})" if row["source"] in ("tiers", "recipes") else "")
    name += f", {row['matmuls']}" if "matmuls" in row else ""
    name += f", rows of {row['length']:,}" if row["source"] == "ironwood" and row["length"] > LONG_ROW else ""
    tokens = row.get("tokens") or row["flops"] * 1e12 / _full_flops(setting)
    return Run(name, row["use"], tokens, setting, 1e9 * row.get("dcn", 0))


def _full_flops(setting: Setting) -> float:
    """FLOPs of a token as MaxText counted them before July 2025: with all scores instead of half of them."""
    model = setting.model
    return 6 * matrix_parameters(model) + 12 * model.layers * setting.length * model.heads * model.head_width
