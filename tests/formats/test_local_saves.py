"""Saves on the local disks of the hosts, between those in the run directory."""

import dataclasses
import functools
import json
import re
import shutil
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import copy_tokens
from tests.run.test_resume import assert_same_bits
from tests.training.several_hosts import finish, run, start
from tests.training.small import ARCHITECTURE, mesh
from tpullm.cli.main import main
from tpullm.formats.local_saves import LocalSaves
from tpullm.formats.models import steps
from tpullm.recipe.schema import CheckpointConfig, OptimizerConfig
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.state import abstract, initial

ABOUT = {"inputs": {"a": (1, 2)}, "horizons": [[0, 30]], "stage": "pretrain"}


class Killed(Exception):
    """In place of a kill."""


@pytest.fixture
def killed_at(monkeypatch):
    """A training is killed when it has saved that step locally."""

    save = LocalSaves.save

    def kill(step):
        def saved(self, at, state):
            save(self, at, state)
            if at == step:
                self.wait()
                raise Killed

        monkeypatch.setattr(LocalSaves, "save", saved)

    return kill


def options(folder, *more):
    rare = ["--pretrain.checkpoint.every_steps=0", "--pretrain.checkpoint.every_minutes=0"]
    local = [f"--pretrain.checkpoint.local={folder}", "--pretrain.checkpoint.local_every_steps=4"]
    return [*rare, *local, "--pretrain.checkpoint.local_every_minutes=0", *more]


def saved(folder, host=0):
    """The steps of the local saves of a host."""
    (training,) = folder.iterdir()
    return sorted(int(path.name) for path in (training / f"host-{host}").iterdir())


def test_a_killed_training_resumes_from_the_newest_whole_local_save(tiny_run, tiny_tokens, tmp_path, killed_at, capsys):
    command, folder = ["pretrain", "--run", str(tiny_tokens), *options(tmp_path / "disk")], tmp_path / "disk"
    killed_at(12)
    with pytest.raises(Killed):
        main(command)
    assert saved(folder) == [4, 8, 12] and not steps(tiny_tokens / "pretrain" / "checkpoints")
    shards = next(folder.rglob("12/*.safetensors"))
    content = bytearray(shards.read_bytes())
    content[-5] ^= 4
    shards.write_bytes(content)
    capsys.readouterr()
    killed_at(None)
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "/12: the checkpoint is corrupt (shards.safetensors has changed): an older one is used" in said
    assert "resumes from the save of step 8 in" in said and "step 8 of 30" in said
    assert_same_bits(tiny_run / "pretrain", tiny_tokens / "pretrain")
    assert not list(folder.iterdir()), "a finished training needs none"


@pytest.mark.ci
def test_a_newer_checkpoint_in_the_run_comes_first(tiny_run, tiny_tokens, tmp_path, killed_at, capsys):
    folder = tmp_path / "disk"
    command = ["pretrain", "--run", str(tiny_tokens), *options(folder, "--pretrain.checkpoint.every_steps=10")]
    killed_at(12)
    with pytest.raises(Killed):
        main(command)
    shutil.rmtree(next(folder.rglob("12")))
    assert saved(folder) == [4, 8]
    capsys.readouterr()
    killed_at(None)
    assert main(command) == 0
    assert "step 10 of 30" in capsys.readouterr().err
    assert_same_bits(tiny_run / "pretrain", tiny_tokens / "pretrain")


@pytest.mark.ci
def test_a_training_that_is_made_again_takes_no_save_of_the_one_before(tiny_tokens, tmp_path, killed_at, capsys):
    """Neither with the same settings, after its folder was removed, nor with others."""
    folder = tmp_path / "disk"
    command = ["pretrain", "--run", str(tiny_tokens), *options(folder)]
    killed_at(4)
    for more in (), ("--pretrain.optimizer.peak_lr=0.02",):
        with pytest.raises(Killed):
            main([*command, *more])
        assert saved(folder) == [4]
        if not more:
            shutil.rmtree(tiny_tokens / "pretrain")
    assert "resumes from the save" not in capsys.readouterr().err


def state_of(on):
    optimizer = make_optimizer(OptimizerConfig(moments="bfloat16"), 10, ARCHITECTURE.axes, jnp.dtype("float32"))
    target = abstract(ARCHITECTURE, optimizer, on)
    with jax.set_mesh(on):
        make = jax.jit(
            lambda key: initial(ARCHITECTURE, optimizer, key),
            out_shardings=jax.tree.map(lambda leaf: leaf.sharding, target),
        )
        return make(jax.random.key(0)), target


def test_a_save_has_every_bit_of_every_type_and_shard(tmp_path):
    config = CheckpointConfig(local=str(tmp_path / "disk"))
    state, target = state_of(mesh())
    saves = LocalSaves(tmp_path / "pretrain", config, ABOUT)
    for step in (2, 3, 4, 5):
        saves.save(step, state)
    saves.wait()
    again = LocalSaves(tmp_path / "pretrain", config, ABOUT)
    assert saved(tmp_path / "disk") == [3, 4, 5] and again.newest(target, after=4).step == 5
    assert again.newest(target, after=5) is None
    restored = again.restore(again.newest(target, after=0), target)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert a.dtype == b.dtype and a.sharding == b.sharding and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    other = LocalSaves(tmp_path / "pretrain", config, ABOUT | {"horizons": [[0, 31]]})
    assert other.newest(target, after=0) is None
    again.forget(after=4)
    shutil.rmtree(next((tmp_path / "disk").glob("*/*/3")))
    assert saved(tmp_path / "disk") == [4] and again.newest(target, after=0).step == 4
    next((tmp_path / "disk").rglob("4/shards.safetensors")).write_bytes(b"no header")
    assert again.newest(target, after=0) is None
    saves.save(7, state)
    saves.wait()
    next((tmp_path / "disk").rglob("7/description.json")).write_text("no JSON")
    assert again.newest(target, after=0) is None


def test_a_step_that_is_computed_meanwhile_does_not_reach_the_save(tmp_path, monkeypatch):
    """Its state is donated while the save waits to be written."""
    state, target = state_of(mesh())
    before = jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), jax.tree.map(jnp.copy, state))
    saves = LocalSaves(tmp_path / "pretrain", CheckpointConfig(local=str(tmp_path / "disk")), ABOUT)
    go, write = [], LocalSaves._write

    def late(self, step, shards):
        while not go:
            time.sleep(0.01)
        write(self, step, shards)

    monkeypatch.setattr(LocalSaves, "_write", late)
    saves.save(3, state)
    for _ in range(3):
        state = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)(state)
    jax.block_until_ready(state)
    go.append(True)
    saves.wait()
    restored = saves.restore(saves.newest(target, after=0), target)
    assert jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), restored) == before


def test_without_a_folder_there_is_none(tmp_path):
    saves = LocalSaves(tmp_path / "pretrain", CheckpointConfig(local_every_steps=1), ABOUT)
    assert saves.newest({}, after=0) is None and saves.asks() == [] and not saves.due(1, {"local"})
    saves.close(finished=True)
    assert not (tmp_path / "pretrain").exists()


def test_it_is_time_after_minutes_or_steps(tmp_path, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr("tpullm.formats.local_saves.time", clock)
    config = CheckpointConfig(local=str(tmp_path / "disk"), local_every_minutes=2, local_every_steps=4)
    saves = LocalSaves(tmp_path / "pretrain", config, ABOUT)
    assert [step for step in range(1, 10) if saves.due(step, set())] == [4, 8]
    assert saves.due(5, {"local"}) and not saves.due(5, {"save"})
    clock.now += 119
    assert saves.asks() == []
    clock.now += 1
    assert saves.asks() == ["local"]
    saves.save(5, state_of(mesh())[0])
    assert saves.asks() == []
    saves.close(finished=False)
    assert saved(tmp_path / "disk") == [5]
    saves.close(finished=True)
    assert not list((tmp_path / "disk").iterdir())
    by_steps = LocalSaves(tmp_path / "pretrain", dataclasses.replace(config, local_every_minutes=0), ABOUT)
    clock.now += 1e6
    assert by_steps.asks() == []


def test_a_full_disk_is_a_line_and_no_end(tmp_path, monkeypatch, capsys):
    state, _ = state_of(mesh())
    saves = LocalSaves(tmp_path / "pretrain", CheckpointConfig(local=str(tmp_path / "disk")), ABOUT)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tpullm.formats.local_saves.save_file", full)
    saves.save(3, state)
    saves.wait()
    assert "not saved at step 3 (no space left on the device" in capsys.readouterr().err
    assert saved(tmp_path / "disk") == []


def test_hosts_get_from_each_other_what_their_disks_lost(tmp_path):
    """Two hosts, two devices each: the step that is restored, how many shards move, and whether all bits are right."""
    ended = run(2, "tests.formats.hosts_with_disks", tmp_path, devices=4)
    results = [json.loads(out.splitlines()[-1]) for _, out, _ in ended]  # the lines before are of gloo
    assert results[0] == results[1]
    assert results[0] == {
        "all there": [5, 0, True],
        "data over hosts": [5, 6, True],
        "data over hosts, no disk": None,
        "data over hosts, a wrong bit": [5, 6, True],
        "fsdp over hosts": None,
        "fsdp over hosts, copies": [5, 6, True],
        "fsdp over hosts, copies, a wrong bit": [5, 6, True],
        "fsdp over hosts, wrong bits": [4, 0, True],
        "fsdp over hosts, an old copy": [4, 6, True],
        "fsdp over hosts, another start": [4, 0, True],
        "another number now": [5, 0, True],
    }
    warned = [line for line in ended[0][2].splitlines() if "corrupt" in line]
    assert [(line[:8], line.partition("/5: ")[0].rpartition("/")[2], line.rpartition(": ")[2]) for line in warned] == [
        ("host 1 (", "host-1", "the same shards on another disk are used"),
        ("host 0 (", "host-0", "the same shards on another disk are used"),
        ("host 0 (", "host-0", "the same shards on another disk are used"),  # before the copy is read
        ("host 1 (", "host-1-copies", "an older one is used"),
    ]
    assert "(steps 5, 4, 3) all shards are whole on some disk, so none is used; checkpoint.local_copies" in ended[0][2]


@pytest.mark.slow
def test_four_hosts_get_from_each_other_what_their_disks_lost(tmp_path):
    """Two devices each. Of `both over hosts`, a host alone has nothing, so there are no copies."""
    ended = run(4, "tests.formats.hosts_with_disks", tmp_path, devices=8)
    results = [json.loads(out.splitlines()[-1]) for _, out, _ in ended]  # the lines before are of gloo
    assert results == [results[0]] * 4
    assert results[0] == {
        "data over hosts": [5, 18, True],
        "both over hosts": [5, 12, True],
        "both over hosts, both copies": None,
        "fsdp over hosts, copies": [5, 12, True],
        "fsdp over hosts, both copies": None,
    }


@pytest.fixture(scope="module")
def uninterrupted(tiny_run, tmp_path_factory):
    """The pretraining of so many hosts with that mesh, which nobody killed; made once."""

    @functools.cache
    def of(count, *mesh):
        tokens = copy_tokens(tiny_run, tmp_path_factory.mktemp("whole") / "tiny")
        run(count, "tpullm", "pretrain", "--run", tokens, *mesh, devices=4)
        return tokens / "pretrain"

    return of


def newest_of(disks):
    """The newest local save of each host, 0 if it has none."""
    return [max([0, *(int(path.name) for path in disk.glob("*/host-?/[0-9]*"))]) for disk in disks]


FSDP, DATA = ("--mesh.fsdp", 4), ("--mesh.data", 2, "--mesh.fsdp", 2)
COPIES = "--pretrain.checkpoint.local_copies=true"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "mesh", "more", "lost", "from_disks"),
    [
        pytest.param(2, FSDP, [], [], True, id="nothing lost"),
        pytest.param(2, FSDP, [], [1], False, id="all from the run"),
        pytest.param(2, FSDP, [COPIES], [1], True, id="fsdp, copies"),
        pytest.param(2, DATA, [], [1], True, id="data"),
        pytest.param(4, FSDP, [COPIES], [2], True, id="four hosts, fsdp, copies"),
        pytest.param(4, DATA, [], [0, 3], True, id="four hosts, data"),
    ],
)
def test_killed_hosts_whose_disks_are_lost_end_with_the_same_bits(
    uninterrupted, tiny_tokens, tmp_path, count, mesh, more, lost, from_disks
):
    """Each host has a disk of its own, since the folder is relative. The run has the checkpoint of step 20."""
    disks = {host: tmp_path / f"disk of {host}" for host in range(count)}
    for disk in disks.values():
        disk.mkdir()
    saving = ["every_steps=20", "every_minutes=0", "local=saves", "local_every_steps=1", "local_every_minutes=0"]
    command = ["tpullm", "pretrain", "--run", tiny_tokens, *mesh, *more]
    command += [f"--pretrain.checkpoint.{key}" for key in saving]
    started = start(count, *command, devices=4, within=disks)
    while min(newest_of(disk / "saves" for disk in disks.values())) < 22:
        assert started[0].poll() is None
        time.sleep(0.01)
    for process in started:
        process.kill()
    finish(started)
    assert steps(tiny_tokens / "pretrain" / "checkpoints") == [20]
    for host in lost:
        shutil.rmtree(disks[host] / "saves")
    left = newest_of(disks[host] / "saves" for host in disks if host not in lost)
    said = run(count, *command, devices=4, within=disks)[0][2]
    (begun,) = re.findall(r"step (\d+) of 30", said)
    # A host may have been killed between its own shards and its copies.
    assert int(begun) in (range(min(left) - 1, max(left) + 1) if from_disks else [20]), said
    assert ("resumes from the save of step" in said) == from_disks
    assert ("shards from the disks of others" in said) == bool(from_disks and lost)
    assert ("checkpoint.local_copies has another host keep a copy" in said) != from_disks
    assert_same_bits(uninterrupted(count, *mesh), tiny_tokens / "pretrain")
    assert not [left for disk in disks.values() for left in disk.glob("saves/*")], "a finished training needs none"
