"""A name that somebody else chose never leaves its folder, and a file that is none is never opened."""

import os
import resource
import stat

import pytest

from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.storage import copies, gcs
from tpullm.system.storage.foreign import check_names, writable_by_others


def test_names_in_a_folder_are_kept_and_those_that_lead_out_of_it_or_are_file_and_folder_are_refused():
    check_names(["a", "a.b/c", "..a", "a..", "b/..c/d", "猫/犬", "x" * 255, "a b\n"], "listing")
    for name in ("../x", "a/../../x", "/a", "a//b", "", "a/", "./a", "..", ".", "a\0b", "a/b\ud800", "x" * 256):
        with pytest.raises(UserError, match="^listing: .* rename it where it comes from$"):
            check_names(["good", name], "listing")
    for names in (["a", "a/b"], ["a/b/c", "a/b"], ["x/y", "x/y/z", "x"]):
        with pytest.raises(UserError, match="is a file and the folder of"):
            check_names(names, "listing")


def listed(monkeypatch, folder, names):
    """A listing of a bucket with these objects, as a server sends it that somebody else filled."""
    objects = {name: (folder / "config.json").blob() for name in names}
    monkeypatch.setattr(gcs.BucketPath, "listed", lambda self, **_: (objects, set()))
    fetched = []
    monkeypatch.setattr(gcs, "_for_each_object", lambda work, names: fetched.extend(names))
    return fetched


@pytest.mark.parametrize("name", ["../../x", "a/../../../x", "/absolute", "sub//x", "config.json/x"])
def test_an_object_is_never_written_outside_the_copy(bucket, monkeypatch, tmp_path, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    storage.write_text(bucket / "model" / "config.json", "{}")
    fetched = listed(monkeypatch, bucket / "model", ["config.json", name])
    with pytest.raises(UserError, match=f"^{bucket}/model: '{name.split('/x')[0]}"):
        storage.local_copy(bucket / "model")
    assert fetched == []
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {copies.LOCK}


def test_an_object_that_is_named_like_the_folder_above_is_refused(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="does not stay in its folder"):
        storage.local_copy(gcs.BucketPath(f"{bucket}/model/.."))
    listed(monkeypatch, bucket, ["a", ".."])
    with pytest.raises(UserError, match="does not stay in its folder"):
        list(bucket.iterdir())


@pytest.mark.parametrize("above", ["", "objects", "objects/COPY"])
@pytest.mark.parametrize("how", ["mode", "owner"])
def test_a_copy_that_others_may_have_written_is_not_used(bucket, monkeypatch, tmp_path, above, how):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    storage.write_text(bucket / "a", "1")
    copied = storage.local_copy(bucket / "a")
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in (tmp_path / "tpullm", copied.parents[1]))
    place = tmp_path / "tpullm" / above.replace("COPY", copied.parents[1].name)
    if how == "mode":
        place.chmod(0o770)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    with pytest.raises(UserError, match="no copy of .* can be trusted there; set XDG_CACHE_HOME"):
        storage.local_copy(bucket / "a")


def test_a_cache_in_a_folder_of_all_users_needs_its_sticky_bit(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    assert "can be written by other users" in storage.make_private(storage.cache_folder("x"))
    (tmp_path / "cache").chmod(0o1777)
    assert storage.make_private(storage.cache_folder("x")) == ""


def test_who_may_write_is_told_by_the_mode(tmp_path):
    told = f"{tmp_path} can be written by other users"
    for mode, expected in ((0o700, ""), (0o755, ""), (0o775, told), (0o757, told)):
        tmp_path.chmod(mode)
        assert writable_by_others(tmp_path) == expected


def test_a_link_may_lead_into_its_folder_and_to_the_blobs_of_hugging_faces_cache_only(tmp_path):
    plain, blob = tmp_path / "plain", tmp_path / "models--a" / "blobs" / "f"
    snapshot = tmp_path / "models--a" / "snapshots" / "1"
    for folder in (snapshot, blob.parent, plain):
        folder.mkdir(parents=True)
    for path in (tmp_path / "secret", blob, plain / "real"):
        path.write_text("x")
    (tmp_path / "link").symlink_to(plain)
    links = {snapshot / "a": "../../blobs/f", plain / "a": "real", plain / "c": blob}
    for link, target in (links | {snapshot / "b": tmp_path / "secret", plain / "b": "../secret"}).items():
        link.symlink_to(target)
    for file in (*links, tmp_path / "link" / "a"):
        assert storage.inside(file.parent, file.name, "index").read_text() == "x"
    for folder in (snapshot, plain):
        with pytest.raises(UserError, match="b: is a link that leads out of its folder; copy the file there"):
            storage.inside(folder, "b", "index")
    with pytest.raises(UserError, match="^index: '../secret'"):
        storage.inside(plain, "../secret", "index")


def test_what_is_no_whole_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "device", "folder"):
        with pytest.raises(UserError, match=f"{name}: is no file; put the file itself there"):
            storage.read_bounded(tmp_path / name, 10)
    with pytest.raises(FileNotFoundError):
        storage.check_file(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"12345")
    assert storage.read_bounded(tmp_path / "file", 5) == b"12345" and storage.check_file(tmp_path / "file") == 5
    with pytest.raises(UserError, match="has 5 bytes, more than the 4 that such a file may have"):
        storage.read_bounded(tmp_path / "file", 4)
    (tmp_path / "empty").touch()
    assert storage.read_bounded(tmp_path / "empty", 5) == b""


def test_what_was_never_written_is_not_read_and_a_file_with_a_small_hole_is_whole(tmp_path):
    for name, written, size in (("file", 900 << 10, 1 << 20), ("hollow", 4096, 1 << 40)):
        with open(tmp_path / name, "wb") as file:
            file.write(b"x" * written)
            file.truncate(size)
    assert storage.check_file(tmp_path / "file") == 1 << 20
    used = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    with pytest.raises(UserError, match="most of its 1,099,511,627,776 bytes were never written; fetch it again"):
        storage.check_file(tmp_path / "hollow")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - used < 1
