"""All devices at once: a batch is spread over them, and everything else is on each."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

AXIS = "data"


def mesh_for(batch: int) -> Mesh | None:
    """The most devices that the batch divides by; None is one."""
    count = math.gcd(batch, jax.device_count())
    devices = jax.devices()[:count]
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices) if count > 1 else None


def on_each(tree: PyTree[Any], mesh: Mesh | None) -> PyTree[Any]:
    """The tree's arrays, whole on every device."""
    return tree if mesh is None else _placed(tree, NamedSharding(mesh, P()))


def spread(batch: PyTree[Any], mesh: Mesh | None) -> PyTree[Any]:
    """A batch of the host's, a part of it on every device."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, batch)
    return jax.device_put(batch, NamedSharding(mesh, P(AXIS)))


def on_one(tree: PyTree[Any], mesh: Mesh | None) -> PyTree[Any]:
    """The tree's arrays on the first device alone."""
    return tree if mesh is None else _placed(tree, SingleDeviceSharding(mesh.devices.flat[0]))


def _placed(tree: PyTree[Any], sharding: Sharding) -> PyTree[Any]:
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, sharding), rest)


def at_once(examples: int, *, cached: int) -> int:
    """How many examples to take at once: on a CPU, which is slower beyond its caches, as many as these hold."""
    return cached if jax.default_backend() == "cpu" else examples
