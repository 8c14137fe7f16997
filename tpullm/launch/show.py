"""What a launch prints: a dry run as YAML, the state of its machines, the hosts' logs."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from tpullm.hardware import machines
from tpullm.hardware.chips import PRICES_DATE
from tpullm.launch import code
from tpullm.launch.job import Job, LaunchConfig
from tpullm.launch.record import Attempt, Record
from tpullm.launch.watch import Resource, Target
from tpullm.run import hours
from tpullm.system import storage
from tpullm.system.language import spoken

SECONDS_BETWEEN_LOOKS = 5.0
ATTEMPTS_SHOWN = 5


def dry_run(job: Job, target: Target) -> str:
    """All files and requests of a launch's first attempt, as YAML."""
    files = [{"path": job.wheel, "bytes": len(code.wheel().content)}, {"path": job.spec_path, "content": job.spec()}]
    requests = [request.rest() for request in target.requests(job, 1)]
    head = f"What `tpullm launch {job.target}` would put and send; nothing was."
    return comment(head, *terms(job)) + as_yaml({"name": job.name, "files": files, "requests": requests})


def comment(*lines: str) -> str:
    """Lines above the YAML of a dry run, in the language that is spoken."""
    return "".join(f"# {spoken(line)}\n" for line in lines)


def terms(job: Job) -> list[str]:
    """What the machines may do and cost, in lines: their account, the end of their hours, network cards left unused."""
    config, account, dollars = job.config, job.config.service_account, job.dollars_an_hour
    scopes = ", ".join(scope.rpartition("/")[2] for scope in job.scopes)
    instead = "give your own by --service_account; docs/en/google-cloud.md makes one"
    default = f"the project's default service account, which may change much more than the bucket ({instead})"
    lines = [
        f"Machines run as {account or default}, with the scopes {scopes}.",
        f"A machine ends after {config.max_hours:g} hours at the latest (max_hours). {most(config, dollars)}",
    ]
    if config.machine and config.nodes > 1 and (cards := job.machine.cards):
        lines.append(
            f"The GPUs of different machines talk over one network card a machine. {config.machine} has {cards} more, "
            "which Google's clusters of Slurm use."
        )
    return lines


def most(config: LaunchConfig, dollars: float | None) -> str:
    """What the machines can cost, at so much an hour; None is not known."""
    if dollars is None:
        return f"What they cost is not known: {config.machine or config.accelerator} has no list price on demand."
    return (
        f"All of an attempt together cost at most {dollars * config.max_hours:,.2f} $ until then "
        f"({dollars:,.2f} $/h, the list price on demand)."
    )


def as_yaml(value: Any) -> str:
    """YAML in the order of the keys. Texts of several lines keep their lines; commands stay in one line, to copy."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(value, Dumper=Dumper, allow_unicode=True, sort_keys=False, width=1 << 20)


def what_now(job: Job) -> str:
    """The line after a launch."""
    return (
        f"{job.name}: launched; the same command with --watch replaces lost machines and removes them at the end. "
        f"After {job.target}, `status` and `logs` show how it goes, `stop` removes all"
    )


def status(job: Job, attempts: Sequence[Attempt], resources: Sequence[Resource]) -> str:
    """The last attempts, the resources that exist, and their cost."""
    count = f"{len(attempts)} attempt(s)" if attempts else "not launched yet"
    lines = [f"{job.name}: {count}; run directory {job.run}"]
    for each in attempts[-ATTEMPTS_SHOWN:]:
        done = f"the verb was started {each.starts} time(s), {len(each.exits)} host(s) have finished"
        done = done if each.starts else "no host has started the verb yet"
        lines.append(f"  attempt {each.number}: {each.outcome.reason if each.outcome else done}")
    for resource in resources:
        cost = "unknown cost" if resource.dollars_an_hour is None else f"{resource.dollars_an_hour:.2f} $/h"
        reason = f" ({resource.reason})" if resource.reason else ""
        lines.append(f"  {resource.name}: {resource.state.value}{reason}, {cost}")
    total = sum(resource.dollars_an_hour or 0 for resource in resources)
    of_chips = f"list prices on demand of {PRICES_DATE}, cloud.google.com/tpu/pricing; spot costs less"
    source = machines.PRICES if job.config.machine else of_chips
    lines.append(f"  now {total:.2f} $/h ({source})" if resources else "  nothing is left that costs")
    return "\n".join(lines) + "\n"


def trainings(job: Job) -> str:
    """Of each training in the run directory, its step and where its hours went."""
    lines = []
    for stage in job.recipe.trained:
        if spent := hours.read(storage.path(job.run) / stage / hours.FILE):
            plan = storage.path(job.run) / stage / "plan.json"
            run = storage.read_json(plan).get("run") if plan.exists() else None
            lines.append(f"  {stage}: step {spent[-1]['step']:,}, {hours.goodput_in_words(spent, run)}\n")
    return "".join(lines)


def logs(record: Record, follow: bool) -> Iterator[str]:
    """The lines of the last attempt, each with its host. With `follow`, also new lines until the attempt is final."""
    printed: dict[str, int] = {}
    while True:
        attempts = record.attempts()
        if attempts:
            yield from _unprinted_log_lines(record, attempts[-1].number, printed)
        if not follow or (attempts and attempts[-1].outcome and not attempts[-1].outcome.retry):
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _unprinted_log_lines(record: Record, number: int, printed: dict[str, int]) -> Iterator[str]:
    """The lines that were not printed yet; `printed` counts the characters of each piece."""
    for name in record.logs(number):
        key = f"{number}/{name}"
        text = (record.attempt_folder(number) / "logs" / name).read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        for line in whole[printed.get(key, 0) :].splitlines():
            yield f"[{int(name.split('.')[0])}] {line}"
        printed[key] = len(whole)
