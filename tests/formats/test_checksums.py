"""What a MODEL argument means. A checkpoint whose bits have flipped is noticed before it is used."""

import json
import shutil
import threading

import jax.numpy as jnp
import pytest

from tests.run.test_resume import assert_same_bits
from tpullm.cli.main import main
from tpullm.formats import checkpoints as checksums
from tpullm.formats.checkpoints import Checkpoints, CorruptSave
from tpullm.formats.models import find, made_by, steps
from tpullm.recipe.schema import CheckpointConfig
from tpullm.system import storage
from tpullm.system.errors import UserError


@pytest.fixture
def run(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def save(tmp_path):
    checkpoints = Checkpoints(tmp_path / "stage" / "checkpoints", CheckpointConfig())
    checkpoints.save(30, {"params": {"a": jnp.arange(1000.0), "b": jnp.ones((3, 4))}}, {"stage": "pretrain"})
    checkpoints.close()
    return tmp_path / "stage" / "checkpoints" / "30"


@pytest.fixture
def interrupted(run):
    """A run whose pretraining was killed after its last save."""
    (run / "pretrain" / "manifest.json").unlink()
    return run


def test_a_model_is_a_run_a_stage_or_a_checkpoint(tiny_run, run):
    assert find(run).stage == "talk"
    (run / "talk" / "manifest.json").unlink()
    assert find(run).stage == "pretrain"
    last = find(tiny_run / "pretrain")
    assert (last.stage, last.step, last.run) == ("pretrain", 30, tiny_run)
    assert last.tokenizer_path.exists() and last.recipe["name"] == "tiny"
    one = find(tiny_run / "pretrain" / "checkpoints" / "25")
    assert (one.step, one.config) == (25, last.config)
    assert one.config.width == 32 and one.config.vocabulary_size == 640
    # A save that did not finish is no checkpoint.
    checkpoints = run / "pretrain" / "checkpoints"
    (checkpoints / "30").rename(checkpoints / "30.orbax-checkpoint-tmp")
    assert find(run / "pretrain").step == 25
    with pytest.raises(UserError, match="no such file or folder"):
        find(checkpoints / "30")
    (checkpoints / "30").mkdir()
    with pytest.raises(UserError, match="not a checkpoint of tpullm"):
        find(checkpoints / "30")


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def largest(save):
    """The file with most of the arrays."""
    return max(save.rglob("d/*"), key=lambda path: path.stat().st_size)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("arrays", "the checkpoint is corrupt ("),
        ("arrays, and no checksums", "the checkpoint is corrupt (checksums.json is missing)"),
        ("a description that is no JSON", "not a checkpoint of tpullm ("),
    ],
)
def test_training_resumes_from_the_newest_whole_save(tiny_run, interrupted, capsys, what, says):
    """The corrupt one is kept, and neither resumed from again nor counted."""
    checkpoints = interrupted / "pretrain" / "checkpoints"
    if what.startswith("arrays"):
        flip(largest(checkpoints / "30"), 1000)
    if what.endswith("no checksums"):
        (checkpoints / "30" / checksums.FILE).unlink()
    if what.startswith("a description"):
        (checkpoints / "30" / "description" / "metadata").write_bytes(b"\xff{")
    assert main(["pretrain", "--run", str(interrupted)]) == 0
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if "corrupt" in line]
    assert line.startswith(f"{checkpoints / '30'}: {says}") and "resumes from an older" in line
    assert "step 25 of 30" in said
    assert_same_bits(tiny_run / "pretrain", interrupted / "pretrain")
    assert steps(checkpoints) == [25, 30]
    (kept,) = (interrupted / "replaced").iterdir()
    with pytest.raises(CorruptSave):
        checksums.verify(kept / "corrupt" / "30")


def test_without_a_whole_save_nothing_is_trained_over(interrupted, capsys):
    checkpoints = interrupted / "pretrain" / "checkpoints"
    for step in ("25", "30"):
        flip(largest(checkpoints / step))
    for _ in range(2):
        assert main(["pretrain", "--run", str(interrupted)]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"tpullm: {checkpoints / '25'}: the checkpoint is corrupt")
        assert "no other is left" in last
    assert steps(checkpoints) == [25]


def test_a_corrupt_model_is_not_used(run, capsys):
    """One that is named is an error; of a run the next older one is used, with a warning."""
    checkpoints = run / "pretrain" / "checkpoints"
    flip(largest(checkpoints / "30"))
    with pytest.raises(CorruptSave, match=r"30: the checkpoint is corrupt \(.*has changed\); use another one"):
        find(checkpoints / "30")
    assert find(run / "pretrain").step == 25
    assert "30: the checkpoint is corrupt" in capsys.readouterr().err
    with pytest.raises(CorruptSave, match="remove .*pretrain/manifest.json, and `tpullm run` makes it again"):
        made_by(run / "pretrain")
    flip(largest(checkpoints / "25"))
    with pytest.raises(CorruptSave, match="25: the checkpoint is corrupt"):
        find(run / "pretrain")


def test_every_flipped_byte_is_noticed(save):
    """Or it changes nothing: the time of a commit, and the text of a file that only has to exist."""
    checksums.verify(save)
    files = [path for path in save.rglob("*") if path.is_file()]
    assert len(files) > 8 and save / checksums.FILE in files
    for path in files:
        if path.name == checksums.COMMITTED:
            continue
        content = path.read_bytes()
        for place in {*range(0, len(content), 31), len(content) - 1}:
            flip(path, place)
            if path.name not in (checksums.METADATA, checksums.FILE) or without_times(path) != without_times(content):
                with pytest.raises(CorruptSave):
                    checksums.verify(save)
            path.write_bytes(content)
    checksums.verify(save)


def without_times(of):
    """JSON in a file or its bytes, without its times and its white space; nothing of what is none."""
    try:
        said = json.loads(of if isinstance(of, bytes) else of.read_bytes())
        return {key: value for key, value in said.items() if not key.endswith("_nsecs")}
    except ValueError:
        return None


def test_metadata_that_orbax_writes_late_is_waited_for(save):
    """It writes in the background; on a busy machine the checksums were made of what it had not finished."""
    metadata = save / checksums.METADATA
    whole = metadata.read_bytes()
    first = json.dumps(json.loads(whole) | {"item_handlers": None}).encode()
    for early in (first, b"", b'{"item'):
        metadata.write_bytes(early)
        later = threading.Timer(0.2, metadata.write_bytes, [whole])
        later.start()
        checksums.write(save)
        later.join()
        checksums.verify(save)


def test_a_missing_and_a_cut_file_are_noticed(save):
    checksums.verify_together(save)
    file = largest(save)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(CorruptSave, match=f"has {len(content) - 1:,} bytes instead of {len(content):,}"):
        checksums.verify(save)
    file.unlink()
    with pytest.raises(CorruptSave, match="is missing"):
        checksums.verify(save)
    with pytest.raises(CorruptSave, match="is missing"):
        checksums.verify_together(save)


def test_a_save_without_its_checksums_is_not_whole(save):
    """Nor is one with a file that they don't name: a flipped byte there would be other bits without a word."""
    noted = storage.read_json(save / checksums.FILE)
    name = largest(save).relative_to(save).as_posix()
    for left in [{}, {key: value for key, value in noted["files"].items() if key != name}]:
        storage.write_json(save / checksums.FILE, noted | {"files": left})
        with pytest.raises(CorruptSave, match=f"is not in {checksums.FILE}"):
            checksums.verify(save)
    (save / checksums.FILE).unlink()
    with pytest.raises(CorruptSave, match=f"{checksums.FILE} is missing"):
        checksums.verify(save)


def test_every_file_is_in_one_share(save):
    for path in [path for path in save.rglob("*") if path.is_file() and path.parent != save]:
        if path.name != checksums.COMMITTED:
            flip(path)
            assert sum(bool(checksums._first_damaged_file(save, share, 3)) for share in range(3)) == 1, path
            flip(path)


def test_on_gs_the_server_knows_the_checksums(save, bucket):
    """No object is read, and one that was written otherwise since is noticed."""
    for path in save.rglob("*"):
        if path.is_file():
            storage.copy(path, bucket / "30" / path.relative_to(save).as_posix())
    checksums.verify(bucket / "30")
    (bucket / "30" / checksums.FILE).unlink()
    checksums.write(bucket / "30")
    assert storage.read_json(bucket / "30" / checksums.FILE) == storage.read_json(save / checksums.FILE)
    flip(bucket / "30" / largest(save).relative_to(save).as_posix(), 100)
    with pytest.raises(CorruptSave, match="has changed"):
        checksums.verify(bucket / "30")
