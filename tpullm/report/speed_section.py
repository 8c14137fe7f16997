"""The time of each stage, the machine, and the predicted time of a step."""

from tpullm.report.charts import share_bar, single_bars
from tpullm.report.html import Markup, figure, paragraph, section, tag
from tpullm.report.language import Language, count, percent
from tpullm.report.run_data import RunData, number, numbers, series
from tpullm.run import hours


def speed(data: RunData) -> Markup | None:
    """The times and the machine of the run."""
    text, facts = data.language, [*_machine(data), *_rates(data)]
    finished = {stage: number(data.manifests, stage, "seconds") for stage in data.manifests}
    seconds = numbers(data.results.get("seconds")) or {s: value for s, value in finished.items() if value is not None}
    if not (seconds or facts):
        return None
    parts = []
    if seconds:
        names = _stages(text)
        times = [(names.get(stage, stage), value, text.duration(value)) for stage, value in seconds.items()]
        parts.append(figure(single_bars(times), text("{time} in all.", time=text.duration(sum(seconds.values())))))
    parts += [part for part in (_predicted(data), _goodput(data)) if part is not None]
    cells = [cell for name, value in facts for cell in (tag("dt", name), tag("dd", value))]
    columns = [tag("div", *parts)] * bool(parts) + [tag("dl", *cells, class_="facts")] * bool(facts)
    said = text("How long each step took, and on which machine. The same commands run on a GPU and on a TPU pod.")
    return section("speed", text("Speed and machine"), paragraph(said), tag("div", *columns, class_="two"))


def _stages(text: Language) -> dict[str, str]:
    """What each stage does, in the page's language."""
    return {
        "base": text("Import"),
        "documents": text("Collect"),
        "tokenizer": text("Train the tokenizer"),
        "tokens": text("Tokenize"),
        "pretrain": text("Pretrain"),
        "evaluate": text("Evaluate"),
    }


def _machine(data: RunData) -> list[tuple[str, str]]:
    machine = {key: value for key, value in (data.results.get("machine") or {}).items() if value not in (None, "")}
    if machine.get("device") == machine.get("platform"):
        machine.pop("device", None)  # for a CPU, JAX repeats the platform
    text = data.language
    names = {"python": "Python", "jax": "JAX"}
    names |= {"platform": text("platform"), "device": text("device"), "cores": text("cores")}
    return [(names.get(key, key), str(value)) for key, value in machine.items()]


def _rates(data: RunData) -> list[tuple[str, str]]:
    text, found = data.language, []
    for name, key, write in (
        (text("tokens a second, median"), "tokens_per_second", text.compact),
        (text("share of the peak (MFU), median"), "mfu", percent),
        (text("waiting for data, median"), "data_wait_share", percent),
    ):
        values = sorted(value for _, value in series(data.pretrain, key))
        if values:
            found.append((name, write(values[len(values) // 2])))
    return found


def _predicted(data: RunData) -> Markup | None:
    """The predicted time of a step beside the measured one: the median, because some steps wait for a checkpoint."""
    taken = sorted(value for _, value in series(data.pretrain, "step_seconds"))
    predicted = number(data.plan, "step_seconds")
    if predicted is None or not taken:
        return None
    text, median = data.language, taken[len(taken) // 2]
    times = ((text("predicted"), predicted), (text("measured"), median))
    bars = single_bars([(name, value, text.moment(value)) for name, value in times], text("measured"))
    median_told = text("The time of one pretraining step: predicted before training, and the median of all steps.")
    title = tag("h3", text("As fast as predicted?"))
    return tag("div", title, figure(bars, text.join(median_told, _off(text, predicted / median - 1))))


def _goodput(data: RunData) -> Markup | None:
    """Where the time of pretraining went, over all processes that worked on it."""
    found = {kind: seconds for kind, seconds in hours.summary(data.hours).items() if seconds}
    if "train" not in found:
        return None
    text, skipped = data.language, sum(len(row.get("skipped") or []) for row in data.pretrain)
    names = {
        "train": text("training"),
        "start": text("starting, or no process"),
        "compile": text("compiling"),
        "restore": text("restoring"),
        "data": text("waiting for data"),
        "save": text("saving"),
        "evaluate": text("evaluating"),
        "check": text("checking for wrong bits"),
        "lost": text("steps made again"),
        "skipped": text("skipped steps"),
    }
    times = [(name, found[kind]) for kind, name in names.items() if kind in found]
    share = percent(found["train"] / sum(found.values()))
    said = text("{share} of the time went into steps that the model is made of (goodput).", share=share)
    interruptions, planned = hours.planned(data.hours, data.plan.get("run"))
    if interruptions and "run" in data.plan:
        numbers = {"count": count(interruptions), "share": percent(planned)}
        said = text.join(said, text("It was interrupted {count} times; the plan expects {share} then.", **numbers))
    if skipped:
        said = text.join(said, text("{count} bad steps were skipped; they changed nothing.", count=count(skipped)))
    return tag("div", tag("h3", text("Where the time went")), figure(share_bar(times, text.duration), said))


def _off(text: Language, error: float) -> str:
    share = f"{abs(error):.0%}"
    if share == "0%":
        return text("The prediction was right.")
    if error > 0:
        return text("The prediction was {share} too long.", share=share)
    return text("The prediction was {share} too short.", share=share)
