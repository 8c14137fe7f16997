"""Run a verb on several processes here, on a Slurm cluster, or on machines in the cloud.

Everything after -- is the verb's own command line. ACTION is start (the default), status, logs or stop. Repeat the
command with another ACTION to look after a launch.
"""

import importlib
import os
import subprocess
import sys
import threading
import time
from typing import Any

from tpullm.cli.verb_table import VERBS
from tpullm.launch import code, show, watch
from tpullm.launch import job as jobs
from tpullm.launch.job import Job, LaunchConfig
from tpullm.launch.record import Outcome, Record, clock
from tpullm.launch.watch import Target
from tpullm.recipe.parsing import Parser, settings_of
from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.language import spoken
from tpullm.system.log import say

# Module of each target in `tpullm.launch`.
CLOUD = {"tpu-vm": "tpu_vm", "batch": "google_batch"}
NOT_WATCHED = {  # what starts again what fails there
    "slurm": "watch: Slurm queues a job again whose node was lost; leave --watch out",
    "gke": "watch: JobSet restarts what fails; leave --watch out",
}
COLOURS = (36, 33, 35, 32, 34, 31)  # ANSI codes, one a process
ACTIONS = ("start", "status", "logs", "stop")
TARGETS = ("local", "slurm", "gke", *CLOUD)
FLAGS = ("--watch", "--follow", "--dry-run")  # options without a value


def main(argv: list[str]) -> int:
    """Start a launch or look after it; the exit code."""
    own, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    if len(argv) > 1 and argv[1] in VERBS:  # behind the target
        raise UserError(f"launch: a verb stands after --, such as: {argv[0]} -- {' '.join(argv[1:])}")
    config, arguments = settings_of(_launch_parser(), _action_beside_target(own), LaunchConfig)
    job = jobs.make(arguments.target, config, command)
    if look_after := {"local": _local, "slurm": _slurm, "gke": _gke}.get(arguments.target):
        target = importlib.import_module(f"tpullm.launch.{arguments.target}")
        if arguments.watch and arguments.target in NOT_WATCHED:
            raise UserError(NOT_WATCHED[arguments.target])
        target.check(job)
        if arguments.dry_run:
            print(target.dry_run(job), end="")
            return 0
        return look_after(job, arguments)
    target = importlib.import_module(f"tpullm.launch.{CLOUD[arguments.target]}")
    target.check(job)
    if arguments.dry_run:
        print(show.dry_run(job, target), end="")
        return 0
    actions = {"start": _start_launch, "status": _show_status, "logs": _show_logs, "stop": _stop_launch}
    return actions[arguments.action](job, target, arguments)


def _action_beside_target(words: list[str]) -> list[str]:
    """The words with the action right behind the target: argparse of Python 3.11 finds it only there."""

    def stands_alone(place: int) -> bool:
        before = words[place - 1] if place else ""
        return not before.startswith("--") or "=" in before or before in FLAGS

    target = next((place for place, word in enumerate(words) if word in TARGETS and stands_alone(place)), None)
    action = next((place for place, word in enumerate(words) if word in ACTIONS and stands_alone(place)), None)
    if target is None or action is None or action < target:
        return words
    return [*words[: target + 1], words[action], *words[target + 1 : action], *words[action + 1 :]]


def add_arguments(parser) -> None:
    """The options of `tpullm launch` beside the keys of `LaunchConfig`."""
    parser.add_argument("target", choices=TARGETS, help="where the verb runs: local, slurm, gke, tpu-vm or batch")
    about = "start, status, logs or stop"
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="start", help=about)
    parser.add_argument("--watch", action="store_true", help="stay until the verb is finished; replace lost machines")
    parser.add_argument("--follow", action="store_true", help="with logs: print new lines as they come")
    parser.add_argument("--dry-run", action="store_true", help="print all that would be sent, and send nothing")


def _launch_parser():
    parser = Parser("tpullm launch")
    add_arguments(parser)
    return parser


def _local(job: Job, arguments: Any) -> int:
    from tpullm.launch import local

    if arguments.action != "start":
        raise UserError(f"{arguments.action}: a local launch is over when its command is; there is nothing to ask")
    printing = threading.Lock()

    def show_line(index: int, line: str) -> None:  # whole, with the number of its process
        mark = f"[{index}]"
        if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
            mark = f"\033[{COLOURS[index % len(COLOURS)]}m{mark}\033[0m"
        with printing:
            print(f"{mark} {line}", flush=True)

    return local.run(job, show_line)


def _slurm(job: Job, arguments: Any) -> int:
    from tpullm.launch import slurm

    if arguments.action == "start":
        say(f"{job.name}: job {slurm.submit(job)}; `status`, `logs` and `stop` after slurm look after it")
    elif arguments.action == "status":
        print(slurm.status(job), end="")
    elif arguments.action == "stop":
        slurm.stop(job)
        say(f"{job.name}: stopped; {job.run} is as it was")
    elif file := slurm.newest_log(job):
        return subprocess.call(["tail", "-n", "+1", *(["-F"] if arguments.follow else []), str(file)])
    else:
        say(f"{job.name}: no job has written a line; `status` says whether one waits")
    return 0


def _gke(job: Job, arguments: Any) -> int:
    from tpullm.launch import gke_client

    cluster = gke_client.Cluster(job)
    if arguments.action == "logs":
        line = None
        for line in cluster.logs(arguments.follow):
            print(line, flush=True)
        if line is None:
            say(f"{job.name}: no host has sent a line; `status` says what there is")
    elif arguments.action == "status":
        print(cluster.status(), end="")
    elif arguments.action == "stop":
        cluster.delete()
        say(f"{job.name}: stopped; {job.run} is as it was")
    else:
        storage.check_writable(storage.path(job.run))
        upload_launch(job)
        cluster.apply()
        say(f"{job.name}: launched; `status`, `logs` and `stop` after gke look after it")
    return 0


def _start_launch(job: Job, target: Target, arguments: Any) -> int:
    """Upload the code and the specification, and start an attempt if none is open. With --watch, follow it."""
    storage.check_writable(storage.path(job.run))
    watch.check_owner(job, watch.with_retries(lambda: target.observe(job)))
    upload_launch(job)
    record = Record(job.folder)
    last = next(reversed(record.attempts()), None)
    if last and last.outcome is None and last.spec != job.spec_path:
        raise UserError(f"{job.name}: is running with other settings; wait for it, or stop it first")
    if last and last.outcome and not last.outcome.retry:
        if last.outcome.code == 0 and last.spec == job.spec_path:
            say(f"{job.name}: finished in attempt {last.number}")
        else:
            watch.with_retries(lambda: watch.start_attempt(job, target, record, last.number + 1))
    for line in show.terms(job):
        say(f"{job.name}: {line}")
    if watch.follow(job, target, stay=arguments.watch):
        say(show.what_now(job))
    return 0


def upload_launch(job: Job) -> None:
    """Write the wheel and the specification into the run directory. A file's name is the hash of its content."""
    for name in code.left_out():
        say(f"code: {name} is not tracked by git, so machines do not get it; `git add` it if they need it")
    wheel = storage.path(job.wheel)
    if not wheel.exists():
        with storage.atomic_file(wheel) as temporary:
            temporary.write_bytes(code.wheel().content)
    storage.write_json(storage.path(job.spec_path), job.spec())


def _show_status(job: Job, target: Target, arguments: Any) -> int:
    resources = watch.with_retries(lambda: target.observe(job))
    told = show.status(job, Record(job.folder).attempts(), resources) + show.trainings(job)
    print(*map(spoken, told.split("\n")), sep="\n", end="")
    return 0


def _show_logs(job: Job, target: Target, arguments: Any) -> int:
    printed = False
    for line in show.logs(Record(job.folder), arguments.follow):
        print(line, flush=True)
        printed = True
    if not printed:
        say(f"{job.name}: no host has sent a line; `status` says what there is")
    return 0


def _stop_launch(job: Job, target: Target, arguments: Any) -> int:
    """Delete all resources; the run directory stays."""
    record = Record(job.folder)
    last = next(reversed(record.attempts()), None)
    if last and (last.outcome is None or last.outcome.retry):
        record.conclude(last.number, Outcome(False, 130, "stopped", clock()))
    said = set()
    while resources := watch.check_owner(job, watch.with_retries(lambda: target.observe(job))):
        for resource in resources:
            if resource.name not in said:
                say(f"{job.name}: deleting {resource.name}")
            said.add(resource.name)
            watch.with_retries(lambda resource=resource: target.delete(job, resource))
        time.sleep(watch.Pace().poll)
    say(f"{job.name}: stopped; nothing is left that costs, and {job.run} is as it was")
    return 0
