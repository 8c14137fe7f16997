"""What a launch says: a dry run as YAML, the state of its machines, the hosts' logs."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from tpullm.hardware import machines
from tpullm.hardware.chips import PRICES_DATE
from tpullm.launchers import code
from tpullm.launchers.job import Job
from tpullm.launchers.record import Attempt, State
from tpullm.launchers.target import Resource, Target

SECONDS_BETWEEN_LOOKS = 5.0


def dry_run(job: Job, target: Target) -> str:
    """All that a launch would put and send for its first attempt, as YAML."""
    wheel = code.wheel()
    files = [
        {"path": job.wheel, "bytes": len(wheel.content)},
        {"path": job.sheet_path, "content": job.sheet()},
    ]
    requests = [request.rest() for request in target.requests(job, 1)]
    head = f"# What `tpullm launch {job.target}` would put and send; nothing was.\n"
    return head + as_yaml({"name": job.name, "files": files, "requests": requests})


def as_yaml(value: Any) -> str:
    """YAML in the order of the keys, with texts of several lines as they are and commands in one line, to copy."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(value, Dumper=Dumper, allow_unicode=True, sort_keys=False, width=1 << 20)


def what_now(job: Job) -> str:
    """The line after a launch."""
    watched = "the same command with --watch replaces lost machines and removes them at the end"
    return (
        f"{job.name}: launched; {watched}. After {job.target}, `status` and `logs` show how it goes, `stop` removes all"
    )


def status(job: Job, attempts: Sequence[Attempt], resources: Sequence[Resource]) -> str:
    """The attempts, what is there, and what that costs."""
    asked = f"{len(attempts)} attempt(s)" if attempts else "not launched yet"
    lines = [f"{job.name}: {asked}; run directory {job.run}"]
    lines += [f"  attempt {attempt.number}: {_told(attempt)}" for attempt in attempts[-5:]]
    for resource in resources:
        costs = "unknown costs" if resource.dollars_an_hour is None else f"{resource.dollars_an_hour:.2f} $/h"
        lines.append(
            f"  {resource.name}: {resource.state.value}{f' ({resource.why})' if resource.why else ''}, {costs}"
        )
    total = sum(resource.dollars_an_hour or 0 for resource in resources)
    of_chips = f"list prices on demand of {PRICES_DATE}, cloud.google.com/tpu/pricing; spot costs less"
    source = machines.PRICES if job.config.machine else of_chips
    lines.append(f"  now {total:.2f} $/h ({source})" if resources else "  nothing is left that costs")
    return "\n".join(lines) + "\n"


def _told(attempt: Attempt) -> str:
    if attempt.over:
        return attempt.over.why
    if not attempt.starts:
        return "no host has started the verb yet"
    return f"the verb was started {attempt.starts} time(s), {len(attempt.ended)} host(s) have finished"


def logs(state: State, follow: bool) -> Iterator[str]:
    """The lines of the last attempt, each with its host; with `follow`, as they come, until the attempt is over."""
    printed: dict[str, int] = {}
    while True:
        attempts = state.attempts()
        if attempts:
            yield from _new_lines(state, attempts[-1].number, printed)
        if not follow or (attempts and attempts[-1].over and not attempts[-1].over.again):
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _new_lines(state: State, number: int, printed: dict[str, int]) -> Iterator[str]:
    for name in state.logs(number):
        key = f"{number}/{name}"
        text = (state.of(number) / "logs" / name).read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        for line in whole[printed.get(key, 0) :].splitlines():
            yield f"[{int(name.split('.')[0])}] {line}"
        printed[key] = len(whole)
