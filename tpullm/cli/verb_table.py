"""The verbs: for each a line of help, the keys of a recipe that it reads, and two examples.

A verb's module has its name (`import_` for `import`). `tpullm VERB --help` begins with the module's docstring.
"""

import keyword
from dataclasses import dataclass

# The keys of a verb that reads only the names and the weights of the sources.
SOURCES = ("text", "corpus.sources")


@dataclass(frozen=True)
class Verb:
    """One verb.

    Args:
        help: its line in the overview.
        examples: command lines that work, without `tpullm VERB`.
        keys: keys and sections of the recipe that the verb reads, the most important section first. A verb with keys
            takes a recipe (a name or a file, `--run`, `--section.key`). Keys that it only compares, to see whether an
            earlier stage is up to date, are not listed.
        writes: it makes a stage, so the recipe is kept in the run directory.
        computes: it computes with JAX, in a process whose environment is set up first
            (`system/process/environment.py`).
        reads: it parses its command line itself.
        shared: several processes can share its work (`system/cluster/shares.py`).
        joins: it takes no recipe, and several hosts can run it together.
        shows: an option with which it reads a MODEL that was made, instead of a recipe (`show_main` of its module).
        options: it has options beside the keys of its recipe.
    """

    help: str
    examples: tuple[str, ...]
    keys: tuple[str, ...] = ()
    writes: bool = False
    shows: str = ""
    computes: bool = True
    reads: bool = False
    shared: bool = False
    joins: bool = False
    options: bool = False

    @property
    def recipe(self) -> bool:
        """Whether it takes a recipe."""
        return bool(self.keys)

    @property
    def adds(self) -> str:
        """The function of its module that adds options to its parser; empty if it has none."""
        return "add_show_arguments" if self.shows else "add_arguments" if self.options or not self.recipe else ""


VERBS = {
    "run": Verb(
        "all stages of a recipe, in order; finished stages are skipped",
        ("quickstart", "quickstart --text my_texts --run runs/mine"),
        keys=(
            *("run", "name", "seed", "text", "text_bytes", "base", "branch", "branch_state", "mesh", "language"),
            *("trackers", "corpus", "tokenizer", "pretrain", "mixture", "model", "finetune", "evaluate"),
        ),
        writes=True,
    ),
    "recipes": Verb(
        "list the recipes, with machine, time and result",
        ("", "quickstart > mine.yaml"),
        computes=False,
    ),
    "collect": Verb(
        "1. raw sources into clean, deduplicated documents",
        ("quickstart", "quickstart --text my_texts --run runs/mine"),
        keys=("run", "name", "seed", "text", "text_bytes", "corpus"),
        writes=True,
        computes=False,
        shared=True,
    ),
    "tokenize": Verb(
        "2. documents into a tokenizer and tokens; --show splits a text",
        ("quickstart", "--show '今日はいい天気ですね。' --model runs/quickstart"),
        keys=("run", "name", "seed", "base", *SOURCES, "corpus.held_out_fraction", "tokenizer"),
        writes=True,
        shows="--show",
        computes=False,
        shared=True,
    ),
    "data": Verb(
        "show the documents in the batch of a training step",
        ("quickstart --step 0", "--run runs/quickstart --step 479 --json"),
        keys=(
            *("run", "name", "seed", *SOURCES, "mixture"),
            *("pretrain.steps", "pretrain.batch_size", "pretrain.sequence_length"),
        ),
        computes=False,
        options=True,
    ),
    "trace": Verb(
        "find the documents that hold a passage, and their steps",
        ("quickstart --passage 今日はいい天気ですね", "quickstart --hash 1a2b --json"),
        keys=(
            *("run", "name", "seed", *SOURCES, "mixture"),
            *("pretrain.steps", "pretrain.batch_size", "pretrain.sequence_length"),
        ),
        computes=False,
        options=True,
    ),
    "sharding": Verb(
        "show the layout of every parameter on a mesh of devices",
        ("8b", "8b --topology v5p:4x4x8 --mesh '{fsdp: -1, tensor: 4}'"),
        keys=("run", "name", "topology", "mesh", "base", "tokenizer.vocabulary_size", "pretrain", "model"),
        computes=False,
        options=True,
    ),
    "plan": Verb(
        "memory, speed and cost of a recipe on TPUs, before you rent them",
        ("8b", "8b --topology v5e:16x16,v6e:16x16,v5p:4x4x8 --search"),
        keys=("run", "name", "topology", "mesh", "base", "tokenizer.vocabulary_size", "pretrain", "finetune", "model"),
        options=True,
    ),
    "pretrain": Verb(
        "3. and 4. train a Transformer to predict the next token",
        ("quickstart", "quickstart --pretrain.steps 2000 --mesh '{fsdp: -1}'"),
        keys=(
            *("run", "name", "seed", "base", "branch", "branch_state", "mesh", "trackers"),
            *(*SOURCES, "pretrain", "mixture", "model"),
        ),
        writes=True,
    ),
    "finetune": Verb(
        "5. tune the model on conversations",
        ("quickstart", "--run runs/q --finetune.talk.conversations '[chats.jsonl]'"),
        keys=("run", "name", "seed", "base", "mesh", "trackers", *SOURCES, "finetune", "model"),
        writes=True,
    ),
    "evaluate": Verb(
        "measure the model: held-out loss, the truth, its answers; --tasks",
        ("quickstart", "runs/quickstart --tasks my_questions.jsonl --shots 2"),
        keys=(
            *("run", "name", "seed", "base", *SOURCES, "mixture"),
            *("pretrain.steps", "pretrain.batch_size", "pretrain.sequence_length"),
            *("finetune.NAME.conversations", "finetune.NAME.held_out_fraction", "evaluate"),
        ),
        shows="--tasks",
    ),
    "compare": Verb(
        "say how models differ: answers, loss, calibration; a table, a page",
        (
            "runs/quickstart/pretrain runs/quickstart/talk",
            "runs/quickstart models/published --tasks my_questions.jsonl",
        ),
        joins=True,
    ),
    "report": Verb(
        "one HTML page about a run",
        ("quickstart", "--run runs/mine"),
        keys=("run", "name", "base", "language"),
        computes=False,
    ),
    "generate": Verb(
        "continue a text",
        ("--model runs/quickstart --prompt 'The '", "--model runs/quickstart --tokens 50 --count 3 --json"),
    ),
    "chat": Verb(
        "talk with a tuned model",
        ("--model runs/quickstart", "--model runs/quickstart --prompt '本をどうしますか。'"),
    ),
    "serve": Verb(
        "answer over HTTP, as OpenAI's API does",
        ("runs/quickstart", "runs/mine --adapter runs/mine/talk --port 8001"),
        joins=True,
    ),
    "blank": Verb(
        "fill 【?】 with words and their probabilities",
        (
            "'今日はとても【?】天気ですね。' --model runs/quickstart",
            "'今日は【?】です。' --model runs/quickstart --count 3 --json",
        ),
    ),
    "attention": Verb(
        "draw which earlier tokens each token attends to",
        ("--model runs/quickstart", "'The sun rises.' --model runs/quickstart --out attention.html"),
    ),
    "import": Verb(
        "take a published model into a run directory, to train it further",
        ("models/published --run runs/mine", "models/published --run runs/mine --config=mine.yaml"),
        computes=False,
    ),
    "export": Verb(
        "write a trained model for Hugging Face's programs, or for llama.cpp",
        ("runs/quickstart models/quickstart", "runs/quickstart models/small --dtype bfloat16"),
        computes=False,
    ),
    "launch": Verb(
        "run a verb on several processes or on machines in the cloud",
        (
            "local --processes 2 -- pretrain quickstart",
            "tpu-vm --config tpu-vm --project P -- pretrain 1b --run gs://B/R",
        ),
        computes=False,
        reads=True,
    ),
    "doctor": Verb(
        "check a model for silent faults",
        ("models/published", "runs/quickstart --json"),
    ),
}

# The groups of verbs in the overview.
GROUPS = {
    "Train a model": ("run", "collect", "tokenize", "pretrain", "finetune", "evaluate", "compare", "report"),
    "Use a model": ("generate", "chat", "serve", "blank", "attention"),
    "Look before you train": ("recipes", "data", "trace", "sharding", "plan"),
    "Other models, other machines": ("import", "export", "doctor", "launch"),
}


def module_of(verb: str) -> str:
    """The name of a verb's module. A verb that is a keyword of Python gets an underscore."""
    return f"tpullm.cli.{verb}{'_' * keyword.iskeyword(verb)}"
