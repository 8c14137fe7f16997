"""A machine that lacks the GPUs of its type is told apart before the verb starts."""

import pytest

from tests.launch.conftest import job_of, nvidia_smi
from tpullm.launch import supervisor
from tpullm.system.errors import UserError

H200 = "NVIDIA H200, 580.95.05"
SPEC = job_of("compute", "pretrain", machine="a3-ultragpu-8g").spec()


@pytest.fixture
def finds(tmp_path, monkeypatch):
    """Makes the machine's nvidia-smi print some lines."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return lambda lines, code=0: nvidia_smi(tmp_path, lines, code)


def test_the_specification_names_the_gpus_of_the_machine():
    assert SPEC["gpus"] == {"machine": "a3-ultragpu-8g", "name": "NVIDIA H200", "count": 8}
    assert "gpus" not in job_of("compute", "pretrain", machine="n2-standard-8").spec()


def test_the_gpus_that_were_launched_pass(finds):
    finds([H200] * 8)
    supervisor.check_gpus(**SPEC["gpus"])


@pytest.mark.parametrize(
    "lines, code, says",
    [
        ([H200] * 7, 0, "machine: a3-ultragpu-8g has 8 x NVIDIA H200, and nvidia-smi finds 7 x NVIDIA H200"),
        (["NVIDIA H100 80GB HBM3, 580.95.05"] * 8, 0, "nvidia-smi finds 8 x NVIDIA H100 80GB HBM3; launch again"),
        ([H200] * 7 + ["NVIDIA L4, 580.95.05"], 0, "finds 7 x NVIDIA H200, 1 x NVIDIA L4"),
        ([], 0, "nvidia-smi finds none"),
        ([H200] * 7 + ["NVIDIA H200, 550.90.07"], 0, "image: its NVIDIA driver 550.90.07 is older than 580"),
        (["No devices were found"], 6, "nvidia-smi finds no GPU (No devices were found)"),
    ],
)
def test_others_are_one_line(finds, lines, code, says):
    finds(lines, code)
    with pytest.raises(UserError) as error:
        supervisor.check_gpus(**SPEC["gpus"])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_an_image_without_a_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="image: it has no nvidia-smi, so no NVIDIA driver; use an image with one"):
        supervisor.check_gpus(**SPEC["gpus"])
