"""A plan: a recipe on a topology, with its memory, its time, the whole run, and advice.

There are two depths. *Estimated*: a `Setting` is a training in numbers, and formulas count its work, memory and
traffic. *Compiled*: `proof.py` has the compiler of the chip make the step itself. A change of the step that moves
memory or traffic is a change of these formulas too: `tests/planning` compares them with compiled programs and published
runs.
"""

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any

from tpullm.hardware import topologies
from tpullm.hardware.chips import Chip
from tpullm.hardware.topologies import Slices, Topology
from tpullm.planning.economics import Run, prices_of, whole_run
from tpullm.planning.memory import global_state
from tpullm.planning.program import job_of, stage_of
from tpullm.planning.proof import Proof
from tpullm.planning.search import Advice, Candidate, Found, advise, assess_memory, meshes, search, why_behind
from tpullm.planning.setting import Job, Setting, setting_of
from tpullm.planning.this_machine import local_setting, machine
from tpullm.recipe.mesh_axes import AXES
from tpullm.recipe.schema import ModelConfig, Recipe
from tpullm.system.errors import UserError

VERSION = 1  # of the JSON; it grows when a key is removed or changes its meaning


@dataclass(frozen=True)
class Plan:
    """A recipe on a topology.

    Args:
        recipe: as it would be run; a search may have changed it.
        chosen: the way to run it.
        run: all steps; computed also if the plan does not fit.
        advice: how to make it fit; None if it fits.
        found: the result of a search, if one was made.
        proven: the compiler's proofs of the best candidates, the chosen one first.
        uncounted: what the training does that is in none of these figures.
    """

    recipe: Recipe
    chosen: Candidate
    run: Run
    advice: Advice | None
    found: Found | None = None
    proven: tuple[tuple[Candidate, Proof], ...] = ()
    uncounted: tuple[str, ...] = ()

    @property
    def proofs(self) -> tuple[Proof, ...]:
        """The compiler's proofs, without their candidates."""
        return tuple(proof for _, proof in self.proven)

    @property
    def fits(self) -> bool:
        """Whether it fits the memory: by the compiler if it was asked, else by the estimate."""
        return not self.proofs[0].refused if self.proofs else self.advice is None

    @property
    def dollars(self) -> float:
        """The cost of the run at the first kind of price; 0 for this machine."""
        return next(iter(self.run.dollars.values()), 0.0)


def make_plan(
    recipe: Recipe,
    model: ModelConfig,
    name: str,
    prices: list[str] = (),
    hours_between: float = 0.0,
    searched: bool = False,
    restart_seconds: float = 0.0,
    stage: str = "",
) -> Plan:
    """The plan of a training of a recipe.

    Args:
        model: of the recipe, resolved.
        name: of the topology, or `local`.
        prices: given prices, such as `v5e=0.9`.
        hours_between: mean time between interruptions; 0 if there are none.
        searched: take the best way to run it, instead of the recipe's.
        restart_seconds: from an interruption until a step is computed; 0 is the usual.
        stage: of `program.stage_of`.

    Raises:
        UserError: no such topology or stage, or the recipe does not fit it: its mesh, its rows, a size of its model. A
            search takes another mesh, and refuses only if no mesh fits.
    """
    job_on = _job_to_search if searched else job_of
    job = job_on(recipe, machine() if name == "local" else topologies.parse(name), stage, model)
    setting = local_setting(job) if name == "local" else setting_of(job)
    found = search(setting) if searched else None
    chosen = found.best[0] if found and found.best else assess_memory(setting)
    size = global_state(model, chosen.setting.optimizer, job.adapter).total()
    prices = prices_of(setting.topology.generation, list(prices))
    run = whole_run(job.config, chosen.setting, chosen.estimate, size, prices, hours_between, restart_seconds)
    return Plan(chosen.changed(recipe), chosen, run, advise(chosen), found, uncounted=stage_of(recipe, stage).uncounted)


def _job_to_search(recipe: Recipe, topology: Topology, stage: str, model: ModelConfig) -> Job:
    """The training on its own mesh, or on the first mesh that it fits in one micro-batch, from where a search begins.

    Raises:
        UserError: of its own mesh, if it fits no other one either.
    """
    try:
        return job_of(recipe, topology, stage, model)
    except UserError as refused:
        planned = stage_of(recipe, stage)
        config = dataclasses.replace(planned.config, accumulation=1)
        sizes = (topology.devices, *[1] * (len(AXES) - 1))
        whole = Setting(model, topology, Chip(()), sizes, config.batch_size, config.sequence_length)
        for sizes in meshes(whole):
            other = dataclasses.replace(planned.changed(recipe, config), mesh=dict(zip(AXES, sizes, strict=True)))
            with contextlib.suppress(UserError):
                return job_of(other, topology, stage, model)
        raise refused


def with_proofs(plan: Plan, proofs: list[tuple[Candidate, Proof]]) -> Plan:
    """The plan with the compiler's proofs. The candidate that fits and is fastest by the compiler is chosen."""
    fitting = [pair for pair in proofs if not pair[1].refused]
    if not fitting:
        return dataclasses.replace(plan, proven=tuple(proofs))
    chosen, proof = min(fitting, key=lambda pair: pair[1].step_seconds)
    proven, run = ((chosen, proof), *(pair for pair in proofs if pair[1] is not proof)), plan.run
    scale = chosen.estimate.step_seconds / run.step_seconds
    dollars = {kind: price * scale for kind, price in run.dollars.items()}
    run = dataclasses.replace(run, step_seconds=run.step_seconds * scale, days=run.days * scale, dollars=dollars)
    recipe = chosen.changed(plan.recipe)
    return dataclasses.replace(plan, recipe=recipe, chosen=chosen, run=run, advice=None, proven=proven)


def on_slices(recipe: Recipe, name: str, slices: int) -> tuple[Recipe, str]:
    """The recipe and the topology with that many slices, which share the rows along `data`; 0 changes neither."""
    if not slices or ":" not in name:
        return recipe, name
    one = topologies.parse(name)
    if not isinstance(one, Slices):
        raise UserError(f"--slices: {name} is no TPU slice; write the hosts into its name, such as h100:16x8")
    mesh = {"data": slices} | {axis: size for axis, size in recipe.mesh.items() if axis != "data"}
    return dataclasses.replace(recipe, mesh=mesh), str(Slices(one.generation, one.shape, slices))


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values. docs/en/planning.md documents the keys, and a test holds them."""
    chosen, setting = plan.chosen, plan.chosen.setting
    time, found = chosen.estimate, plan.found
    searched = found and {
        "screened": found.screened,
        "fitting": found.fitting,
        "seconds": found.seconds,
        "best": [
            {
                "keys": one.keys(),
                "peak_bytes": round(one.memory.peak),
                "step_seconds": one.estimate.step_seconds,
                "waiting_seconds": sum(one.estimate.exposed.values()),
                "behind": why_behind(one, found.best[0]) if one is not found.best[0] else "",
            }
            for one in found.best
        ],
    }
    return {
        "topology": str(setting.topology),
        "chips": setting.topology.chips,
        "keys": chosen.keys(),
        "fits": plan.fits,
        "limit_bytes": round(setting.device.hbm_bytes),
        "peak_bytes": round(chosen.memory.peak),
        "peak_moment": chosen.memory.moment,
        "memory": {kind: round(size) for kind, size in chosen.memory.kinds.items()},
        "step_seconds": time.step_seconds,
        "tokens_per_second": time.tokens_per_second,
        "mfu": time.mfu,
        "computing_seconds": time.computing,
        "exposed_seconds": time.exposed,
        "traffic": [one._asdict() for one in time.transfers],
        "run": dataclasses.asdict(plan.run),
        "advice": plan.advice and dataclasses.asdict(plan.advice),
        "search": searched,
        "proofs": [dataclasses.asdict(proof) | {"keys": candidate.keys()} for candidate, proof in plan.proven],
        "uncounted": list(plan.uncounted),
    }
