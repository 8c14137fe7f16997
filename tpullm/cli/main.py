"""The command line: `tpullm VERB ...`. Only the chosen verb's module is imported."""

import contextlib
import dataclasses
import difflib
import gc
import importlib
import itertools
import os
import signal
import sys
import threading
import traceback
import warnings
from typing import Any

from tpullm.cli.verb_table import GROUPS, VERBS, module_of
from tpullm.system import language, log, storage
from tpullm.system.cluster import hosts, place
from tpullm.system.errors import Interrupted, UserError, correctable
from tpullm.system.language import spoken
from tpullm.system.process import environment

HELP = ("-h", "--help", "--help-all")
LANGUAGE_HELP = "the language of the terminal; default: that of the environment (LANG)"


def entry() -> int:
    """The program `tpullm`: set up the process for the verb, then `main`; returns the exit code."""
    verb = VERBS.get(sys.argv[1] if len(sys.argv) > 1 else "")
    if verb and verb.computes:
        environment.prepare()
    elif verb and not verb.reads:  # `launch` does not compute, and passes its variables to other machines
        environment.set_variables()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: removes half-written files
    sys.unraisablehook = _unraisable
    for stream in filter(None, (sys.stdout, sys.stderr)):  # question marks where a terminal can't show Japanese
        stream.reconfigure(errors="replace")
    code = main()
    if code:
        # After the one line, other threads (a checkpoint in flight, for example) may fail of the same cause. What they
        # print, in Python or C++, is dropped.
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    gc.freeze()  # or Python looks for cycles among a million objects before it ends: 0.4 s where JAX is imported
    return code


def _unraisable(raised) -> None:
    """What nothing can catch. Ctrl-C in a callback of the garbage collector (JAX has one) is lost; it comes again.

    A save that fails ends Orbax's event loop. TensorStore then can't report the other files of it to that loop, and
    each would be a traceback before the one line.
    """
    if isinstance(raised.exc_value, KeyboardInterrupt):
        again = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True  # the command may end meanwhile
        again.start()
    elif str(raised.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(raised)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code: 0 or the verb's own, 2 for a user error, 75 to try again, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    language.choose(_asked_language(argv))
    try:
        return _dispatch_verb(argv)
    except UserError as error:
        return _fail(str(error), error.code)
    except Interrupted as error:
        return _fail(str(error), code=130)
    except KeyboardInterrupt:
        return _fail("interrupted; finished work is kept, and the same command resumes", code=130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = correctable(error)
        if message is None:
            hosts.wait_for_cause(error)
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


def _dispatch_verb(argv: list[str]) -> int:
    if not argv or argv[0] in HELP or argv == ["help"]:
        print(spoken("tpullm: raw text to a tuned, evaluated language model."), end="\n\n")
        print(spoken("usage: tpullm VERB [options]      tpullm VERB --help explains a verb"))
        for title, verbs in GROUPS.items():
            print(f"\n{spoken(title)}:", *(f"  {verb:<10} {spoken(VERBS[verb].help)}" for verb in verbs), sep="\n")
        print(f"\n{spoken('To begin:')}\n  tpullm run quickstart\n  tpullm chat runs/quickstart")
        print("  tpullm blank runs/quickstart '今日はとても【?】天気ですね。'")
        return 0
    if argv[0] == "--version":
        from tpullm import __version__

        print(__version__)
        return 0
    if asked := _asks_for_help(argv):
        print(importlib.import_module("tpullm.cli.help").help_text(*asked))
        return 0
    verb = _known_verb(argv[0])
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    module, about = importlib.import_module(module_of(verb)), VERBS[verb]
    if about.reads:
        return module.main(argv[1:])
    shows = bool(about.shows) and any(word.split("=")[0] == about.shows for word in argv)
    return _run_on_hosts(verb, module, argv[1:], shows)


def _run_on_hosts(verb: str, module: Any, words: list[str], shows: bool) -> int:
    """Run a verb on all hosts if several can run it together. One that does not compute runs in this process alone.

    Args:
        shows: in its other form (`Verb.shows`), which takes no recipe.
    """
    from tpullm.formats import hub
    from tpullm.recipe.parsing import parse
    from tpullm.run.directory import open_run, owned

    about, parser = VERBS[verb], parser_of(verb, shows)
    takes_recipe = about.recipe and not shows
    on_hosts = about.computes and (takes_recipe or about.joins or shows)
    flags, words = place.take_flags(words) if on_hosts else ({}, words)
    recipe, run, options = open_run(parser, words) if takes_recipe else (None, None, parse(parser, words))
    if recipe and recipe.language:
        language.choose(recipe.language)
    if recipe and recipe.base:
        is_made = (run / "base").is_dir()  # and needs no download
        with contextlib.suppress(UserError) if is_made else contextlib.nullcontext():
            recipe = dataclasses.replace(recipe, base=hub.located(recipe.base))
    for name in _names_of_models(verb, parser):
        given, command = getattr(options, name), [verb, *words]
        if isinstance(given, list):
            setattr(options, name, [hub.located(word, options.download, command) for word in given])
        elif given:
            setattr(options, name, hub.located(given, options.download, command))
    if on_hosts:
        hosts.join(place.find(flags, os.environ))
    if takes_recipe and about.writes and recipe.text and hosts.is_first():
        log.say(f"{verb}: with {recipe.text}, in {run}")
    if not takes_recipe:
        code = (module.show_main if shows else module.main)(options)
    else:
        if on_hosts:
            # Without the run directory: all hosts share it, and may mount it in different places.
            hosts.agree("the recipe", dataclasses.asdict(recipe) | {"run": None})
        with owned(run, recipe) if about.writes and hosts.is_first() else contextlib.nullcontext():
            code = module.main(recipe, run, options) if about.options else module.main(recipe, run)
    hosts.leave()
    return code or 0


def _asked_language(argv: list[str]) -> str:
    """The value of `--language`, wherever it is: an error before it is read is in that language too."""
    for name in language.NAMES:
        if f"--language={name}" in argv or ("--language", name) in itertools.pairwise(argv):
            return name
    return ""


def _known_verb(verb: str) -> str:
    """The verb, if it is one; `UserError` names the nearest."""
    from tpullm.recipe import shipped

    if verb in VERBS:
        return verb
    if verb in shipped.recipes():
        raise UserError(f"{verb}: is a recipe, and a verb comes first, such as: tpullm run {verb}")
    if verb.startswith("-") or os.path.exists(verb):
        raise UserError(f"{verb}: a verb comes first, such as: tpullm chat runs/quickstart (tpullm --help lists them)")
    nearest = difflib.get_close_matches(verb, VERBS, 1)
    raise UserError(f"{verb}: no such verb{f', did you mean {nearest[0]}?' if nearest else ''} (see tpullm --help)")


def parser_of(verb: str, shows: bool = False):
    """The parser of the options that a verb has beside the keys of its recipe.

    Args:
        shows: for the verb's other form (`Verb.shows`), which takes no recipe.
    """
    from tpullm.recipe.parsing import Parser

    parser = Parser(f"tpullm {verb}")
    if VERBS[verb].adds and shows == bool(VERBS[verb].shows):
        getattr(importlib.import_module(module_of(verb)), VERBS[verb].adds)(parser)
    if shows or not VERBS[verb].recipe:  # of a recipe it is a key
        parser.add_argument("--language", choices=language.NAMES, help=LANGUAGE_HELP)
    if _names_of_models(verb, parser):
        about = "download a MODEL that is named as on the Hugging Face hub, such as Qwen/Qwen3-0.6B, into ./models"
        parser.add_argument("--download", action="store_true", help=about)
    return parser


def _names_of_models(verb: str, parser: Any) -> list[str]:
    """The options of a verb that name a MODEL."""
    names = ("folder",) if verb == "import" else ("model", "models", "draft")
    return [action.dest for action in parser._actions if action.dest in names]


def _asks_for_help(argv: list[str]) -> tuple[str, bool] | None:
    """The verb whose help is asked for, and whether in full. After the `--` of a launch it is the launched verb."""
    if argv[0] == "help":
        return _known_verb(argv[1]), False
    end = argv.index("--") if "--" in argv else len(argv)
    for words in (argv[:end], argv[end + 1 :]):
        if words and any(word in HELP for word in words):
            return _known_verb(words[0]), "--help-all" in words
    return None
