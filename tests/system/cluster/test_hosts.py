"""Several hosts as a user has them: the same command on each, and one of them is wrong, stopped or killed."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.run.test_resume import assert_same_bits, metrics, wait_for_save
from tests.system.cluster.strangers import IMPOSTOR, KINDS, knocking
from tests.training.several_hosts import finish, run, start
from tpullm.cli.main import main
from tpullm.run import hours
from tpullm.system import storage
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
def test_hosts_of_different_code_are_refused(tiny_tokens, tmp_path):
    shutil.copytree(ROOT / "tpullm", tmp_path / "other" / "tpullm")
    with open(tmp_path / "other" / "tpullm" / "data" / "mixture.py", "a") as file:
        file.write("# another\n")
    started = start(2, "tpullm", "pretrain", "--run", tiny_tokens, folders={1: tmp_path / "other"})
    refused(finish(started), 2, "the code: host 1 (", "tpullm/data/mixture.py")


@pytest.mark.ci
def test_a_host_that_fails_ends_all(tiny_tokens, tmp_path):
    """Host 1 has another run directory, as when the folder is not shared."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(tiny_tokens / "recipe.yaml", elsewhere)
    ended = finish(start(2, "tpullm", "pretrain", "--run", tiny_tokens, own={1: ["--run", elsewhere]}))
    assert [code for code, _, _ in ended] == [2, 2]
    assert ended[0][2].splitlines()[-1].startswith("tpullm: host 1 (") and "not made yet" in ended[0][2]
    assert ended[1][2].splitlines()[-1].startswith("[host 1] tpullm: ") and "not made yet" in ended[1][2]


@pytest.mark.ci
@pytest.mark.parametrize("killed", [1, 0])
def test_when_a_host_is_killed_the_others_exit_at_once_with_a_line(tiny_tokens, killed):
    """After step 8 they wait: a training of more steps would be another program to compile."""
    started = start(
        2, "tests.system.cluster.hanging_data", "pretrain", "--run", tiny_tokens, "--mesh.fsdp", 2, devices=2
    )
    wait_for_save(started[0], tiny_tokens, 5)
    began = time.monotonic()
    started[killed].kill()
    left = started[1 - killed]
    _, said = left.communicate(timeout=100)
    assert time.monotonic() - began < 60
    assert left.returncode == TRY_AGAIN, said
    last = said.splitlines()[-1]
    assert f"tpullm: host {killed} (" in last and "stopped answering; the same command on all hosts resumes" in last


@pytest.mark.ci  # `test_watchdog.py` has it in threads
def test_a_host_whose_data_hangs_is_named_and_ends_all(tiny_tokens):
    """Host 0 waits for it in a collective, without end. The patience is 3 s, and a step takes a tenth of one."""
    words = ("--mesh.fsdp", 2, "--pretrain.patience_minutes", 0.05)
    ended = finish(start(2, "tests.system.cluster.hanging_data", "pretrain", "--run", tiny_tokens, *words, devices=2))
    says = "after step 7 it is waiting for data, in feed.py line "
    refused(ended, TRY_AGAIN, "tpullm: host 1 (", "made no progress for 3", says, "; the stacks of all threads are in ")
    first, second = (tiny_tokens / "pretrain" / "stacks" / f"host-{host:04d}.txt" for host in range(2))
    assert "tpullm/training/loop.py" in first.read_text() and "phase='data'" not in first.read_text()
    assert "threading.Event().wait()" in second.read_text() and "step=7, phase='data'" in second.read_text()


@pytest.mark.slow  # a minute of waiting; `test_channel.py` has a short pause
@pytest.mark.parametrize("hosts", [2, 4])
def test_a_host_that_is_paused_for_a_minute_is_named_and_waited_for(tiny_tokens, tmp_path, hosts):
    """As when its machine is moved. It changes no bit, nobody takes it for gone, and it is one line."""
    runs = [tmp_path / name for name in ("alone", "paused")]
    for folder in runs:
        shutil.copytree(tiny_tokens, folder)
        started = start(hosts, "tpullm", "pretrain", "--run", folder, "--mesh.fsdp", 4, devices=4)
        if folder.name == "paused":
            wait_for_save(started[0], folder, 5)
            started[-1].send_signal(signal.SIGSTOP)
            time.sleep(60)
            started[-1].send_signal(signal.SIGCONT)
        ended = finish(started)
        assert [code for code, _, _ in ended] == [0] * hosts, ended[0][2]
        said = [line for line in ended[0][2].splitlines() if "has not answered for 30 s; all hosts wait for it" in line]
        assert [line.startswith(f"host {hosts - 1} (") for line in said] == [True] * (folder.name == "paused")
        assert not any("has not answered" in text or "no progress" in text for _, _, text in ended[1:])
    assert_same_bits(*(folder / "pretrain" for folder in runs))


@pytest.mark.slow  # two minutes
def test_a_clock_that_is_set_an_hour_on_and_back_changes_nothing(tiny_tokens, tmp_path, monkeypatch):
    """Debian's `faketime` sets it for the hosts, in C++ too; JAX's own heartbeats went by it, and ended all hosts."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        pytest.skip("there is no libfaketime")
    clock = tmp_path / "clock"
    variables = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}

    def set_clock(text):
        storage.write_text(clock, text)  # in one moment: libfaketime ends a process that finds the file empty

    set_clock("+0\n")
    for name, seconds in {"alone": 0, "set": 3}.items():
        shutil.copytree(tiny_tokens, folder := tmp_path / name)
        with monkeypatch.context() as patched:
            patched.setenv("SECONDS_OF_A_STEP", str(seconds))
            for key, value in (variables | {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}).items() if seconds else ():
                patched.setenv(key, value)
            started = start(2, "tests.run.slow_steps", "pretrain", "--run", folder, "--mesh.fsdp", 4, devices=4)
        if seconds:
            wait_for_save(started[0], folder, 5)
            set_clock("+3600\n")
            time.sleep(60)
            set_clock("+0\n")
        ended = finish(started)
        assert [code for code, _, _ in ended] == [0, 0], ended[0][2]
        found = hours.summary(hours.read(folder / "pretrain" / hours.FILE))
        assert min(found.values()) >= 0 and sum(found.values()) < 1000
    assert_same_bits(tmp_path / "alone" / "pretrain", tmp_path / "set" / "pretrain")


@pytest.mark.slow
def test_a_training_with_strangers_at_its_port_ends_with_the_same_bits(tiny_tokens, tmp_path, monkeypatch):
    """Host 1 is held back until all strangers have spoken."""
    monkeypatch.setenv("TPULLM_HOSTS_SECRET", "a secret of all hosts")
    runs = [tmp_path / name for name in ("alone", "among strangers")]
    for number, folder in enumerate(runs):
        shutil.copytree(tiny_tokens, folder)
        started = start(2, "tpullm", "pretrain", "--run", folder, "--mesh.fsdp", 4, devices=4)
        words = started[0].args
        port = int(words[words.index("--hosts.coordinator") + 1].rpartition(":")[2])
        kinds = random.Random(0).choices([*KINDS, IMPOSTOR], k=100 * number)
        started[1].send_signal(signal.SIGSTOP)
        with knocking(port, kinds) as spoken:
            while len(spoken) < len(kinds) - kinds.count("a byte at a time") and started[0].poll() is None:
                time.sleep(0.01)
            started[1].send_signal(signal.SIGCONT)
            ended = finish(started)
        assert [code for code, _, _ in ended] == [0, 0], ended[0][2]
        assert ("without the secret; dropped" in ended[0][2]) == bool(number)
    assert_same_bits(*(folder / "pretrain" for folder in runs))


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


@pytest.mark.slow
def test_a_run_moves_between_layouts_and_one_layout_gives_the_same_bits(tiny_run, tiny_tokens, tmp_path):
    """Interrupted on 1 x 8, gone on with on 4 x 2, interrupted, and back; and 4 x 2 interrupted twice, to the bit."""
    # A run remembers its mesh, so each says both.
    one, four = (1, "--mesh.fsdp", 4, "--mesh.tensor", 2), (4, "--mesh.fsdp", 8, "--mesh.tensor", 1)
    for name, layouts in {"whole": [four], "same": [four, four], "moved": [one, four, one]}.items():
        shutil.copytree(tiny_tokens, tmp_path / name)
        for number, (hosts, *mesh) in enumerate(layouts, start=1):
            started = start(hosts, "tpullm", "pretrain", "--run", tmp_path / name, *mesh)
            if number < len(layouts):
                wait_for_save(started[0], tmp_path / name, 10 * number)
                started[-1].send_signal(signal.SIGINT)
            ended = finish(started)
            codes = {code for code, _, _ in ended}
            assert codes == {130 if number < len(layouts) else 0}, ended[0][2]
    assert_same_bits(tmp_path / "whole" / "pretrain", tmp_path / "same" / "pretrain")
    assert_near(tiny_run / "pretrain", tmp_path / "moved" / "pretrain")


@pytest.mark.slow
def test_all_stages_on_two_hosts(tiny_run, tmp_path):
    """What is made by the first host alone, and what is made together, is what one host makes."""
    made = tmp_path / "made"
    run(2, "tpullm", "run", "--config", ROOT / "tests" / "tiny.yaml", "--run", made, "--mesh.fsdp", 4, devices=4)
    assert_near(tiny_run / "pretrain", made / "pretrain")
    assert_near(tiny_run / "talk", made / "talk")
    one, two = (json.loads((folder / "evaluate" / "results.json").read_text()) for folder in (tiny_run, made))
    assert one["loss_nats_per_token"] == pytest.approx(two["loss_nats_per_token"], rel=1e-5)
    assert (made / "report.html").exists()
