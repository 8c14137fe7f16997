"""Write a trained model as a folder in the format of Hugging Face, or as a file for llama.cpp.

The folder has weights, config.json, generation_config.json, the tokenizer with its chat template, and a model card. Of
a model with an adapter it is the adapter alone, in the format of PEFT; --merge writes the whole model.

--weights int8 or int4 writes the matrices of all layers in so many bits, as transformers (with the package
compressed-tensors) and vLLM read them.

--format gguf writes one file into the folder, NAME-WEIGHTS.gguf, with weights, tokenizer and chat template. It is for
llama.cpp and what is built on it. A Modelfile beside it is for Ollama. A model that llama.cpp doesn't compute is
refused.

MODEL may be of others too: a GGUF file becomes a folder, or a file of another type. It is imported beside FOLDER first.
"""

import contextlib
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from tpullm.cli.options import add_model
from tpullm.formats.gguf import tensor_types
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest
from tpullm.run.stages import chat_commands, export_inputs, is_published
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError
from tpullm.system.log import say

OF_FOLDER, OF_GGUF = ("int8", "int4"), tensor_types.WEIGHTS


def add_arguments(parser) -> None:
    """The options of `tpullm export`."""
    add_model(parser)
    parser.add_argument("folder", help="the folder to write; it must be empty or not there")
    about = "dtype of the weights: as stored (float32 if the model was trained here), or bfloat16 for half the size"
    dtypes = ("stored", "float32", "bfloat16", "float16")
    parser.add_argument("--dtype", default="stored", choices=dtypes, help=about)
    parser.add_argument("--format", default="huggingface", choices=("huggingface", "gguf"), help="whose format")
    about = "fewer bits: int8, int4; the others with --format gguf, named by their bits; its default is q8_0"
    parser.add_argument("--weights", choices=(*OF_FOLDER, *OF_GGUF), help=about)
    parser.add_argument("--shard-gigabytes", type=float, default=5.0, help="the largest size of a file of weights")
    parser.add_argument("--merge", action="store_true", help="write the whole model, with its adapter merged into it")
    parser.add_argument("--licence", default="", help="the licence of the model, for its card: Apache-2.0")


def _is_sized(arguments) -> bool:
    """Whether an option is given that only the format of Hugging Face has."""
    return arguments.dtype != "stored" or arguments.shard_gigabytes != 5


def main(arguments) -> None:
    """Write everything beside the folder and rename it, so that the folder appears when it is complete."""
    folder, is_gguf, weights = storage.path(arguments.folder).resolve(), arguments.format == "gguf", arguments.weights
    of_format = OF_GGUF if is_gguf else OF_FOLDER
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not an empty folder; choose another one, or remove what is in it")
    if arguments.shard_gigabytes <= 0:
        raise UserError(f"--shard-gigabytes: {arguments.shard_gigabytes} is not above 0; use 5, say")
    if weights and weights not in of_format:
        raise UserError(f"--weights {weights}: is not for --format {arguments.format}; use {', '.join(of_format)}")
    if is_gguf and _is_sized(arguments):
        raise UserError(
            "--dtype, --shard-gigabytes: are for the format of Hugging Face; use --weights with --format gguf"
        )
    path = storage.path(arguments.model)
    if is_published(path) and (path.resolve() == folder or path.resolve() in folder.parents):
        raise UserError(f"{folder}: is inside the published model; choose another folder")
    with contextlib.ExitStack() as closing:
        _export(arguments, _imported(path, folder, closing), folder)


def _imported(path: Path, folder: Path, closing: contextlib.ExitStack) -> Path:
    """The MODEL itself if it is of a run; a run that a model of others is imported into, until `closing` closes."""
    from tpullm.cli import import_

    if not is_published(path):
        return path
    beside = None if storage.is_remote(folder) else folder.parent
    if beside:
        beside.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.TemporaryDirectory(prefix=".tpullm-", suffix=".partial", dir=beside)
    run = Path(closing.enter_context(temporary)) / "run"
    import_.main(SimpleNamespace(folder=str(path), run=str(run), config=""))
    return run


def _export(arguments, path: Path, folder: Path) -> None:
    """Write the model of a run."""
    from tpullm.formats import publish
    from tpullm.formats.models import find

    is_gguf, weights = arguments.format == "gguf", arguments.weights
    model = find(path)
    is_adapter = model.adapter and not arguments.merge
    if arguments.merge and not model.adapter:
        raise UserError(f"--merge: {model.directory.parent} has no adapter; leave --merge out")
    if is_adapter and is_gguf:
        raise UserError("--format gguf: an adapter alone is not written for llama.cpp; add --merge for the whole model")
    if is_adapter and _is_sized(arguments):
        raise UserError("--dtype, --shard-gigabytes: are for whole models; an adapter is written as it was trained")
    if is_adapter and weights:
        raise UserError("--weights: is for whole models; add --merge, or leave --weights out for the adapter alone")
    with storage.atomic_directory(folder, replaces=False) as temporary:
        to = model, temporary, folder.name
        if is_gguf:
            size = publish.write_gguf(*to, weights or "q8_0", arguments.licence)
        elif is_adapter:
            size = publish.write_adapter(*to, arguments.licence)
        else:
            shard_bytes = int(arguments.shard_gigabytes * 1e9)
            size = publish.write(*to, arguments.dtype, shard_bytes, arguments.licence, weights or "")
    what = "the adapter of " if is_adapter else ""
    is_run = path == storage.path(arguments.model)
    of = f"{model.directory.parent}, step {model.step:,}" if is_run else arguments.model
    say(f"export: {what}{of}, to {folder} ({size / 1e6:,.1f} MB)")


def check_recipe(recipe: Recipe) -> None:
    """Refuse what the end of a run could not write.

    Raises:
        UserError: a type of weights is not known, the name is none of a file, the package `gguf` is missing, or several
            hosts would write.
    """
    from tpullm.formats.gguf.reading import check_installed

    if unknown := [name for name in recipe.export.gguf if name not in OF_GGUF]:
        raise UserError(f"export.gguf: {unknown[0]} is no type of weights; use {', '.join(OF_GGUF)}")
    if "/" in recipe.name:
        raise UserError(f"name: {recipe.name} can't name the files of export.gguf; choose one without /")
    if hosts.count() > 1:
        raise UserError("export.gguf: one host writes the files; leave it out, and use `tpullm export` after the run")
    check_installed()


def check_model(recipe: Recipe, run: Path) -> None:
    """Refuse, before it is trained, a model that llama.cpp lacks, or its tokenizer. The base is imported."""
    from tpullm.formats import publish
    from tpullm.formats.models import planned_model
    from tpullm.tokenizer import load

    tokenizer = load((run / "base" if recipe.base else run) / "tokenizer")
    publish.check_gguf(planned_model(recipe, run), tokenizer, recipe.export.gguf, publish.source_type(recipe.base, run))


def make_exports(recipe: Recipe, run: Path) -> None:
    """Make `RUN/export`: a GGUF file of the last model for each type of weights, and a Modelfile for Ollama."""
    stage, inputs = run / "export", export_inputs(recipe, run)
    if manifest.is_finished(stage, inputs):
        return say("export: finished, skipped")
    from tpullm.formats import publish
    from tpullm.formats.models import find

    began, model = time.monotonic(), find(str(run / recipe.trained[-1]))
    with storage.atomic_directory(stage) as temporary:
        for weights in recipe.export.gguf:
            size = publish.write_gguf(model, temporary, recipe.name, weights, recipe.export.licence)
            say(f"export: {stage / f'{recipe.name}-{weights}.gguf'} ({size / 1e6:,.1f} MB)")
        seconds = round(time.monotonic() - began, 1)
        manifest.write(temporary, inputs, seconds=seconds)


def tell_how_to_chat(recipe: Recipe, run: Path) -> None:
    """Print the commands that use what a run has written, where it is now."""
    for program, command in chat_commands(recipe, run).items():
        say(f"{program}: {command}")
