"""The results of `gpu.py` as Markdown."""

from figures import OURS

TOP = """# On one GPU

Made by `benchmarks/gpu.py` ({dates}). Card: {card}{driver}; {cores} cores of {cpu}.

{versions}
"""
TRAIN = """
## Training

Each program with the fastest of its measured settings, alone on the GPU. MFU is the share of the card's published peak
({peak:.4g} TFLOP/s) that the model's own FLOPs reach, without recomputation. `times` is our MFU over the program's: of
the same model, the ratio of tokens/s. transformers recomputes nothing, in mixed precision, compiled, with fused AdamW;
so does nanoGPT's form, which is another model of as many FLOPs a token.

| model | program | setting | tokens/s | MFU | times | step, ms | peak GiB | parameters | MFLOP a token | loss |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""
KERNEL = """
## Attention

TFLOP/s of the visible pairs, causal, in bfloat16; H {width}, {heads} query heads, {kv_heads} key/value heads. Each
kernel was first compared with numpy. `times` is ours over the fastest other one.

| rows x tokens | pass | {names} | times |
| --- | --- |{rule} --- |"""
PLAN = """
## {title}

| our step | measured | by the compiler | off by | by the formulas | off by |
| --- | --- | --- | --- | --- | --- |"""


def page(found: dict) -> str:
    """The whole page, with what failed at its end."""
    parts = [_top(found)]
    if found.get("train"):
        parts.append(_train(found["train"]))
    if any("forward" in case for case in found.get("kernel", {}).values()):
        parts.append(_kernel(found["kernel"]))
    if found.get("memory"):
        parts.append(_plan(found["memory"], "Peak memory of our step, GiB", 1 / 2**30))
    if found.get("prediction"):
        parts.append(_plan(found["prediction"], "Time of our step, milliseconds", 1e3))
    failed = _failed(found)
    return "\n".join(parts + (["\n## What failed\n", *failed] if failed else [])) + "\n"


def _top(found: dict) -> str:
    of, versions = found["machine"], found.get("versions", {})
    return TOP.format(
        dates=", ".join(f"{part} {date}" for part, date in found.get("dates", {}).items()) or "not finished",
        card=found["card"],
        driver=f", driver {found['driver']}" if found["driver"] else "",
        cores=of["cores"],
        cpu=of["cpu"],
        versions="\n".join(f"- {side}: {', '.join(map(' '.join, of.items()))}" for side, of in versions.items()),
    )


def _train(found: dict) -> str:
    peak = next((r["peak_flops"] for of in found.values() for r in of.get(OURS, ()) if "peak_flops" in r), 0.0)
    lines = [TRAIN.format(peak=peak / 1e12)]
    for size, programs in found.items():
        fastest = {name: max(fitted, key=_rate) for name, of in programs.items() if (fitted := _fitted(of))}
        own = _flops(fastest[OURS]) if OURS in fastest else 0.0
        for name, record in fastest.items():
            step = {which: f"{1e3 * seconds:,.1f}" for which, seconds in record["step_seconds"].items()}
            cells = [
                size,
                name,
                record["setting"],
                f"{_rate(record):,.0f}",
                f"{_flops(record) / peak:.1%}" if peak else "–",
                f"**{own / _flops(record):.2f}**" if own and name != OURS else "",
                f"{step['median']} ({step['min']} to {step['max']})",
                _number(record["peak_bytes"], 1 / 2**30),
                f"{record['parameters']:,}",
                f"{record['flops_per_token'] / 1e6:,.1f}",
                f"{record['loss']:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _fitted(records: list[dict]) -> list[dict]:
    return [record for record in records if "failed" not in record]


def _rate(record: dict) -> float:
    return record["tokens_per_second"]["median"]


def _flops(record: dict) -> float:
    return _rate(record) * record["flops_per_token"]


def _kernel(found: dict) -> str:
    names = list(dict.fromkeys(name for case in found.values() for name in case.get("forward", ())))
    shape = next(iter(found.values()))["shape"]
    lines = [KERNEL.format(names=" | ".join(names), rule=" --- |" * len(names), **shape)]
    for title, case in found.items():
        for which in ("forward", "gradient"):
            speeds = {name: of["flops_per_second"] for name, of in case.get(which, {}).items()}
            others = [speed for name, speed in speeds.items() if name != OURS]
            times = f"**{speeds[OURS] / max(others):.2f}**" if OURS in speeds and others else ""
            cells = [title, {"gradient": "with gradients"}.get(which, which)]
            cells += [_number(speeds.get(name), 1e-12) for name in names]
            lines.append(f"| {' | '.join([*cells, times])} |")
    return "\n".join(lines)


def _plan(found: dict, title: str, unit: float) -> str:
    lines = [PLAN.format(title=title)]
    for name, of in found.items():
        cells = [name, _number(of["measured"], unit)]
        for source in ("compiled", "formula"):
            off = f"{of[source] / of['measured'] - 1:+.1%}" if of[source] and of["measured"] else "–"
            cells += [_number(of[source], unit), off]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, unit: float) -> str:
    """Four digits, or a dash if there is none."""
    if value is None:
        return "–"
    scaled = value * unit
    return f"{scaled:,.0f}" if scaled >= 1000 else f"{scaled:.4g}"


def _failed(found: dict) -> list[str]:
    lines = [
        f"- {size}, {name}, {record['setting']}: {record['failed']}"
        for size, programs in found.get("train", {}).items()
        for name, records in programs.items()
        for record in records
        if "failed" in record
    ]
    for case, of in found.get("kernel", {}).items():
        lines += [f"- {case}, {name}: {why}" for name, why in of["failed"].items()]
    plans = found.get("memory", {}) | found.get("prediction", {})
    return lines + [f"- {name}, compiled: {of['failed']}" for name, of in plans.items() if of["failed"]]
