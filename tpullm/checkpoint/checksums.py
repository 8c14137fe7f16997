"""What the files of a checkpoint were when it was written, and whether they still are.

`STEP/checksums.json` has the bytes and the MD5 of every file. It is written before Orbax commits the save, so every
save has it. MD5, since Google's servers compute it of every object: on `gs://` one listing is all that saving and
verifying take. Against flipped bits it is enough; nobody is to be kept from changing a checkpoint.

On a disk the files are read back when they are saved, in the background, and once more before a checkpoint is used, at
0.9 GB/s a core.
"""

import json
import time
from pathlib import Path

from tpullm import storage
from tpullm.cluster import hosts
from tpullm.errors import UserError

FILE = "checksums.json"
# Of Orbax, which writes it in the background and notes in it what restoring needs (`HANDLERS`), then the time of the
# commit. Both may come after all other files: once, on a machine with a load of 16, the checksums were made before.
METADATA, HANDLERS, SECONDS_TO_NOTE = "_CHECKPOINT_METADATA", "item_handlers", 60.0
COMMITTED = "commit_success.txt"  # of Orbax; nobody reads it, it only has to be there


class CorruptSave(UserError):
    """A checkpoint is not as it was written."""


def write(save: Path) -> None:
    """Note what the files of a checkpoint are."""
    sizes = {name: size for name, size in storage.sizes(save).items() if _counts(name)}
    md5s = storage.md5s(save, sizes)
    files = {name: [size, md5s[name]] for name, size in sizes.items()}
    deadline = time.monotonic() + SECONDS_TO_NOTE
    while not (metadata := _noted(save)) and (save / METADATA).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    storage.write_json(save / FILE, {"files": files, "metadata": metadata})


def _counts(name: str) -> bool:
    return name != FILE and name != METADATA and name.rpartition("/")[2] != COMMITTED


def _metadata(save: Path) -> str:
    """Hash of what Orbax notes of a checkpoint, without times; empty if that is not whole, or no save of Orbax's."""
    if not (save / METADATA).exists():
        return ""
    noted = storage.read_json(save / METADATA)
    if not noted.get(HANDLERS):
        return ""
    return storage.hash_json({key: value for key, value in noted.items() if not key.endswith("_nsecs")})


def _noted(save: Path) -> str:
    """The same while Orbax may be writing it."""
    try:
        return _metadata(save)
    except (UserError, ValueError, AttributeError):
        return ""


def verify(save: Path, share: int = 0, shares: int = 1) -> None:
    """Compare a checkpoint with its checksums; one without any, of an older version of tpullm, passes.

    Args:
        share: of the files that are compared.
        shares: how many there are.

    Raises:
        CorruptSave: a file is not as it was written.
    """
    if reason := _damage(save, share, shares):
        raise CorruptSave(f"{save}: the checkpoint is corrupt ({reason})")


def verify_together(save: Path) -> None:
    """The same on all hosts: each compares its share, and all raise the same error."""
    reasons = hosts.gather(f"save {save.name} is whole", _damage(save, hosts.index(), hosts.count()))
    if reason := next(filter(None, reasons), ""):
        raise CorruptSave(f"{save}: the checkpoint is corrupt ({reason})")


def _damage(save: Path, share: int, shares: int) -> str:
    """The first of a share of the files that is not as it was written, and in what; empty if there is none."""
    if not (save / FILE).exists():
        return ""
    try:
        noted = json.loads((save / FILE).read_bytes())
        files = {name: (int(size), str(md5)) for name, (size, md5) in noted["files"].items()}
        metadata = noted["metadata"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{FILE} can't be read"
    try:
        if metadata and _metadata(save) != metadata:
            return f"{METADATA} has changed"
    except (UserError, ValueError, AttributeError):
        return f"{METADATA} can't be read"
    own = sorted(files, key=lambda name: (-files[name][0], name))[share::shares]
    return _difference({name: files[name] for name in own}, save)


def _difference(files: dict[str, tuple[int, str]], save: Path) -> str:
    sizes = storage.sizes(save)
    for name, (size, _) in files.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != size:
            return f"{name} has {sizes[name]:,} bytes instead of {size:,}"
    try:
        found = storage.md5s(save, files)
    except OSError as error:  # a disk that is breaking
        return f"{error.filename or 'a file'} can't be read: {error.strerror}"
    for name, (_, md5) in files.items():
        if md5 and found.get(name, "missing") not in (md5, ""):
            return f"{name} has changed"
    return ""
