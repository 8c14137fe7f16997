"""Several hosts = one host: how devices are shared between processes changes not one number."""

import json

import numpy as np
import pytest

from tests.training.several_hosts import run

# Which rows each of 4 hosts with 2 devices needs: the mesh says, not the host's index.
ROWS_OF_4 = {
    "fsdp 8": [range(0, 4), range(4, 8), range(8, 12), range(12, 16)],
    "sequence 4, fsdp 2": [range(0, 8), range(0, 8), range(8, 16), range(8, 16)],
    "fsdp 4, tensor 2": [range(0, 4), range(4, 8), range(8, 12), range(12, 16)],
}


def results(hosts: int, folder, *meshes: str) -> list[dict]:
    """By host and mesh, what `host_losses.py` computed."""
    folder.mkdir(exist_ok=True)
    return [json.loads(out.splitlines()[-1]) for _, out, _ in run(hosts, "tests.training.host_losses", folder, *meshes)]


@pytest.mark.parametrize(
    "hosts, meshes",
    [
        (4, ["sequence 4, fsdp 2"]),
        *(pytest.param(hosts, list(ROWS_OF_4), marks=pytest.mark.slow) for hosts in (2, 4, 8)),
    ],
)
def test_losses_and_evaluation_of_several_hosts_are_those_of_one(tmp_path, hosts, meshes):
    """Float32 sums in another order (gloo's) over 20 steps of AdamW: 1e-5 relative is some hundred roundings.

    That every host's rows are those of the global batch, and that it built no others, `host_losses.py` asserts.
    """
    (one,), found = results(1, tmp_path / "one", *meshes), results(hosts, tmp_path / "several", *meshes)
    for mesh, alone in one.items():
        for host, result in enumerate(found):
            assert result[mesh]["losses"] == found[0][mesh]["losses"], "hosts have other numbers"
            assert result[mesh]["evaluation"] == found[0][mesh]["evaluation"]
            if hosts == 4:
                assert result[mesh]["rows"] == list(ROWS_OF_4[mesh][host])
        np.testing.assert_allclose(found[0][mesh]["losses"], alone["losses"], rtol=1e-5, err_msg=mesh)
        np.testing.assert_allclose(found[0][mesh]["evaluation"], alone["evaluation"], rtol=1e-5, err_msg=mesh)
        assert alone["rows"] == list(range(16))
        difference = np.abs(np.array(found[0][mesh]["losses"]) / alone["losses"] - 1).max()
        print(f"{hosts} hosts, {mesh}: largest relative difference of a loss {difference:.1e}")
