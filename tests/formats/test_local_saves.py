"""Saves on the local disks of the hosts, between those in the run directory."""

import dataclasses
import json
import shutil
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.run.test_resume import assert_same_bits
from tests.training.several_hosts import run
from tests.training.small import ARCHITECTURE, mesh
from tpullm.cli.main import main
from tpullm.formats.local_saves import LocalSaves
from tpullm.formats.models import steps
from tpullm.recipe.schema import CheckpointConfig, OptimizerConfig
from tpullm.training.optimizer.chain import make_optimizer
from tpullm.training.step import abstract_state

ABOUT = {"inputs": {"a": (1, 2)}, "horizons": [[0, 30]], "stage": "pretrain"}


class Killed(Exception):
    """In place of a kill."""


def saved(folder, host=0):
    """The steps of the local saves of a host."""
    (training,) = folder.iterdir()
    return sorted(int(path.name) for path in (training / f"host-{host}").iterdir())


@pytest.mark.ci
def test_a_killed_training_resumes_from_the_newest_whole_local_save(
    tiny_run, tiny_tokens, tmp_path, monkeypatch, capsys
):
    folder, save = tmp_path / "disk", LocalSaves.save
    settings = ["every_steps=0", "every_minutes=0", f"local={folder}", "local_every_steps=4", "local_every_minutes=0"]
    command = ["pretrain", "--run", str(tiny_tokens), *(f"--pretrain.checkpoint.{setting}" for setting in settings)]

    def killed(self, step, state):
        save(self, step, state)
        if step == 12:
            self.wait()
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(LocalSaves, "save", killed)
        main(command)
    assert saved(folder) == [4, 8, 12] and not steps(tiny_tokens / "pretrain" / "checkpoints")
    shards = next(folder.rglob("12/*.safetensors"))
    content = bytearray(shards.read_bytes())
    content[-5] ^= 4
    shards.write_bytes(content)
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "/12: the checkpoint is corrupt (shards.safetensors has changed): an older one is used" in said
    assert "resumes from the save of step 8 in" in said and "step 8 of 30" in said
    assert_same_bits(tiny_run / "pretrain", tiny_tokens / "pretrain")
    assert not list(folder.iterdir()), "a finished training needs none"


def state_of():
    """Of a training: a state of several types, and its shapes with their shardings."""
    optimizer = make_optimizer(OptimizerConfig(moments="bfloat16"), 10, ARCHITECTURE.axes, jnp.dtype("float32"))
    target, random = abstract_state(ARCHITECTURE, optimizer, mesh()), np.random.default_rng(0)
    made = lambda leaf: jax.device_put(random.normal(0, 9, leaf.shape).astype(leaf.dtype), leaf.sharding)  # noqa: E731
    return jax.tree.map(made, target), target


def test_a_save_has_every_bit_of_every_type_and_shard(tmp_path, capsys):
    config = CheckpointConfig(local=str(tmp_path / "disk"))
    state, target = state_of()
    saves = LocalSaves(tmp_path / "pretrain", config, ABOUT)
    for step in (2, 3, 4, 5):
        saves.save(step, state)
    saves.wait()
    again = LocalSaves(tmp_path / "pretrain", config, ABOUT)
    assert saved(tmp_path / "disk") == [3, 4, 5] and again.newest(target, after=4) == 5
    assert again.newest(target, after=5) is None
    restored = again.restore(again.newest(target, after=0), target)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert a.dtype == b.dtype and a.sharding == b.sharding and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    other = LocalSaves(tmp_path / "pretrain", config, ABOUT | {"horizons": [[0, 31]]})
    assert other.newest(target, after=0) is None
    longer = jax.ShapeDtypeStruct((2,), jnp.int32, sharding=target["step"].sharding)
    assert again.newest(target | {"step": longer}, after=0) is None
    assert "lacks the shard ['step'] of 2: 0-2; it is of another mesh" in capsys.readouterr().err
    again.forget(after=4)
    shutil.rmtree(next((tmp_path / "disk").glob("*/*/3")))
    assert saved(tmp_path / "disk") == [4] and again.newest(target, after=0) == 4
    next((tmp_path / "disk").rglob("4/shards.safetensors")).write_bytes(b"no header")
    assert again.newest(target, after=0) is None
    saves.save(7, state)
    saves.wait()
    next((tmp_path / "disk").rglob("7/description.json")).write_text("no JSON")
    assert again.newest(target, after=0) is None


def test_a_stage_that_is_made_again_takes_no_save_of_the_one_before(tmp_path):
    config, (state, target) = CheckpointConfig(local=str(tmp_path / "disk")), state_of()
    saves = LocalSaves(tmp_path / "pretrain", config, ABOUT)
    saves.save(4, state)
    saves.wait()
    shutil.rmtree(tmp_path / "pretrain")
    assert LocalSaves(tmp_path / "pretrain", config, ABOUT).newest(target, after=0) is None
    assert saved(tmp_path / "disk") == []


def test_a_step_that_is_computed_meanwhile_does_not_reach_the_save(tmp_path, monkeypatch):
    """Its state is donated while the save waits to be written."""
    state, target = state_of()
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
    saves.save(5, state_of()[0])
    assert saves.asks() == []
    saves.close(finished=False)
    assert saved(tmp_path / "disk") == [5]
    saves.close(finished=True)
    assert not list((tmp_path / "disk").iterdir())
    by_steps = LocalSaves(tmp_path / "pretrain", dataclasses.replace(config, local_every_minutes=0), ABOUT)
    clock.now += 1e6
    assert by_steps.asks() == []


def test_a_full_disk_is_a_line_and_no_end(tmp_path, monkeypatch, capsys):
    state, _ = state_of()
    saves = LocalSaves(tmp_path / "pretrain", CheckpointConfig(local=str(tmp_path / "disk")), ABOUT)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tpullm.formats.local_saves.save_file", full)
    saves.save(3, state)
    saves.wait()
    assert "not saved at step 3 (no space left on the device" in capsys.readouterr().err
    assert saved(tmp_path / "disk") == []


@pytest.mark.ci
def test_all_hosts_resume_from_what_is_whole_on_every_disk(tmp_path):
    """Two hosts, two devices each: the step that is restored, and whether all bits are right."""
    ended = run(2, "tests.formats.hosts_with_disks", tmp_path, devices=4)
    results = [json.loads(out.splitlines()[-1]) for _, out, _ in ended]  # the lines before are of gloo
    assert results[0] == results[1]
    assert results[0] == {
        "all there": [5, True],
        "data over hosts": [5, True],
        "a disk is lost": None,
        "a wrong bit": [4, True],
        "wrong bits": [3, True],
        "a host has no newest": [4, True],
        "another start": [4, True],
        "another number now": None,
    }
    said = ended[0][2]
    warned = [line for line in said.splitlines() if "corrupt" in line]
    assert [(line[:8], line.partition("/5: ")[0].rpartition("/")[2]) for line in warned[:2]] == [
        ("host 1 (", "host-1"),
        ("host 0 (", "host-0"),
    ]
    assert len(warned) == 3 and all(line.endswith(": an older one is used") for line in warned)
    assert "(steps 5, 4, 3) is whole on the disks of all hosts, so none is used" in said
