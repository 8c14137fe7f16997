"""The answers of a model, each kept at once, so that an evaluation that was killed can resume.

`answers.jsonl` grows by a line for each answer: the key of its request, and the answer. A line that was cut off is not
read. On `gs://` the file is sent every few seconds (`system/storage/mirror.py`).

Answers are kept by the hash of the parameters, which is computed where the parameters are. The bits of each number are
multiplied by a hash of its place, and the products are added modulo 2^32: integers, so the sum is the same on any mesh.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tpullm.engine.session import Session
from tpullm.formats.huggingface import tensors
from tpullm.model.rows import fetch
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError
from tpullm.system.storage.mirror import mirrored

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_SALTS = (0x9E3779B9, 0x85EBCA6B)  # two sums: 64 bits for each parameter


def parameter_hash(session: Session) -> str:
    """The hash of all parameters, in the type in which they are used, and of the model that they are parameters of.

    It tells apart models and checkpoints; nobody is to be kept from making two that are alike.
    """
    architecture = session.architecture
    model = {"config": dataclasses.asdict(architecture.config), "adapter": repr(architecture.adapter)}
    with jax.set_mesh(session.mesh):
        leaves = {name: jax.tree.leaves(part) for name, part in sorted(tensors.flat(session.params).items())}
        sums = {
            name: [[str(leaf.dtype), *fetch(session.mesh, _sums(leaf)).tolist()] for leaf in parts]
            for name, parts in leaves.items()
        }
    return storage.hash_json({"model": model, "parameters": sums})


@jax.jit
def _sums(array: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(array, _BITS[array.dtype.itemsize]).astype(jnp.uint32)
    return jnp.stack([jnp.sum(bits * _places(array.shape, salt), dtype=jnp.uint32) for salt in _SALTS])


def _places(shape: tuple[int, ...], salt: int) -> jax.Array:
    """An odd number for each place in an array, well mixed (the finalizer of MurmurHash3)."""
    number = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(shape):
        along = jnp.arange(size, dtype=jnp.uint32).reshape([-1 if n == axis else 1 for n in range(len(shape))])
        number = number * jnp.uint32(size) + along
    mixed = (number + jnp.uint32(1)) * jnp.uint32(salt)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return (mixed ^ (mixed >> 16)) | jnp.uint32(1)


FILE = "answers.jsonl"
AT_A_TIME = 100  # answers in a message between hosts, which are of bounded length


def key_of(parameters: str, request: Sequence[Any]) -> str:
    """The key of a request (JSON) to a model of the hash `parameters`: all that the answer depends on."""
    return hashlib.sha256(json.dumps([parameters, *request]).encode()).hexdigest()[:32]


class KeptAnswers:
    """The answers in a folder. Host 0 reads and writes them; `found` tells all hosts."""

    def __init__(self, folder: Path):
        self._answers: dict[str, Any] = {}
        self._file = None
        if hosts.is_first():
            self._open(folder)

    def _open(self, folder: Path) -> None:
        storage.check_writable(folder)
        self._grows = mirrored(folder)
        file = self._grows.folder / FILE
        if storage.is_remote(folder) and (folder / FILE).exists():
            file.write_bytes((folder / FILE).read_bytes())
        if file.exists():
            text = file.read_bytes()
            self._answers = dict(_lines(text, folder / FILE))
            if text and not text.endswith(b"\n"):  # cut off in the middle of a line
                file.write_bytes(text[: text.rfind(b"\n") + 1])
        self._file = open(file, "ab", buffering=0)

    def found(self, keys: Sequence[str]) -> list[Any]:
        """The answer of each key, None where there is none; on all hosts the same."""
        found: list[Any] = []
        for first in range(0, len(keys), AT_A_TIME):
            part = keys[first : first + AT_A_TIME]
            found += hosts.broadcast("kept answers", lambda part=part: [self._answers.get(key) for key in part])
        return found

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep answers (JSON) by their keys."""
        if self._file:
            self._answers |= answers
            lines = [json.dumps({"key": key, "answer": answer}) + "\n" for key, answer in answers.items()]
            storage.append(self._file, "".join(lines).encode())
            self._grows.changed()

    def close(self) -> None:
        """All that was added is written."""
        if self._file:
            self._file.close()
            self._grows.close()
            self._file = None


def _lines(text: bytes, where: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found = json.loads(line)
            yield str(found["key"]), found["answer"]
            continue
        raise UserError(f"{where}: line {number}: is not an answer; remove the file, and all is asked again")
