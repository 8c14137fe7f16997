"""Several hosts = one host: no number depends on how devices are distributed over processes."""

import json
import math

import numpy as np
import pytest

from tests.training.several_hosts import run


@pytest.mark.slow  # `system/cluster/test_hosts.py` has losses and evaluations of two hosts
@pytest.mark.parametrize("mesh", [{"fsdp": 2, "sequence": 4}, {"fsdp": 2, "tensor": 2}], ids=["sequence", "tensor"])
def test_losses_and_evaluation_of_four_hosts_are_those_of_one(tmp_path, mesh):
    """Two of them split a row, or its heads, and need the same rows.

    Float32 sums in another order (gloo's) over 20 steps of AdamW: 1e-5 relative is some hundred roundings.
    `host_losses.py` asserts that each host builds its rows of the global batch and no others.
    """
    found = {}
    for hosts in (1, 4):
        words = (tmp_path / str(hosts), json.dumps(mesh))
        ended = run(hosts, "tests.training.host_losses", *words, devices=math.prod(mesh.values()))
        found[hosts] = [json.loads(out.splitlines()[-1]) for _, out, _ in ended]
    (one,), several = found.values()
    assert one.pop("rows") == list(range(16))
    first, last = list(range(8)), list(range(8, 16))
    assert [result.pop("rows") for result in several] == [first, first, last, last]
    assert all(result == several[0] for result in several), "hosts differ"
    for name, values in one.items():
        np.testing.assert_allclose(several[0][name], values, rtol=1e-5)
