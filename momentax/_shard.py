"""Arrays in pieces: each device of a mesh axis keeps its own, and the whole is gathered where it is used (ZeRO-3).

Also the owner of what a mean, a norm and "one's own" are inside a mesh, for pieces and for what is whole.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree

Axes = str | tuple[str, ...]


class Shard(eqx.Module):
    """One device's piece of an array that is split in one dimension over a mesh axis: a node in the array's place."""

    piece: Array
    dimension: int = eqx.field(static=True)
    axis: str = eqx.field(static=True)


def is_shard(node: Any) -> bool:
    """Whether a node is a piece."""
    return isinstance(node, Shard)


def names(axes: Axes | None) -> tuple[str, ...]:
    """The axes one by one."""
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def bound(axes: Axes) -> bool:
    """Whether one is inside a `jax.shard_map` or `jax.vmap` over the axes."""
    try:
        lax.axis_size(axes)
    except NameError:
        return False
    return True


def spec(leaf: Any, axis: str, devices: int) -> P:
    """How an array is split: in the largest dimension that divides; vectors and what does not divide stay whole."""
    shape = jnp.shape(leaf)
    divides = [i for i, size in enumerate(shape) if len(shape) > 1 and size and size % devices == 0]
    if not divides:
        return P()
    largest = max(divides, key=lambda i: shape[i])
    return P(*[None] * largest, axis)


def sharded(tree: PyTree[Any], specs: PyTree[P]) -> PyTree[Any]:
    """The tree of one device's pieces, each marked as one; what the specs leave whole is as it was."""

    def mark(leaf, spec):
        return Shard(leaf, len(spec) - 1, spec[-1]) if len(spec) else leaf

    return jax.tree.map(mark, tree, specs)


def pieces(tree: PyTree[Any]) -> PyTree[Any]:
    """The bare pieces: undoes `sharded`."""
    return jax.tree.map(lambda leaf: leaf.piece if is_shard(leaf) else leaf, tree, is_leaf=is_shard)


def whole(tree: PyTree[Any]) -> PyTree[Any]:
    """Every array gathered. Its derivative scatters: a gradient comes back in pieces, summed over the axis."""

    def gather(leaf):
        if not is_shard(leaf):
            return leaf
        return lax.all_gather(leaf.piece, leaf.axis, axis=leaf.dimension, tiled=True)

    return jax.tree.map(gather, tree, is_leaf=is_shard)


def cut(tree: PyTree[Any], like: PyTree[Any]) -> PyTree[Any]:
    """One device's pieces of whole arrays, in the places where `like` has pieces: undoes `whole`."""

    def own(mark, leaf):
        if not is_shard(mark):
            return leaf
        size = mark.piece.shape[mark.dimension]
        start = lax.axis_index(mark.axis) * size
        return Shard(lax.dynamic_slice_in_dim(leaf, start, size, mark.dimension), mark.dimension, mark.axis)

    return jax.tree.map(own, like, tree, is_leaf=is_shard)


def gathering(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function `(tree, *args)` of a tree with pieces, gathered for each call and once more for its derivative.

    Not before the arguments are there, so that no whole array is kept from one use to the next. Kept for the
    derivative are the results of matrix products and convolutions; what lies between them is computed again. A tree
    without pieces is handed on.
    """

    @functools.wraps(function)
    def call(tree: PyTree[Any], *args: Any) -> Any:
        if not _has_shards(tree):
            return function(tree, *args)
        arrays, rest = eqx.partition((tree, args), eqx.is_array)

        def on_pieces(arrays):
            tree, args = eqx.combine(arrays, rest)
            return function(whole(_after(tree, args)), *args)

        return jax.checkpoint(on_pieces, policy=_products)(arrays)

    return call


def together(tree: PyTree[Any]) -> PyTree[Any]:
    """The same arrays, none of which is gathered before all are there."""
    return lax.optimization_barrier(tree) if _has_shards(tree) else tree


def varying(tree: PyTree[Any], axes: Axes | None) -> PyTree[Any]:
    """The same arrays, each device's own: a gradient with respect to them is the device's own too."""
    manual = jax.sharding.get_abstract_mesh().manual_axes

    def own(leaf):
        if not eqx.is_array(leaf):
            return leaf
        known = jax.typeof(leaf).manual_axis_type.varying
        fresh = tuple(axis for axis in names(axes) if axis in manual and axis not in known)
        return lax.pcast(leaf, fresh, to="varying") if fresh else leaf

    return jax.tree.map(own, tree)


def averaged(gradient: PyTree[Any], axes: Axes | None) -> PyTree[Any]:
    """The mean over the axes of every device's own gradient; that of a piece has been summed over its axis already."""

    def mean(leaf):
        if not is_shard(leaf):
            return lax.pmean(leaf, axes) if axes else leaf
        others = tuple(axis for axis in names(axes) if axis != leaf.axis)
        piece = lax.pmean(leaf.piece, others) if others else leaf.piece
        return Shard(piece / lax.axis_size(leaf.axis), leaf.dimension, leaf.axis)

    return jax.tree.map(mean, gradient, is_leaf=is_shard)


def norm(tree: PyTree[Any]) -> Float[Array, ""]:
    """The Euclidean norm of all whole arrays together."""

    def squared(leaf):
        if not is_shard(leaf):
            return jnp.sum(jnp.real(jnp.conj(leaf) * leaf))
        return lax.psum(squared(leaf.piece), leaf.axis)

    return jnp.sqrt(sum(map(squared, jax.tree.leaves(tree, is_leaf=is_shard))))


def _has_shards(tree: PyTree[Any]) -> bool:
    return any(map(is_shard, jax.tree.leaves(tree, is_leaf=is_shard)))


def _after(tree: PyTree[Any], args: Any) -> PyTree[Any]:
    moving, fixed = eqx.partition(tree, eqx.is_inexact_array)
    moving, _ = lax.optimization_barrier((moving, lax.stop_gradient(eqx.filter(args, eqx.is_inexact_array))))
    return eqx.combine(moving, fixed)


def _products(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("dot_general", "conv_general_dilated")
