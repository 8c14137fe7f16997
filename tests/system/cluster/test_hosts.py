"""Several hosts as a user has them: the same command on each, and one of them is wrong, stopped or killed."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.run.test_resume import metrics, wait_for_save
from tests.training.several_hosts import finish, start
from tpullm.cli.main import main
from tpullm.system.errors import TRY_AGAIN


def refused(ended: list[tuple[int, str, str]], code: int, *says: str) -> None:
    """Every host ended with that code, and with one line that says all that."""
    for host, (found, _, said) in enumerate(ended):
        lines = [line for line in said.splitlines() if "tpullm: " in line]
        assert found == code and len(lines) == 1, said
        assert lines[0].startswith(f"[host {host}] tpullm: " if host else "tpullm: ")
        assert all(word in lines[0] for word in says), lines[0]


@pytest.mark.ci
def test_hosts_of_different_recipes_are_refused(tiny_tokens):
    kept = (tiny_tokens / "recipe.yaml").read_text()
    ended = finish(start(2, "tpullm", "pretrain", "--run", tiny_tokens, own={1: ["--pretrain.steps", "31"]}))
    refused(ended, 2, "the recipe: host 1 (", "pretrain.steps 31, host 0 (", "has 30")
    assert (tiny_tokens / "recipe.yaml").read_text() == kept and not (tiny_tokens / "pretrain").exists()


@pytest.mark.ci
def test_when_a_host_is_killed_the_others_exit_at_once_with_a_line(tiny_tokens, killed=0):
    """After step 8 they wait: a training of more steps would be another program to compile."""
    command = ("tests.system.cluster.hanging_data", "pretrain", "--run", tiny_tokens)
    started = start(2, *command, "--mesh.fsdp", 2, devices=2)
    wait_for_save(started[0], tiny_tokens, 5)
    began = time.monotonic()
    started[killed].kill()
    left = started[1 - killed]
    _, said = left.communicate(timeout=100)
    assert time.monotonic() - began < 60
    assert left.returncode == TRY_AGAIN, said
    last = said.splitlines()[-1]
    assert f"tpullm: host {killed} (" in last and "stopped answering; give the same command again on all hosts" in last


@pytest.mark.slow  # `test_watchdog.py` has it in threads
def test_a_host_whose_data_hangs_is_named_and_ends_all(tiny_tokens):
    """Host 0 waits for it in a collective, without end. The patience is 3 s, and a step takes a tenth of one."""
    words = ("--mesh.fsdp", 2, "--pretrain.patience_minutes", 0.05)
    ended = finish(start(2, "tests.system.cluster.hanging_data", "pretrain", "--run", tiny_tokens, *words, devices=2))
    says = "after step 7 it is waiting for data, in feed.py line "
    refused(ended, TRY_AGAIN, "tpullm: host 1 (", "made no progress for 3", says, "; the stacks of all threads are in ")
    first, second = (tiny_tokens / "pretrain" / "stacks" / f"host-{host:04d}.txt" for host in range(2))
    assert "tpullm/training/loop.py" in first.read_text() and "phase='data'" not in first.read_text()
    assert "threading.Event().wait()" in second.read_text() and "step=7, phase='data'" in second.read_text()


@pytest.mark.ci
def test_a_signal_stops_all_hosts_after_one_step_and_another_layout_goes_on(tiny_run, tiny_tokens):
    """Against the uninterrupted run on one device: 1e-5 relative is some hundred float32 roundings in 30 steps."""
    command = ("tpullm", "pretrain", "--run", tiny_tokens)
    started = start(2, *command, "--mesh.fsdp", 2, devices=2)
    wait_for_save(started[0], tiny_tokens, 5)
    started[1].send_signal(signal.SIGTERM)
    ended = finish(started)
    refused(ended, 130, "pretrain: stopped and saved at step", "the same command resumes")
    assert len({said.splitlines()[-1].split("tpullm: ")[1] for _, _, said in ended}) == 1, "another step"
    assert main(["pretrain", "--run", str(tiny_tokens), "--mesh.fsdp=1"]) == 0
    assert_near(tiny_run / "pretrain", tiny_tokens / "pretrain")


def assert_near(one: Path, other: Path) -> None:
    """The same lines with losses within 1e-5; and how near, for whoever runs this with `-s`."""
    *lines, (whole, again) = zip(metrics(one), metrics(other), strict=True)
    np.testing.assert_allclose(again["losses"], whole["losses"], rtol=1e-5)
    far = max(abs(b["loss"] / a["loss"] - 1) for a, b in lines if "loss" in a)
    print(f"{other.name}: largest relative difference of a loss {far:.1e}")
    for a, b in lines:
        assert a["step"] == b["step"] and a["tokens"] == b["tokens"]
        if "loss" in a:
            np.testing.assert_allclose(b["loss"], a["loss"], rtol=1e-5)
        else:
            np.testing.assert_allclose(list(b["eval_loss"].values()), list(a["eval_loss"].values()), rtol=1e-5)
