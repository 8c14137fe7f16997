"""Run by `tests/eight_devices.py`: objectives from hidden states and table on each mesh, as one JSON object.

Arguments: names of meshes (none is all). All objectives are one program, which is quicker to compile.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests.training.sharded_losses import EXPERT_MESHES
from tpullm.model.mesh import RULES, make_mesh
from tpullm.model.rows import put, put_whole
from tpullm.recipe.schema import PolicyConfig, PreferenceConfig
from tpullm.training.log_probabilities import likeliest, log_probabilities
from tpullm.training.losses import (
    AXES,
    sum_by_sequence,
)
from tpullm.training.objectives.distillation import distillation_loss
from tpullm.training.objectives.policy import policy_loss
from tpullm.training.objectives.preferences import Answers, dpo

B, T, D, V, K = 16, 32, 8, 96, 4


def arrays() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What is split by rows and time, and the table."""
    random = np.random.default_rng(0)
    answers = np.repeat([[0] * 4 + [1] * 12 + [2] * 11 + [0] * 5], B, axis=0).astype(np.int32)
    split = {
        "hidden": random.normal(size=(B, T, D)).astype(np.float32),
        "targets": random.integers(0, V, (B, T)).astype(np.int32),
        "choices": np.argsort(random.random((B, T, V)), axis=-1)[..., :K].astype(np.int32),
        "answers": answers,
        "old": -random.exponential(4, (B, T)).astype(np.float32),
        "advantages": np.where(answers == 1, 1.0, -0.5).astype(np.float32),
    }
    return split, random.normal(size=(V, D)).astype(np.float32)


def of_preferences(hidden, table, given):
    """DPO of the two answers in each row."""
    logp_BT, _ = log_probabilities(hidden, table, given["targets"])
    answers = [sum_by_sequence(x, given["answers"], 2) for x in (logp_BT, jnp.ones_like(logp_BT), given["old"])]
    chosen, rejected = (Answers(*(x[:, side] for x in answers)) for side in (0, 1))
    return dpo(chosen, rejected, jnp.ones_like(chosen.policy), PreferenceConfig())


def of_policy(hidden, table, given):
    """GSPO, whose ratios are of whole answers, with the entropy in the loss of no one."""
    logp_BT, entropy_BT = log_probabilities(hidden, table, given["targets"], 5.0, 0.8, entropy=True)
    settings = PolicyConfig("gspo", clip_low=1.0, clip_high=10.0, kl_weight=0.1)
    old_BT = jax.lax.stop_gradient(logp_BT) - 0.01 * given["old"]
    given_BT = logp_BT, given["advantages"], given["answers"], 2
    return policy_loss(settings, *given_BT, old_BT, given["old"], entropy_BT)


def of_teacher(hidden, table, given):
    """Distillation, where the student's own numbers, moved, are the teacher's."""
    logp_BTK, _ = log_probabilities(hidden, table, given["choices"])
    teacher_BTK = jax.lax.stop_gradient(logp_BTK) * 0.7 - 1.5
    weights_BT = (given["answers"] > 0).astype(jnp.float32)
    return distillation_loss(logp_BTK, teacher_BTK, weights_BT, beta=0.5)


OBJECTIVES = {"preferences": of_preferences, "policy": of_policy, "teacher": of_teacher}


def computed(shape: dict[str, int]) -> dict[str, list]:
    """The sums of each objective, and the gradients of the sum of all losses, on one mesh."""
    mesh = make_mesh(shape, jax.devices() if shape else jax.devices()[:1])
    split, table = arrays()

    def loss(hidden, table, given):
        sums = {name: objective(hidden, table, given) for name, objective in OBJECTIVES.items()}
        return sum(of["loss"].total / of["loss"].weight for of in sums.values()), sums

    with jax.set_mesh(mesh):
        given, table = put(mesh, split), put_whole(mesh, table, *AXES)
        given = {name: jax.reshard(x, RULES.spec("batch", "time", *[None] * (x.ndim - 2))) for name, x in given.items()}
        hidden = given.pop("hidden")
        gradients, sums = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(hidden, table, given)
        kept = [gradient.sharding == x.sharding for gradient, x in zip(gradients, (hidden, table), strict=True)]
        assert all(kept), "a gradient lies elsewhere than its array"
        ids, logp = jax.jit(lambda *arrays: likeliest(*arrays, K))(hidden, table)
        found = {name: jnp.stack(jax.tree.leaves(of)).tolist() for name, of in sums.items()}
        return found | {
            "hidden": np.asarray(gradients[0]).tolist(),
            "table": np.asarray(gradients[1]).tolist(),
            "ids": ids.tolist(),
            "logp": logp.tolist(),
        }


if __name__ == "__main__":
    print(json.dumps({name: computed(EXPERT_MESHES[name]) for name in sys.argv[1:] or EXPERT_MESHES}))
