"""Saves on the local disks of the hosts, between those in the run directory."""

import dataclasses
import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.formats.test_checksums import flip
from tests.run.test_resume import assert_same_bits
from tests.training.several_hosts import run
from tests.training.small import mesh
from tpullm.cli.main import main
from tpullm.formats import checkpoints
from tpullm.formats.local_saves import LocalSaves
from tpullm.formats.models import steps
from tpullm.model.mesh import make_mesh, named_sharding
from tpullm.recipe.schema import CheckpointConfig
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.cluster.place import find, take_flags

ABOUT = {"inputs": {"a": (1, 2)}, "horizons": [[0, 30]], "stage": "pretrain"}


def saved(folder, host=0):
    (training,) = folder.iterdir()
    return sorted(int(path.name) for path in (training / f"host-{host}").iterdir())


@pytest.mark.ci
def test_a_killed_training_resumes_from_the_newest_whole_save(tiny_run, tiny_tokens, tmp_path, monkeypatch, capsys):
    folder, save = tmp_path / "disk", LocalSaves.save
    settings = ["every_steps=0", "every_minutes=0", f"local={folder}", "local_every_steps=4", "local_every_minutes=0"]
    command = ["pretrain", "--run", str(tiny_tokens), *(f"--pretrain.checkpoint.{setting}" for setting in settings)]

    def killed(self, step, state):
        save(self, step, state)
        if step == 12:
            self.wait()
            raise KeyError("in place of a kill")

    with monkeypatch.context() as patch, pytest.raises(KeyError, match="in place of a kill"):
        patch.setattr(LocalSaves, "save", killed)
        main(command)
    assert saved(folder) == [4, 8, 12] and not steps(tiny_tokens / "pretrain" / "checkpoints")
    flip(next(folder.rglob("12/*.safetensors")), -5)
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "/12: the checkpoint is corrupt (shards.safetensors has changed): an older one is used" in said
    assert "resumes from the save of step 8 in" in said and "step 8 of 30" in said
    assert_same_bits(tiny_run / "pretrain", tiny_tokens / "pretrain")
    assert not list(folder.iterdir()), "a finished training needs none"


def state_of():
    """A state of several types, and its shapes with their shardings."""
    state = whole_state(mesh(), 0)
    return state, shapes_of(state)


def shapes_of(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


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
    shutil.rmtree(tmp_path / "pretrain")  # a stage that is made again takes no save of the one before
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


def test_it_is_time_after_minutes_or_steps_and_never_without_a_folder(tmp_path, monkeypatch):
    none = LocalSaves(tmp_path / "pretrain", CheckpointConfig(local_every_steps=1), ABOUT)
    assert none.newest({}, after=0) is None and none.asks() == [] and not none.due(1, {"local"})
    none.close(finished=True)
    assert not (tmp_path / "pretrain").exists()
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
    saves = LocalSaves(tmp_path / "pretrain", CheckpointConfig(local=str(tmp_path / "disk")), ABOUT)
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr("tpullm.formats.local_saves.save_file", full)
    saves.save(3, state_of()[0])
    saves.wait()
    assert "not saved at step 3 (no space left on the device" in capsys.readouterr().err
    assert saved(tmp_path / "disk") == []


@pytest.mark.ci
def test_all_hosts_resume_from_what_is_whole_on_every_disk(tmp_path):
    """Two hosts, two devices each."""
    ended = run(2, "tests.formats.test_local_saves", tmp_path, devices=4)
    results = [json.loads(out.splitlines()[-1]) for _, out, _ in ended]  # the lines before are of gloo
    assert results[0] == results[1] == {name: found for name, (_, _, found) in SCENARIOS.items()}
    said = ended[0][2]
    warned = [line for line in said.splitlines() if "corrupt" in line]
    places = [(line[:8], line.partition("/5: ")[0].rpartition("/")[2]) for line in warned[:2]]
    assert places == [("host 1 (", "host-1"), ("host 0 (", "host-0")]
    assert len(warned) == 3 and all(line.endswith(": an older one is used") for line in warned)
    assert "(steps 5, 4, 3) is whole on the disks of all hosts, so none is used" in said


# What each of several hosts does: the mesh, which saves on the hosts' disks are lost, and the step of the save that is
# restored, and whether all bits are the same. `~` in front of a pattern changes a bit in their shards instead, and `!`
# makes them of another start of the training.
DATA, FSDP = {"data": 2, "fsdp": 2}, {"fsdp": 4}
SCENARIOS = {
    "all there": (FSDP, [], [5, True]),
    "data over hosts": (DATA, [], [5, True]),
    "a disk is lost": (DATA, ["1/*/*"], None),
    "a wrong bit": (FSDP, ["~1/host-1/5"], [4, True]),
    "wrong bits": (FSDP, ["~0/host-0/5", "~1/host-1/4"], [3, True]),
    "a host has no newest": (FSDP, ["0/*/5"], [4, True]),
    "another start": (FSDP, ["!1/*/5"], [4, True]),
    "another number now": (FSDP, ["swap"], None),
}


def whole_state(mesh, seed):
    """Arrays of several types, all bits by chance, so with NaNs; on every host the same."""
    random, state = np.random.default_rng(seed), {}
    for name, dtype, shape, axes in (
        ("moments", "bfloat16", (3, 8, 16), ("layers", "mlp", "embed")),
        ("params", "float32", (16, 6), ("embed", "vocabulary")),
        ("scale", "float32", (5,), ("head",)),
        ("step", "int32", (), ()),
    ):
        itemsize = jax.numpy.dtype(dtype).itemsize
        whole = random.integers(0, 1 << 8 * itemsize, shape, f"u{itemsize}").view(dtype)
        state[name] = jax.make_array_from_callback(shape, named_sharding(mesh, *axes), whole.__getitem__)
    return state


def lose(disks, pattern):
    if pattern == "swap":  # the machines are other hosts now
        for one, other in (("0", "between"), ("1", "0"), ("between", "1")):
            (disks / one).rename(disks / other)
        return
    disk, _, rest = pattern.lstrip("~!").partition("/")
    for save in disks.glob(f"{disk}/*/{rest}"):
        if pattern.startswith("~"):
            flip(save / "shards.safetensors", -5)
        elif pattern.startswith("!"):
            about = storage.read_json(save / "description.json")
            storage.write_json(save / "description.json", about | {"start": "another"})
            checkpoints.write(save)
        else:
            shutil.rmtree(save)


def restored(disks, shape, lost):
    over, config = make_mesh(shape), CheckpointConfig(local=str(disks / str(hosts.index())))
    with jax.set_mesh(over):
        states = {step: whole_state(over, step) for step in (3, 4, 5)}
        saves = LocalSaves(disks / "pretrain", config, {})
        for step, state in states.items():
            saves.save(step, state)
        saves.wait()
        hosts.barrier("saved")
        hosts.on_first("lost", lambda: [lose(disks, pattern) for pattern in lost])
        saves = LocalSaves(disks / "pretrain", config, {})
        target = shapes_of(states[3])
        found = saves.newest(target, after=2)
        if found is None:
            return None
        mine, whole = (
            [np.asarray(part.data).tobytes() for leaf in jax.tree.leaves(state) for part in leaf.addressable_shards]
            for state in (saves.restore(found, target), states[found])
        )
        return found, mine == whole


def main_of_a_host() -> None:
    flags, (folder,) = take_flags(sys.argv[1:])
    hosts.join(find(flags, {}))
    results = {}
    for name, scenario in SCENARIOS.items():
        print(f"-- {name}", file=sys.stderr)
        disks = Path(folder) / name
        hosts.on_first("folders", disks.mkdir)
        results[name] = restored(disks, *scenario[:2])
    print(json.dumps(results))
    hosts.leave()


if __name__ == "__main__":
    try:
        main_of_a_host()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the exit handlers would wait for the other hosts
