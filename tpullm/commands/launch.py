"""Run a verb on several processes here, or on machines in the cloud.

Everything after -- is the verb's own command line. ACTION is start (the default), status, logs or stop; give the same
line with another ACTION to look after a launch.
"""

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tpullm import storage
from tpullm.errors import UserError
from tpullm.launchers import code, job, settings, show, watch
from tpullm.launchers.job import Job
from tpullm.launchers.record import Over, State
from tpullm.launchers.settings import LaunchConfig
from tpullm.launchers.target import Target
from tpullm.log import say
from tpullm.recipe.parsing import parse

# The module of each target in `launchers`.
CLOUD = {"tpu-vm": "tpu_vm", "compute": "compute", "batch": "google_batch"}
COLOURS = (36, 33, 35, 32, 34, 31)  # of a terminal's text
ACTIONS = ("start", "status", "logs", "stop")
TARGETS = ("local", *CLOUD)
FLAGS = ("--watch", "--follow", "--dry-run")  # options without a value


def main(argv: list[str]) -> int:
    """Launch, or look after what was launched; the exit code."""
    own, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    arguments = parse(_parser(), _action_beside_target(own), LaunchConfig)
    work = job.make(arguments.target, settings.from_arguments(arguments), command)
    if arguments.target == "local":
        return _local(work, arguments)
    target = importlib.import_module(f"tpullm.launchers.{CLOUD[arguments.target]}")
    target.check(work)
    if arguments.dry_run:
        print(show.dry_run(work, target), end="")
        return 0
    return {"start": _start, "status": _status, "logs": _logs, "stop": _stop}[arguments.action](work, target, arguments)


def _action_beside_target(words: list[str]) -> list[str]:
    """The words with the action right behind the target; argparse of Python 3.11 finds it nowhere else."""

    def stands_alone(place: int) -> bool:
        before = words[place - 1] if place else ""
        return not before.startswith("--") or "=" in before or before in FLAGS

    target = next((place for place, word in enumerate(words) if word in TARGETS and stands_alone(place)), None)
    action = next((place for place, word in enumerate(words) if word in ACTIONS and stands_alone(place)), None)
    if target is None or action is None or action < target:
        return words
    return [*words[: target + 1], words[action], *words[target + 1 : action], *words[action + 1 :]]


def add_arguments(parser) -> None:
    """The options of `tpullm launch`; the keys of `LaunchConfig` come on top."""
    parser.add_argument("target", choices=TARGETS, help="where the verb runs: local, tpu-vm, compute or batch")
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="start", help="start, status, logs or stop")
    parser.add_argument("--watch", action="store_true", help="stay until the verb is finished; replace lost machines")
    parser.add_argument("--follow", action="store_true", help="with logs: print new lines as they come")
    parser.add_argument("--dry-run", action="store_true", help="print all that would be sent, and send nothing")


def _parser():
    import jsonargparse

    parser = jsonargparse.ArgumentParser(prog="tpullm launch", exit_on_error=False, add_help=False, allow_abbrev=False)
    add_arguments(parser)
    settings.add_arguments(parser)
    return parser


def _local(work: Job, arguments: Any) -> int:
    from tpullm.launchers import local

    if arguments.action != "start":
        raise UserError(f"{arguments.action}: a local launch is over when its command is; there is nothing to ask")
    local.check(work)
    if arguments.dry_run:
        print(local.dry_run(work), end="")
        return 0
    return local.run(work, _printer())


def _printer() -> Callable[[int, str], None]:
    """Prints a process's lines, each whole and with its number; in colour on a terminal."""
    printing = threading.Lock()

    def show_line(index: int, line: str) -> None:
        mark = f"[{index}]"
        if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
            mark = f"\033[{COLOURS[index % len(COLOURS)]}m{mark}\033[0m"
        with printing:
            print(f"{mark} {line}", flush=True)

    return show_line


def _start(work: Job, target: Target, arguments: Any) -> int:
    """Put the code and the job's sheet in their places, then see that an attempt is there, or stay with it."""
    storage.check_writable(storage.path(work.run))
    watch.owned(work, watch.patiently(lambda: target.observe(work)))
    _put(work)
    state = State(work.folder)
    last = next(reversed(state.attempts()), None)
    if last and last.over is None and last.sheet != work.sheet_path:
        raise UserError(f"{work.name}: is running with other settings; wait for it, or stop it first")
    if last and last.over and not last.over.again:
        if last.over.code == 0 and last.sheet == work.sheet_path:
            say(f"{work.name}: finished in attempt {last.number}")
        else:
            watch.patiently(lambda: watch.ask(work, target, state, last.number + 1))
    if arguments.watch:
        return watch.follow(work, target)
    if watch.begin(work, target, state):
        say(show.what_now(work))
    return 0


def _put(work: Job) -> None:
    """The code and the sheet; both are named by their content, so what is there is right."""
    wheel = storage.path(work.wheel)
    if not wheel.exists():
        with storage.atomic_file(wheel) as temporary:
            temporary.write_bytes(code.wheel().content)
    storage.write_json(storage.path(work.sheet_path), work.sheet())


def _status(work: Job, target: Target, arguments: Any) -> int:
    resources = watch.patiently(lambda: target.observe(work))
    print(show.status(work, State(work.folder).attempts(), resources), end="")
    return 0


def _logs(work: Job, target: Target, arguments: Any) -> int:
    printed = False
    for line in show.logs(State(work.folder), arguments.follow):
        print(line, flush=True)
        printed = True
    if not printed:
        say(f"{work.name}: no host has sent a line; `status` says what there is")
    return 0


def _stop(work: Job, target: Target, arguments: Any) -> int:
    """Remove all machines; the run directory stays."""
    state = State(work.folder)
    last = next(reversed(state.attempts()), None)
    if last and (last.over is None or last.over.again):
        state.judge(last.number, Over(False, 130, "stopped", time.time()))
    said = set()
    while resources := watch.owned(work, watch.patiently(lambda: target.observe(work))):
        for resource in resources:
            if resource.name not in said:
                say(f"{work.name}: removing {resource.name}")
            said.add(resource.name)
            watch.patiently(lambda resource=resource: target.delete(work, resource))
        time.sleep(watch.Pace().poll)
    say(f"{work.name}: stopped; nothing is left that costs, and {work.run} is as it was")
    return 0
