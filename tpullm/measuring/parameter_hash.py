"""The hash of the parameters of a model in use, by which its answers are kept.

It is computed where the parameters are. The bits of each number are multiplied by a hash of its place, and the products
are added modulo 2^32: integers, so the sum is the same on any mesh.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tpullm import storage
from tpullm.huggingface import tensors
from tpullm.inference.session import Session
from tpullm.mesh.rows import fetch

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
