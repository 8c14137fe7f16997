"""Write a trained model as a folder in the format of Hugging Face, or as a file for llama.cpp.

The folder has weights, config.json, generation_config.json, the tokenizer with its chat template, and a model card. Of
a model with an adapter it is the adapter alone, in the format of PEFT; --merge writes the whole model.

--weights int8 or int4 writes the matrices of all layers in so many bits, as transformers (with the package
compressed-tensors) and vLLM read them.

--format gguf writes one file into the folder, NAME-WEIGHTS.gguf, with weights, tokenizer and chat template. It is for
llama.cpp and what is built on it. A model that llama.cpp doesn't compute is refused.
"""

from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import say

OF_FOLDER, OF_GGUF = ("int8", "int4"), ("f32", "bf16", "f16", "q8_0", "q4_k_m")


def add_arguments(parser) -> None:
    """The options of `tpullm export`."""
    parser.add_argument("model", help="a run directory, one of its stages, or one checkpoint")
    parser.add_argument("folder", help="the folder to write; it must be empty or not there")
    parser.add_argument(
        "--dtype",
        default="stored",
        choices=("stored", "float32", "bfloat16", "float16"),
        help="dtype of the weights: as stored (float32 if the model was trained here), or bfloat16 for half the size",
    )
    parser.add_argument("--format", default="huggingface", choices=("huggingface", "gguf"), help="whose format")
    parser.add_argument(
        "--weights",
        choices=(*OF_FOLDER, *OF_GGUF),
        help="fewer bits: int8, int4; the others with --format gguf: q8_0, its default, has 8.5 bits, q4_k_m about 5",
    )
    parser.add_argument("--shard-gigabytes", type=float, default=5.0, help="the largest size of a file of weights")
    parser.add_argument("--merge", action="store_true", help="write the whole model, with its adapter merged into it")
    parser.add_argument("--licence", default="", help="the licence of the model, for its card: Apache-2.0")


def main(arguments) -> None:
    """Write everything beside the folder and rename it, so that the folder appears when it is complete."""
    folder = storage.path(arguments.folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not an empty folder; choose another one, or remove what is in it")
    if arguments.shard_gigabytes <= 0:
        raise UserError(f"--shard-gigabytes: {arguments.shard_gigabytes} is not above 0; use 5, say")
    of_format = OF_GGUF if arguments.format == "gguf" else OF_FOLDER
    if arguments.weights and arguments.weights not in of_format:
        raise UserError(
            f"--weights {arguments.weights}: is not for --format {arguments.format}; use {', '.join(of_format)}"
        )
    if arguments.format == "gguf" and (arguments.dtype, arguments.shard_gigabytes) != ("stored", 5.0):
        raise UserError(
            "--dtype, --shard-gigabytes: are for the format of Hugging Face; use --weights with --format gguf"
        )
    from tpullm.formats import publish
    from tpullm.formats.models import find

    model, shard_bytes = find(arguments.model), int(arguments.shard_gigabytes * 1e9)
    if arguments.merge and not model.adapter:
        raise UserError(f"--merge: {model.directory.parent} has no adapter; leave --merge out")
    if model.adapter and not arguments.merge and arguments.format == "gguf":
        raise UserError("--format gguf: an adapter alone is not written for llama.cpp; add --merge for the whole model")
    if model.adapter and not arguments.merge and (arguments.dtype, arguments.shard_gigabytes) != ("stored", 5.0):
        raise UserError("--dtype, --shard-gigabytes: are for whole models; an adapter is written as it was trained")
    if model.adapter and not arguments.merge and arguments.weights:
        raise UserError("--weights: is for whole models; add --merge, or leave --weights out for the adapter alone")
    with storage.atomic_directory(folder, replaces=False) as temporary:
        if arguments.format == "gguf":
            size = publish.write_gguf(model, temporary, folder.name, arguments.weights or "q8_0", arguments.licence)
        elif model.adapter and not arguments.merge:
            size = publish.write_adapter(model, temporary, folder.name, arguments.licence)
        else:
            options = arguments.dtype, shard_bytes, arguments.licence, arguments.weights or ""
            size = publish.write(model, temporary, folder.name, *options)
    what = "the adapter of " if model.adapter and not arguments.merge else ""
    say(f"export: {what}{model.directory.parent}, step {model.step:,}, to {folder} ({size / 1e6:,.1f} MB)")
