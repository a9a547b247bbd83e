"""Losses into gradients: of a whole batch, over a mesh axis, in micro-batches."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._contract import at_least_single, check_batch, check_key
from ._number import whole
from ._shard import Axes, averaged, bound, gathering, is_shard, names, pieces, sharded, spec, varying


def value_and_grad(
    loss: Callable[..., Any],
    axis_name: Axes | None = None,
    *,
    micro_batches: int = 1,
    filter_spec: PyTree[Any] = eqx.is_inexact_array,
):
    r"""The loss and its gradient with respect to its first argument, averaged over a mesh axis.

    The one place that owns the scale: inside `jax.shard_map`, differentiating a replicated model sums over the mesh
    without a word. Here the model and the loss's own arrays are made local first, then value and gradient are
    averaged: the result is the gradient of the mean over the whole batch, replicated. In a step of `fully_sharded`
    model, loss and gradient are in pieces, over the last of the axes.

    Args:
        axis_name: of the enclosing `jax.shard_map`, `jax.vmap` or step; several for a mesh of more dimensions; None is
            one device. A loss that draws must have been built with the same.
        micro_batches: in how many parts each device takes its batch, one after the other. The draws are those of the
            whole batch, and `instant` has its nu of all parts before the first is used: the same value and gradient,
            with the memory of a part.
        filter_spec: which leaves of the model move, as in `eqx.partition`: a function of a leaf or a tree of bools.
            Make the optimiser's state for the same: `optimizer.init(eqx.filter(model, filter_spec))`.

    Returns:
        A callable pytree `(model, x, key, cond=None) -> (value, grads)`; `grads` is None at leaves that stay.
        Of complex leaves it is the direction of steepest ascent, as optimisers want it; `jax.grad` gives its conjugate.

    Raises:
        ValueError: where the loss was built for another axis, so that its noise would repeat on every device; for
            micro-batches of a loss that is not of this library; at the call, for a batch that does not divide.
    """
    of_loss = getattr(loss, "axis_name", axis_name)
    if of_loss != axis_name:
        raise ValueError(
            f"needs a loss over the axis {axis_name!r}; got one over {of_loss!r};"
            f" do build it with axis_name={axis_name!r}"
        )
    micro_batches = whole("micro_batches", micro_batches, 1, "use 4")
    _check_micro_batches(loss, micro_batches)
    return _ValueAndGrad(loss, axis_name, micro_batches, filter_spec)


def mean_over_parts(
    function: Callable[..., PyTree[Any]], loss: Any, batch: PyTree[Array], count: int, axes: Axes | None
) -> PyTree[Any]:
    """The mean of `function(part of the loss, part of the batch)` over equal parts of the batch, one after the other.

    Taken in float32 or better.
    """
    size = jax.tree.leaves(batch)[0].shape[0]
    parts = jax.tree.map(lambda leaf: leaf.reshape(count, size // count, *leaf.shape[1:]), batch)
    starts = jnp.arange(0, size, size // count, dtype=jnp.int32)

    def add(total, start_and_part):
        start, part = start_and_part
        term = function(loss.part(start, size), part)
        return jax.tree.map(lambda sum, leaf: sum + at_least_single(leaf) / count, total, term), None

    like = jax.eval_shape(lambda: function(loss.part(starts[0], size), jax.tree.map(itemgetter(0), parts)))
    zeros = jax.tree.map(lambda leaf: at_least_single(jnp.zeros(leaf.shape, leaf.dtype)), like)
    total, _ = lax.scan(add, varying(zeros, axes), (starts, parts))
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), total, like)


def ascent(grads: PyTree[Any]) -> PyTree[Any]:
    r"""Steepest ascent, $\partial_a L + i\,\partial_b L$ for parameters $a + ib$: `jax.grad` gives its conjugate."""
    return jax.tree.map(lambda grad: jnp.conj(grad) if jnp.iscomplexobj(grad) else grad, grads)


class _ValueAndGrad(eqx.Module):
    loss: Callable[..., Any]
    axis_name: Axes | None = eqx.field(static=True)
    micro_batches: int = eqx.field(static=True)
    filter_spec: PyTree[Any]

    def __call__(
        self, model: PyTree[Any], x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any] = None
    ) -> tuple[Float[Array, ""], PyTree[Any]]:
        check_batch(x, cond)
        check_key(key)
        if self.axis_name is not None and not bound(self.axis_name):
            return self._in_pieces(model, x, key, cond)
        return self._averaged(self.loss, model, x, key, cond)

    def _averaged(self, loss, model, x, key, cond):
        loss, model = varying((loss, model), self.axis_name)
        return averaged(self._own(loss, model, x, key, cond), self.axis_name)

    def _own(self, loss, model, x, key, cond):
        _check_parts(x, self.micro_batches)
        if self.micro_batches == 1:
            return self._of_part(loss, model, x, key, cond)
        if hasattr(loss, "settled"):
            loss = loss.settled(model, x, key, cond, self.micro_batches)

        def of_part(part, batch):
            return self._of_part(part, model, batch[0], key, batch[1])

        return mean_over_parts(of_part, loss, (x, cond), self.micro_batches, self.axis_name)

    def _of_part(self, loss, model, x, key, cond):
        moving, fixed = eqx.partition(model, self.filter_spec)
        value, grads = jax.value_and_grad(lambda moving: loss(eqx.combine(moving, fixed), x, key, cond))(moving)
        return value, ascent(grads)

    def _in_pieces(self, model, x, key, cond):
        axes = names(self.axis_name)
        _check_mesh(axes)
        arrays, rest = eqx.partition((self.loss, model), eqx.is_array)
        specs = jax.tree.map(self._spec, arrays)

        def on_one_device(arrays, x, key, cond):
            loss, model = eqx.combine(sharded(arrays, specs), rest, is_leaf=is_shard)
            loss = loss.in_pieces() if hasattr(loss, "in_pieces") else _Gathering(loss)
            return pieces(self._averaged(loss, model, x, key, cond))

        of_grads = jax.tree.map(self._spec, eqx.filter(model, self.filter_spec))
        in_specs, out_specs = (specs, P(axes), P(), P(axes)), (P(), of_grads)
        spread = jax.shard_map(on_one_device, in_specs=in_specs, out_specs=out_specs, axis_names=set(axes))
        return spread(arrays, x, key, cond)

    def _spec(self, leaf: Any) -> P:
        axis = names(self.axis_name)[-1]
        return spec(leaf, axis, jax.sharding.get_abstract_mesh().shape[axis])


class _Gathering(eqx.Module):
    """Any other loss, of a model in pieces: it is handed the whole one, for its value and again for its gradient."""

    loss: Callable[..., Any]

    def __call__(self, model, x, key, cond=None):
        def call(players, x, key, cond):
            loss, model = players
            return loss(model, x, key, cond)

        return gathering(call)((self.loss, model), x, key, cond)


def _check_micro_batches(loss: Any, count: int) -> None:
    if count > 1 and not hasattr(loss, "part"):
        raise ValueError(
            f"needs a loss of this library for micro_batches={count}; got {type(loss).__name__}, which would draw the"
            " same for each; do micro_batches=1, or give the loss a method `part(first, total)`"
        )


def _check_parts(x: Any, count: int) -> None:
    if x.shape[0] % count:
        raise ValueError(
            f"needs a batch that divides into {count} micro-batches on each device; got {x.shape[0]} examples on each;"
            f" do take {x.shape[0] - x.shape[0] % count or count}"
        )


def _check_mesh(axes: tuple[str, ...]) -> None:
    around = jax.sharding.get_abstract_mesh().axis_names
    if not set(axes) <= set(around):
        raise ValueError(
            f"needs the mesh axes {axes} around the gradient; got {tuple(around)};"
            " do call it in a step of data_parallel or fully_sharded, or inside jax.shard_map"
        )
