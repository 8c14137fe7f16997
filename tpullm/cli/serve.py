"""Answer requests over HTTP, as OpenAI's API does: completions and chat, for any of its clients.

MODEL and each adapter is a model of the name of its folder. Ctrl-C ends the server. With several hosts, host 0 answers.
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial

from tpullm.cli.options import add_adapters, add_model, add_reproducible, add_weights, check_at_least_one
from tpullm.run import manifest
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import Interrupted, UserError
from tpullm.system.log import say

KEY = "TPULLM_SERVE_KEY"
LONGEST = 8192  # tokens: a context of 131,072 would take 48 GB of an 8 B model's keys and values before anybody asks


def add_arguments(parser) -> None:
    """The options of `tpullm serve`."""
    add_model(parser)
    add_adapters(parser)
    add_weights(parser)
    about = "the address to listen on; 0.0.0.0: all of this machine, which needs a key"
    parser.add_argument("--host", type=str, default="127.0.0.1", help=about)
    parser.add_argument("--port", type=int, default=8000, help="the port; 0: any that is free")
    about = f"what clients must show as their API key; better in {KEY}, as everybody here sees the options"
    parser.add_argument("--key", type=str, default="", help=about)
    parser.add_argument("--open", action="store_true", help="allow a network to ask without a key")
    about = f"tokens of the longest conversation; 0: the model's context, or {LONGEST:,} if that is less"
    parser.add_argument("--longest", type=int, default=0, help=about)
    about = "what guesses tokens ahead, to save time: a smaller MODEL, or none; default: the text so far"
    parser.add_argument("--draft", type=str, default="", metavar="MODEL", help=about)
    about = "serve the model before its tuning too: auto does if it is small; the page shows both side by side"
    parser.add_argument("--base", choices=("auto", "yes", "no"), default="auto", help=about)
    add_reproducible(parser)
    parser.add_argument("--queue", type=int, default=128, help="how many requests may wait; more are told to try later")


def main(arguments) -> None:
    """Load the models, listen, and answer until Ctrl-C or SIGTERM."""
    key = arguments.key or os.environ.get(KEY, "")
    where = "--key" if arguments.key else KEY
    if key and (not key.isascii() or not key.isprintable() or " " in key):
        raise UserError(f"{where}: has characters that no HTTP header can hold; use letters, digits and signs of ASCII")
    if key and len(key) < 8:
        raise UserError(f"{where}: has {len(key)} characters, which can be guessed; use 8 or more")
    check_at_least_one(arguments, "queue")
    if arguments.longest < 0:
        raise UserError(f"--longest: {arguments.longest} is below 0; use a number of tokens, or 0")
    if arguments.reproducible and arguments.draft not in ("", "none"):
        raise UserError("--draft: a server that is --reproducible guesses nothing; leave one of them out")
    if not 0 <= arguments.port < 1 << 16:
        raise UserError(f"--port: {arguments.port} is not from 0 to 65535; use such a number")
    options = {"longest": arguments.longest, "adapters": len(arguments.adapter), "weights": arguments.weights}
    options |= {"base": arguments.base}
    hosts.agree("the options", options | {"draft": arguments.draft, "reproducible": arguments.reproducible})
    from tpullm.serving import listening

    listener = listening.bound_socket(arguments.host, arguments.port) if hosts.is_first() else None
    with listener or contextlib.nullcontext():
        if listener and not (listening.is_local_listener(listener) or key or arguments.open):
            where = f"--host {arguments.host}"
            raise UserError(f"{where}: others on the network could ask this server; give a key in {KEY}, or --open")
        models, steps = _load_models(arguments)
        # The main thread steps the engines, so Ctrl-C reaches it between two steps; another one answers requests.
        try:
            with _answering_service(arguments, key, listener, models, steps) if listener else contextlib.nullcontext():
                steps.compile()
                say("serve: ready")
                steps.run()
        except KeyboardInterrupt:
            raise Interrupted("serve: stopped; answers that were not whole ended with an error") from None


def _load_models(arguments):
    """The models by name, and what steps their engines, on all hosts."""
    from tpullm.engine import needed_memory, session
    from tpullm.engine.engine import Engine
    from tpullm.evaluation.scoring import attention_weights
    from tpullm.serving import answered_questions, served_model, stepping

    found = session.find_model(arguments.model, weights=arguments.weights or "")
    paths = [arguments.model, *arguments.adapter]
    longest = min(arguments.longest or LONGEST, found.config.context_length)
    if arguments.longest > longest:
        raise UserError(f"--longest: {arguments.longest:,} tokens, and the model's context holds {longest:,}; lower it")
    base, base_name = _base_of(found, arguments, longest, len(paths))
    needed_memory.check_memory(found, longest, len(paths), base)
    loaded = session.session_of(found, exact=False)
    sessions = [loaded, *(session.with_adapter(loaded, adapter) for adapter in arguments.adapter)]
    names = served_model.served_names(paths)
    bases = [base_name, *[names[0]] * len(arguments.adapter)]
    guesses = [_draft_guesses(arguments.draft, loaded)] * len(names)
    if base:
        sessions, names, bases = [*sessions, session.session_of(base, exact=False)], [*names, base_name], [*bases, ""]
        guesses.append(_draft_guesses("none" if arguments.draft == "none" else "", None))
    made = manifest.of_model(found.model.run, found.model.stage, found.model.step) if found.model else {}
    identity = storage.hash_json([made, *map(os.path.abspath, paths)])[:32]
    known = answered_questions.answered_questions(found.model) if found.model else []
    models, engines = {}, {}
    for number, (name, one) in enumerate(zip(names, sessions, strict=True)):
        most = min(longest, one.context_length)
        questions = () if number else known
        attention = None if hosts.connection() else partial(attention_weights, one)
        models[name] = served_model.ServedModel(name, one, most, bases[number], questions, identity, attention)
        engines[name] = Engine(one, longest=most, guesses=guesses[number](), reproducible=arguments.reproducible)
    gigabytes = sum(engine.memory_bytes() for engine in engines.values()) / 2**30
    say(f"serve: texts of up to {longest:,} tokens; keys and values take {gigabytes:,.2f} GiB")
    if arguments.weights:
        what = f"matrices are in {arguments.weights}, and all parameters take {loaded.memory_bytes() / 2**30:,.2f} GiB"
        say(f"serve: {what}; `tpullm compare {arguments.model} --weights {arguments.weights}` says what that costs")
    if channel := hosts.connection():
        engines = {name: stepping.OnAllHosts(engine, models[name], channel) for name, engine in engines.items()}
        hosts.barrier("the engines")
    return models, stepping.Stepping(engines)


def _base_of(found, arguments, longest: int, models: int):
    """The model that the stage of tuning `found` began with, if it is served too, and its name; else None and ""."""
    if arguments.base == "no" or not found.model:
        return None, ""
    from tpullm.engine import needed_memory, session
    from tpullm.formats import models as made

    if found.model.stage in made.FOUNDATIONS:
        return None, ""
    try:
        base = session.find_model(found.model.run, tuned=False, weights=arguments.weights or "")
    except UserError:
        if arguments.base == "yes":
            raise
        return None, ""
    name = f"{storage.path(found.model.run).name}/{base.model.stage}"
    if arguments.base == "yes":
        return base, name
    if hosts.broadcast("the base", lambda: needed_memory.is_small_beside(base, found, longest, models)):
        return base, name
    say(f"serve: {name}, the model before tuning, is left out, since it takes much memory; --base yes serves it too")
    return None, ""


@contextlib.contextmanager
def _answering_service(arguments, key: str, listener, models, steps):
    """Inside, requests are answered."""
    from tpullm.serving import application, listening

    is_open = listening.is_local_listener(listener) and not key
    names = {"localhost", "127.0.0.1", "::1", arguments.host.lower()} if is_open else ()
    service = application.Service(models, steps, arguments.queue, key, frozenset(names))
    server = listening.Listening(application.application(service), listener)
    address = listener.getsockname()
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    say(f"serve: {', '.join(models)} at http://{host}:{address[1]}/v1; the programs are being compiled")
    server.start()
    try:
        yield
    finally:
        server.stop(service.stop)


def _draft_guesses(draft: str, model) -> Callable:
    """What makes the guesses of an engine."""
    from tpullm.engine import guesses, session

    if draft == "none":
        return lambda: None
    if not draft:
        return guesses.Lookup
    small = session.load_session(draft, exact=False)
    guesses.check_draft(small, model, draft)
    return lambda: guesses.Draft(small)
