"""The command line: `tpullm VERB ...`. Only the chosen verb's module is imported."""

import contextlib
import dataclasses
import difflib
import importlib
import keyword
import os
import signal
import sys
import traceback
import warnings
from dataclasses import dataclass

from tpullm import environment, hosts, joining, log, storage
from tpullm.errors import Interrupted, UserError, correctable


@dataclass(frozen=True)
class Verb:
    """One verb.

    Args:
        help: its line of the overview.
        recipe: it takes a recipe (`--config`, `--run`, `--section.key`).
        writes: it makes a stage, so the recipe is kept in the run directory.
        computes: it computes with JAX, in a process that was set up for that from its start.
        reads: it reads its command line itself.
        shared: several processes can share its work, each on its own.
        shows: an option that turns it into a look at what was made, with `--model` instead of a recipe.
    """

    help: str
    recipe: bool = False
    writes: bool = False
    shows: str = ""
    computes: bool = True
    reads: bool = False
    shared: bool = False


VERBS = {
    "run": Verb("all stages of a recipe, in order; finished ones are skipped", recipe=True, writes=True),
    "recipes": Verb("the recipes that come with tpullm", computes=False),
    "collect": Verb(
        "1. raw sources to clean, licensed, deduplicated documents and a data card",
        recipe=True,
        writes=True,
        computes=False,
        shared=True,
    ),
    "tokenize": Verb(
        "2. documents to a tokenizer and a token store; --show TEXT prints a split",
        recipe=True,
        writes=True,
        shows="--show",
        computes=False,
        shared=True,
    ),
    "data": Verb("   --step N: which documents are in the batch of a step", recipe=True, computes=False),
    "sharding": Verb("   where every parameter would live on a mesh of devices", recipe=True, computes=False),
    "plan": Verb("   memory, speed and cost of a recipe on TPUs that are not here", recipe=True),
    "pretrain": Verb("4. the token store to a trained Transformer (3.)", recipe=True, writes=True),
    "finetune": Verb("5. tune the model on conversations", recipe=True, writes=True),
    "evaluate": Verb("held-out loss, the truth tables, tuned answers", recipe=True),
    "report": Verb("a run directory to one self-contained HTML page", recipe=True, computes=False),
    "generate": Verb("go on with a text"),
    "chat": Verb("talk with a tuned model"),
    "blank": Verb("fill 【?】 with words and their probabilities"),
    "attention": Verb("a picture of which earlier tokens each token looks at"),
    "import": Verb("a published model into a run directory, to go on from", computes=False),
    "export": Verb("a trained model to a folder in the format of Hugging Face", computes=False),
    "launch": Verb("a verb on several processes, TPU machines or a Batch job", computes=False, reads=True),
    "doctor": Verb("silent faults of a model in the format of Hugging Face"),
}


def entry() -> int:
    """The program `tpullm`: `main`, in a process that has what computing needs from its start."""
    verb = VERBS.get(sys.argv[1] if len(sys.argv) > 1 else "")
    if verb and verb.computes:
        environment.prepare()
    elif verb and not verb.reads:  # what `launch` starts finds its own
        environment.settle()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is half-written is removed
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a terminal without Japanese shows question marks instead
        stream.reconfigure(errors="replace")
    code = main()
    if code:
        # Threads that fail of the same cause a moment later (a save that goes on, say), in Python or not, add nothing
        # to the one line.
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return code


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code is the verb's (0), 2 for a mistake that the user can correct, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(argv)
    except UserError as error:
        return _fail(str(error), error.code)
    except Interrupted as error:
        return _fail(str(error), code=130)
    except KeyboardInterrupt:
        return _fail("interrupted; what was finished is kept, the same command goes on from there", code=130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        hosts.wait_for_cause(error)
        message = correctable(error)
        if told := storage.explain(error):
            return _fail(str(told), told.code)
        if message is None:
            if hosts.count() > 1:
                traceback.print_exc()
                hosts.fail(f"{type(error).__name__}: {error}", code=1)
            raise
        return _fail(message)


def _fail(message: str, code: int = 2) -> int:
    hosts.fail(message, code)
    log.last_words(message)
    return code


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        from tpullm import __version__

        print(__version__)
        return 0
    verb = argv[0]
    if verb not in VERBS:
        from tpullm.recipe import shipped

        if verb in shipped.recipes():
            raise UserError(f"{verb}: is a recipe, and a verb comes first, such as: tpullm run {verb}")
        nearest = difflib.get_close_matches(verb, VERBS, 1)
        raise UserError(f"{verb}: no such verb{f', did you mean {nearest[0]}?' if nearest else ''} (see tpullm --help)")
    from tpullm.recipe import add_recipe_arguments, open_run, owned, parse

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # `import` is a word of Python's, so its module is `import_`.
    module = importlib.import_module(f"tpullm.commands.{verb}{'_' * keyword.iskeyword(verb)}")
    if VERBS[verb].reads:
        return module.main(argv[1:])
    if VERBS[verb].shows and any(argument.split("=")[0] == VERBS[verb].shows for argument in argv):
        module.show_main(parse(_parser(verb, module.__doc__, module.add_show_arguments), argv[1:]))
    elif VERBS[verb].shared:
        parser = _parser(verb, module.__doc__, add_recipe_arguments)
        parser.epilog = joining.SHARE_HELP
        flags, arguments = joining.take_flags("share", argv[1:])
        recipe, run, _ = open_run(parser, arguments)
        share = joining.find_share(flags, os.environ)
        joining.introduce(share)
        with owned(run, recipe) if share.is_first else contextlib.nullcontext():
            module.main(recipe, run, share)
    elif VERBS[verb].recipe:
        own = getattr(module, "add_arguments", None)
        parser = _parser(verb, module.__doc__, add_recipe_arguments, *([own] if own else []))
        parser.epilog = joining.HELP if VERBS[verb].computes else None
        flags, arguments = joining.take_flags("hosts", argv[1:]) if VERBS[verb].computes else ({}, argv[1:])
        recipe, run, arguments = open_run(parser, arguments)
        if VERBS[verb].computes:
            joining.join(joining.find_place(flags, os.environ))
            # The run directory is one folder, and may be mounted in different places.
            hosts.agree("the recipe", dataclasses.asdict(recipe) | {"run": None})
        with owned(run, recipe) if VERBS[verb].writes and hosts.is_first() else contextlib.nullcontext():
            code = module.main(recipe, run, *([arguments] if own else [])) or 0
        joining.leave()
        return code
    else:
        return module.main(parse(_parser(verb, module.__doc__, module.add_arguments), argv[1:])) or 0
    return 0


def _overview() -> str:
    lines = [
        "tpullm: raw text to a tuned, evaluated language model, on a laptop, a GPU or a TPU pod.",
        "",
        "usage: tpullm VERB [options]      tpullm VERB --help shows a verb's options",
        "",
        *(f"  {name:<10} {verb.help}" for name, verb in VERBS.items()),
        "",
        "To begin: tpullm run quickstart",
        "then:     tpullm chat --model runs/quickstart",
        "          tpullm blank '今日はとても【?】天気ですね。' --model runs/quickstart",
    ]
    return "\n".join(lines)


def _parser(verb: str, description: str, *adds):
    import jsonargparse

    parser = jsonargparse.ArgumentParser(prog=f"tpullm {verb}", description=description, exit_on_error=False)
    for add in adds:
        add(parser)
    return parser
