"""Plans as text for people: memory by part against the limit, where a step's time goes, the whole run, side by side."""

from tpullm.planning.estimate import estimate
from tpullm.planning.plans import Plan
from tpullm.planning.search import waiting, why_behind

GIB, WIDTH = 1 << 30, 30
SMALL = 0.004  # of the whole: parts that are less are put together


def details(plan: Plan) -> str:
    """Everything about one plan."""
    parts = [_head(plan), _memory(plan), _time(plan), _run(plan)]
    parts += [_search(plan)] if plan.found else []
    parts += [_proof(proof) for proof in plan.proofs]
    return "\n\n".join(parts)


def side_by_side(plans: list[Plan]) -> str:
    """One line for each plan."""
    rows = [
        ("topology", "chips", "GiB a chip", "fits", "step", "tokens/s a chip", "MFU", "days", *_kinds(plans), "keys")
    ]
    for plan in plans:
        found, chosen = plan.chosen.estimate or estimate(plan.chosen.setting), plan.chosen
        memory = f"{chosen.memory.peak / GIB:.1f} of {chosen.setting.device.hbm_bytes / GIB:.1f}"
        run, prices = (
            plan.run,
            [f"{plan.run.dollars[kind]:,.0f}" if kind in plan.run.dollars else "" for kind in _kinds(plans)],
        )
        keys = (
            f"mesh {chosen.keys()['mesh']}, remat {chosen.setting.remat}, {chosen.setting.accumulation} micro-batches"
        )
        rows.append(
            (str(chosen.setting.topology), f"{chosen.setting.topology.chips:,}", memory, "no" if plan.advice else "yes")
            + (seconds(found.step_seconds), f"{found.tokens_per_second:,.0f}", f"{found.mfu:.0%}", f"{run.days:,.1f}")
            + (*prices, keys)
        )
    return aligned(rows)


def seconds(value: float) -> str:
    """Three digits, in a unit that suits."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell; the first and the last to the left."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = [cell.ljust(widths[n]) if n in (0, last) else cell.rjust(widths[n]) for n, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _kinds(plans: list[Plan]) -> list[str]:
    kinds = dict.fromkeys(kind for plan in plans for kind in plan.run.dollars)
    return [f"{kind}" for kind in kinds]


def _head(plan: Plan) -> str:
    setting, keys = plan.chosen.setting, plan.chosen.keys()
    told = ", ".join(f"{key} {value}" for key, value in keys.items() if value)  # 0 is the platform's own choice
    return f"{plan.recipe.name} on {setting.topology}, {setting.topology.chips:,} chip(s): {told}"


def _memory(plan: Plan) -> str:
    memory, limit = plan.chosen.memory, plan.chosen.setting.device.hbm_bytes
    rows = [
        (kind, f"{size / GIB:.2f}", bar(size / limit)) for kind, size in memory.kinds.items() if size > SMALL * limit
    ]
    rows.append(
        ("together", f"{memory.peak / GIB:.2f}", f"of {limit / GIB:.2f} GiB, when it is most: in the {memory.moment}")
    )
    return "memory of a chip, GiB\n" + aligned(rows) + _advice(plan)


def _advice(plan: Plan) -> str:
    advice = plan.advice
    if advice is None:
        return ""
    what = f"change one key: {advice.change}" if advice.change else "no change of one key makes it fit; take more chips"
    return (
        f"\nIT DOES NOT FIT, by {advice.over_bytes / GIB:.2f} GiB a chip; {advice.largest} is largest, "
        f"{advice.largest_bytes / GIB:.2f} GiB; {what}"
    )


def bar(share: float) -> str:
    """A bar, whole at a share of 1; at least something for anything."""
    return "█" * max(round(min(share, 1.0) * WIDTH), 0) or "▏"


def _time(plan: Plan) -> str:
    found = plan.chosen.estimate or estimate(plan.chosen.setting)
    parts = {**found.computing, **{f"waiting for {axis}": value for axis, value in found.exposed.items()}}
    rows = [
        (name, seconds(value), f"{value / found.step_seconds:.0%}", bar(value / found.step_seconds))
        for name, value in parts.items()
        if value > SMALL * found.step_seconds
    ]
    speed = f"{found.tokens_per_second:,.0f} tokens/s a chip, MFU {found.mfu:.0%}"
    return f"a step: {seconds(found.step_seconds)}, {speed}\n{aligned(rows)}\n{_traffic(found)}"


def _traffic(found) -> str:
    rows = [
        (
            f"  {one.axis}: {one.what}",
            f"{one.received / 1e9:.3g} GB",
            seconds(one.seconds),
            "waits" if one.waits else "beside the products",
        )
        for one in found.transfers
    ]
    return "over the links, a chip and step:\n" + aligned(rows) if rows else "nothing goes over links"


def _run(plan: Plan) -> str:
    run = plan.run
    dollars = [f"{price:,.0f} dollars ({kind.replace('_', ' ')})" for kind, price in run.dollars.items()]
    whole = [f"{run.steps:,} steps", f"{run.tokens / 1e9:,.3g} G tokens", f"{run.days:,.2f} days", *dollars]
    files = [f"token store {_size(run.token_store_bytes)}", f"a checkpoint {_size(run.checkpoint_bytes)}"]
    lines = ["the whole run: " + ", ".join(whole), f"  {', '.join(files)}, saved in {seconds(run.save_seconds)}"]
    if run.hours_between:
        often = f"  interrupted every {run.hours_between:g} hours in the mean, {run.interruptions:.1f} times"
        lines.append(f"{often}: goodput {run.goodput:.1%}")
    return "\n".join(lines)


def _size(count: float) -> str:
    return f"{count / 1e9:,.3g} GB" if count >= 1e8 else f"{count / 1e6:,.3g} MB"


def _search(plan: Plan) -> str:
    found = plan.found
    head = f"searched: {found.screened:,} ways in {found.seconds:.1f} s, {found.fitting:,} fit"
    if not found.best:
        return head
    rows = [("mesh", "remat", "micro-batches", "block", "chunks", "moments", "GiB", "step", "waiting", "why not")]
    for one in found.best:
        setting, behind = one.setting, "" if one is found.best[0] else why_behind(one, found.best[0])
        rows.append(
            (one.keys()["mesh"], setting.remat, str(setting.accumulation), str(setting.block), str(setting.chunks))
            + (
                setting.optimizer.moments,
                f"{one.memory.peak / GIB:.1f}",
                seconds(one.estimate.step_seconds),
                seconds(sum(waiting(one).values())),
                behind,
            )
        )
    return head + "\n" + aligned(rows)


def _proof(proof) -> str:
    if proof.refused:
        return f"compiled for {proof.topology}: {proof.refused}"
    lines = [
        f"compiled for {proof.topology} in {proof.compile_seconds:.0f} s: {proof.peak_bytes / GIB:.2f} GiB of "
        f"{proof.limit_bytes / GIB:.2f} a chip, a step {seconds(proof.step_seconds)} by the compiler's cycles"
    ]
    return "\n".join(lines + [f"  {finding.text}" for finding in proof.findings])
