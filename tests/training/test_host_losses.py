"""Several hosts = one host: no number depends on how devices are distributed over processes."""

import json
from functools import cache

import numpy as np
import pytest

from tests.training.several_hosts import run

MESHES = ["fsdp 8", "sequence 4, fsdp 2", "fsdp 4, tensor 2"]


def rows_of(host: int, hosts: int, mesh: str) -> list[int]:
    """Of 16 rows, those that a host with its part of 8 devices needs; they follow from the mesh, not from its index."""
    parts = {"fsdp 8": 8, "sequence 4, fsdp 2": 2, "fsdp 4, tensor 2": 4}[mesh]
    first, last = host * 8 // hosts, (host + 1) * 8 // hosts - 1  # its devices; neighbours share a row
    return list(range(first * parts // 8 * (16 // parts), (last * parts // 8 + 1) * (16 // parts)))


def results(hosts: int, folder, mesh: str) -> list[dict]:
    """The output of `host_losses.py` by host. Eight processes that each compile a step take minutes on two cores."""
    ended = run(hosts, "tests.training.host_losses", folder, mesh, timeout=900)
    return [json.loads(out.splitlines()[-1])[mesh] for _, out, _ in ended]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The output of one host by mesh; computed once."""
    return cache(lambda mesh: results(1, tmp_path_factory.mktemp("one"), mesh)[0])


@pytest.mark.slow  # `system/cluster/test_hosts.py` has losses and evaluations of two hosts
@pytest.mark.parametrize("hosts", [2, 4, 8])
@pytest.mark.parametrize("mesh", MESHES)
def test_losses_and_evaluation_of_several_hosts_are_those_of_one(tmp_path, alone, hosts, mesh):
    """Float32 sums in another order (gloo's) over 20 steps of AdamW: 1e-5 relative is some hundred roundings.

    `host_losses.py` asserts that each host builds its rows of the global batch and no others.
    """
    one, found = alone(mesh), results(hosts, tmp_path, mesh)
    for host, result in enumerate(found):
        assert result["losses"] == found[0]["losses"], "hosts differ"
        assert result["evaluation"] == found[0]["evaluation"]
        assert result["rows"] == rows_of(host, hosts, mesh)
    assert one["rows"] == list(range(16))
    difference = np.abs(np.array(found[0]["losses"]) / one["losses"] - 1).max()
    print(f"{hosts} hosts, {mesh}: largest relative difference of a loss {difference:.1e}")
    np.testing.assert_allclose(found[0]["losses"], one["losses"], rtol=1e-5)
    np.testing.assert_allclose(found[0]["evaluation"], one["evaluation"], rtol=1e-5)
