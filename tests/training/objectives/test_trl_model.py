"""Loss and gradients of an adapter are those of trl with peft and transformers on the same answers.

Nothing is given in place of the model: theirs was run (`tuned_losses.py`). Their rows have one answer each, ours packed
pairs; on a mesh rows and parameters are split.
"""

import numpy as np
import pytest

from tests.eight_devices import printed
from tests.training.objectives.tuned_losses import FILE, POLICIES, PREFERENCES
from tests.training.test_sharded import SOME


@pytest.mark.parametrize(
    ("mesh", "cases"),
    [
        pytest.param("one device", [], marks=pytest.mark.ci),
        pytest.param(SOME[1], ["dpo", "kto", "grpo"], marks=pytest.mark.ci),  # a batch of each kind
        pytest.param(SOME[1], [], marks=pytest.mark.slow),
    ],
)
def test_a_tuned_model_has_trls_loss_and_gradients(mesh, cases):
    """In float32. A loss is made of sums of some ten log-probabilities of two layers (2e-6 away was the most seen); a
    gradient is compared with its largest element (7e-6).
    """
    recorded = np.load(FILE)
    found = printed("tests.training.objectives.tuned_losses", mesh, *cases)
    assert [*found] == (cases or [*PREFERENCES, *POLICIES])
    for case, ours in found.items():
        loss, gradient = recorded[f"{case} loss"], recorded[f"{case} gradient"]
        far = np.abs(ours["gradient"] - gradient).max() / np.abs(gradient).max()
        print(f"{mesh}: {case}: loss {loss:.4f}, {abs(ours['loss'] / loss - 1):.1e} away, gradient {far:.1e}")
        assert np.abs(gradient).max() > 1e-3
        np.testing.assert_allclose(ours["loss"], loss, rtol=1e-5, err_msg=case)
        assert far <= 1e-4, case
