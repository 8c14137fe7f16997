"""Show the layout of every parameter on a mesh: its logical axes, how it is split, its bytes on a device.

Nothing is computed. The devices need not be here: give --topology v5p:4x4x8 or --devices 256, and --mesh.
"""

import math
from pathlib import Path

from tpullm.cli.options import add_json, print_json
from tpullm.hardware import topologies
from tpullm.recipe.mesh_axes import AXES
from tpullm.recipe.schema import Recipe
from tpullm.system.errors import UserError
from tpullm.system.language import spoken


def add_arguments(parser) -> None:
    """The options of `tpullm sharding`."""
    about = "how many devices; 0: those of the recipe's topology, else as many as --mesh needs, else those here"
    parser.add_argument("--devices", type=int, default=0, help=about)
    add_json(parser)


def main(recipe: Recipe, run: Path, arguments) -> None:
    """Print the table, after the checks that training makes too."""
    from rich.console import Console

    from tpullm.report.tables import show

    found = layouts(recipe, run, arguments.devices)
    if arguments.json:
        return print_json(found)
    mesh = ", ".join(f"{axis} {size}" for axis, size in found["mesh"].items()) or "one device"
    rows = []
    for row in found["table"]:
        split = [
            f"{axis}: {part if isinstance(part, str) else ' and '.join(part)}"
            for axis, part in zip(row["axes"], row["layout"], strict=False)
            if part
        ]
        sizes = " × ".join(f"{size:,}" for size in row["shape"])
        dimensions, megabytes = ", ".join(row["axes"]), f"{row['bytes_a_device'] / 1e6:,.2f}"
        rows.append(
            (row["parameter"], dimensions, sizes, ", ".join(split) or spoken("whole on each device"), megabytes)
        )
    title = f"{found['parameters']:,} parameters on {found['devices']:,} device(s): {mesh}"
    header = ("parameter", "dimensions", "sizes", "split over", "MB a device")
    show(title, header, rows, right=(4,), folded=(1, 3, 4), on=Console(highlight=False, width=120))
    told = (
        f"parameters {found['bytes_a_device'] / 1e6:,.1f} MB a device; with gradients and what {found['optimizer']} "
        f"keeps {found['training_bytes_a_device'] / 1e6:,.1f} MB (activations come on top)"
    )
    print(spoken(told))


def layouts(recipe: Recipe, run: Path, devices: int = 0) -> dict:
    """For each parameter: name, shape, logical axes, layout, shape and bytes on a device; and the sums.

    Args:
        devices: 0: those of the recipe's topology; else the product of the mesh's sizes; else those of this machine.

    Raises:
        UserError: the mesh does not fit the devices, the model or the batch.
    """
    import jax

    from tpullm.formats.huggingface.tensors import flat
    from tpullm.formats.models import planned_model
    from tpullm.model.architecture import Architecture
    from tpullm.model.mesh import planned_mesh
    from tpullm.model.mesh_fit import check_fits
    from tpullm.training.optimizer.chain import make_optimizer
    from tpullm.training.step import abstract_state

    if devices < 0:
        raise UserError(f"--devices: {devices} is below 0; use 0 for as many as the mesh needs")
    needed = math.prod(recipe.mesh.values())
    there = topologies.parse(recipe.topology).devices if recipe.topology else 0
    mesh = planned_mesh(recipe.mesh, devices or there or (needed if needed > 0 else jax.device_count()))
    model = planned_model(recipe, run)
    architecture, training = Architecture(model), recipe.pretrain
    check_fits(architecture, training, model.vocabulary_size, mesh, "pretrain", sizes_given=bool(recipe.base))
    shardings, axes = flat(architecture.shardings(mesh)), flat(architecture.axes)
    rows = []
    for name, leaf in flat(architecture.shapes).items():
        here = shardings[name].shard_shape(leaf.shape)
        layout = [list(part) if isinstance(part, tuple) else part for part in shardings[name].spec]
        rows.append(
            {"parameter": name, "shape": list(leaf.shape), "axes": list(axes[name]), "layout": layout}
            | {"shape_a_device": list(here), "bytes_a_device": math.prod(here) * leaf.dtype.itemsize}
        )
    of_a_device = sum(row["bytes_a_device"] for row in rows)
    optimizer = make_optimizer(training.optimizer, training.steps, architecture.axes)
    state = jax.tree.leaves(abstract_state(architecture, optimizer, mesh))
    state_bytes = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in state)
    return {
        "mesh": {axis: size for axis, size in zip(AXES, mesh.axis_sizes, strict=True) if size > 1},
        "devices": mesh.size,
        "parameters": sum(math.prod(row["shape"]) for row in rows),
        "bytes_a_device": of_a_device,
        "optimizer": training.optimizer.kind,
        "training_bytes_a_device": state_bytes + of_a_device,  # a gradient is as large as its parameter
        "table": rows,
    }
