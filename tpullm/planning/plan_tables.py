"""Plans as text: memory by kind against the limit, the parts of a step's time, the whole run, several side by side."""

from tpullm.hardware.chips import PRICES_DATE
from tpullm.hardware.topologies import Topology, memory_holder
from tpullm.planning.plans import Plan
from tpullm.planning.program import stage_of
from tpullm.planning.search import Candidate, why_behind
from tpullm.report.tables import aligned, bar
from tpullm.system.language import spoken
from tpullm.system.words import compact, long_time, moment, size

GIB = 1 << 30
SMALL = 0.005  # of the whole; smaller parts are shown as one


def plan_details(plan: Plan) -> str:
    """All about one plan; without time and price if it does not fit."""
    parts = [_head_lines(plan), _memory_table(plan)]
    if plan.advice:
        over = f"{plan.advice.over_bytes / GIB:.2f} GiB"
        largest = f"{plan.advice.largest} is largest, {plan.advice.largest_bytes / GIB:.2f} GiB"
        holder = memory_holder(plan.chosen.setting.topology)
        parts.append(f"IT DOES NOT FIT: {over} a {holder} are missing; {largest}; {_cure_line(plan)}")
    parts += [_time_table(plan), _run_lines(plan)] if plan.fits else []
    parts += [_search_table(plan)] if plan.found else []
    parts += [*([_compiled_lines(plan)] if plan.proven else []), _uncounted(plan)]
    return "\n\n".join(part for part in parts if part)


def plans_side_by_side(plans: list[Plan]) -> str:
    """One line for each plan, with how to run it, or why it can't be run."""
    kinds = list(dict.fromkeys(kind for plan in plans for kind in plan.run.dollars))
    prices = [kind.replace("_", " ") for kind in kinds]
    (holder, *_) = sorted({memory_holder(plan.chosen.setting.topology) for plan in plans}, reverse=True)
    rows = [
        ("", "", "", "", "tokens/s", "", "", *["dollars"] * len(kinds), ""),
        ("topology", "chips", f"GiB a {holder}", "step", "a chip", "MFU", "days", *prices, ""),
    ]
    for plan in plans:
        found, run, topology = plan.chosen.estimate, plan.run, plan.chosen.setting.topology
        limit = spoken(f"of {plan.chosen.setting.device.hbm_bytes / GIB:.1f}")
        memory = f"{plan.chosen.memory.peak / GIB:.1f} {limit}"
        if plan.fits:
            speed = moment(found.step_seconds), f"{found.tokens_per_second:,.0f}", f"{found.mfu:.0%}"
            days = f"{run.days:,.1f}" if run.days >= 0.05 else "< 0.1"
            cells = [*speed, days, *(_dollars(run.dollars[kind]) if kind in run.dollars else "-" for kind in kinds)]
            note = _command_keys(plan.chosen)
            note = f"{note}; compiled: {moment(plan.proofs[0].step_seconds)} a step" if plan.proofs else note
        else:
            cells = ["-"] * (4 + len(kinds))
            note = "DOES NOT FIT" + (f"; {_cure_line(plan)}" if plan.advice else ", says the compiler")
        rows.append((str(topology), f"{topology.chips:,}", memory, *cells, note))
    return "\n\n".join(part for part in (aligned(rows), _uncounted(plans[0])) if part)


def _uncounted(plan: Plan) -> str:
    return "\n".join(["NOT COUNTED HERE", *(f"  {what}" for what in plan.uncounted)]) if plan.uncounted else ""


def _head_lines(plan: Plan) -> str:
    topology, run = plan.chosen.setting.topology, plan.run
    config = stage_of(plan.recipe, plan.chosen.setting.key).config
    what = f"{topology.chips:,} {'chip' if isinstance(topology, Topology) else 'device'}{'s' * (topology.chips > 1)}"
    tokens = f"{config.batch_size * config.sequence_length:,} tokens"
    # 0 is the platform's choice
    keys = ", ".join(f"{key} {value}" for key, value in plan.chosen.keys().items() if value)
    return f"{plan.recipe.name} on {topology}, {what}, {run.steps:,} steps of {tokens}\n{keys}"


def _memory_table(plan: Plan) -> str:
    """Memory by kind. A full bar is the limit, or the needed memory if that is more."""
    memory, limit = plan.chosen.memory, plan.chosen.setting.device.hbm_bytes
    shown = {kind: held for kind, held in memory.kinds.items() if held > SMALL * memory.peak}
    shown |= {"all else": rest} if (rest := memory.peak - sum(shown.values())) > SMALL * memory.peak else {}
    rows = [(kind, f"{held / GIB:.2f} GiB", bar(held / max(limit, memory.peak))) for kind, held in shown.items()]
    rows.append(("together", f"{memory.peak / GIB:.2f} GiB", f"of {limit / GIB:.2f}"))
    holder = memory_holder(plan.chosen.setting.topology)
    return f"peak memory of a {holder}, in the {memory.moment}\n{aligned(rows)}"


def _cure_line(plan: Plan) -> str:
    if plan.advice.change:
        return f"it fits with {plan.advice.change}"
    return f"no change of one key makes it fit; {'take more chips' if plan.found else 'try --search, or more chips'}"


def _time_table(plan: Plan) -> str:
    found = plan.chosen.estimate
    shown = {name: value for name, value in found.parts.items() if value > SMALL * found.step_seconds}
    shares = {name: value / found.step_seconds for name, value in shown.items()}
    rows = [(name, moment(shown[name]), f"{share:.0%}", bar(share)) for name, share in shares.items()]
    step, speed = moment(found.step_seconds), f"{found.tokens_per_second:,.0f}"
    told = f"a step: {step}, {speed} tokens/s a chip, MFU {found.mfu:.0%}\n{aligned(rows)}\n"
    # The step includes all blocking traffic, and a share of the overlapped traffic.
    beside = {True: "waited for", False: "beside the matmuls"}
    traffic = [
        (f"  {one.axis}: {spoken(one.what)}", size(one.received), moment(one.seconds), beside[one.waits])
        for one in found.transfers
    ]
    head = "traffic over the links to a chip in a step, and its time alone\n"
    return told + (head + aligned(traffic) if traffic else "")


def _run_lines(plan: Plan) -> str:
    run = plan.run
    dollars = [f"{_dollars(price)} dollars ({kind.replace('_', ' ')})" for kind, price in run.dollars.items()]
    whole = ", ".join([f"{compact(run.tokens)} tokens", long_time(run.days), *dollars])
    lines = [f"the whole run: {whole}"]
    if run.dollars and "given" not in run.dollars:
        lines.append(f"  list prices of {PRICES_DATE}; yours with --price GENERATION=DOLLARS a chip-hour")
    store, checkpoint, saving = size(run.token_store_bytes), size(run.checkpoint_bytes), moment(run.save_seconds)
    lines.append(f"  token store {store}, a checkpoint {checkpoint}, saved in {saving} while training continues")
    if run.hours_between:
        between, times, restart = f"{run.hours_between:g}", f"{run.interruptions:.1f}", moment(run.restart_seconds)
        lines.append(f"  interrupted every {between} hours in the mean, {times} times, {restart} to start again")
        lines.append(f"  goodput {run.goodput:.1%}, in the days and dollars above")
    return "\n".join(lines)


def _dollars(price: float) -> str:
    return f"{price:,.0f}" if price >= 10 else f"{price:.2f}"


def _search_table(plan: Plan) -> str:
    """The best candidates, and why the others are behind the first. (All have the same moments.)"""
    found = plan.found
    head = f"searched: {found.screened:,} ways in {moment(found.seconds)}, {found.fitting:,} fit"
    if not found.best:
        return head
    rows = [("mesh", "remat", "accumulation", "block", "chunks", "GiB", "step", "waiting", "")]
    for one in found.best:
        setting, behind = one.setting, "" if one is found.best[0] else why_behind(one, found.best[0])
        way = one.keys()["mesh"], setting.remat, *map(str, (setting.accumulation, setting.block, setting.chunks))
        step, waiting = moment(one.estimate.step_seconds), moment(sum(one.estimate.exposed.values()))
        rows.append((*way, f"{one.memory.peak / GIB:.1f}", step, waiting, behind))
    return head + "\n" + aligned(rows)


def _compiled_lines(plan: Plan) -> str:
    """The compiler's result for each candidate beside the estimate; for the chosen one also the findings."""
    rows = []
    for candidate, proof in plan.proven:
        estimated, compiled = moment(candidate.estimate.step_seconds), moment(proof.step_seconds)
        memory = f"{proof.peak_bytes / GIB:.2f} GiB ({candidate.memory.peak / GIB:.2f})"
        step = "DOES NOT FIT" if proof.refused else f"{compiled} ({estimated})"
        rows.append((_command_keys(candidate), memory, step, ""))
    proof = plan.proofs[0]
    holder = memory_holder(plan.chosen.setting.topology)
    head = f"compiled: memory of a {holder}, and a step by its program (in brackets: as estimated)"
    told = [proof.refused] if proof.refused else [finding.text for finding in proof.findings]
    return "\n".join([head, aligned(rows), *(f"  {line}" for line in told)])


def _command_keys(candidate: Candidate) -> str:
    """How to run it; attention block and loss chunks only if they are not the platform's choice."""
    setting = candidate.setting
    told = {"mesh": candidate.keys()["mesh"], "remat": setting.remat, "accumulation": setting.accumulation}
    chosen = {"block": setting.attention_block, "chunks": setting.loss_chunks}
    told |= {key: value for key, value in chosen.items() if value}
    return ", ".join(f"{key} {value}" for key, value in told.items())
