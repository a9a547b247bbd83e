"""One program over many devices: gradients that are means over a mesh axis, steps that spread their batch."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray, PyTree


def value_and_grad(
    loss: Callable[..., Any], axis_name: str | None = None, *, filter_spec: PyTree[Any] = eqx.is_inexact_array
):
    r"""The loss and its gradient with respect to its first argument, averaged over a mesh axis.

    The one place that owns the scale: inside `jax.shard_map`, differentiating a replicated model sums over the mesh
    without a word. Here the model and the loss's own arrays are made local first, then value and gradient are
    averaged: the result is the gradient of the mean over the whole batch, replicated.

    Args:
        axis_name: of the enclosing `jax.shard_map` or `jax.vmap`; None is one device. A loss that draws must have
            been built with the same.
        filter_spec: which leaves of the model move, as in `eqx.partition`: a function of a leaf or a tree of bools.
            Make the optimiser's state for the same: `optimizer.init(eqx.filter(model, filter_spec))`.

    Returns:
        A callable pytree `(model, x, key, cond=None) -> (value, grads)`; `grads` is None at leaves that stay.

    Raises:
        ValueError: where the loss was built for another axis, so that its noise would repeat on every device.
    """
    of_loss = getattr(loss, "axis_name", axis_name)
    if of_loss != axis_name:
        raise ValueError(
            f"needs a loss over the axis {axis_name!r}; got one over {of_loss!r};"
            f" do build it with axis_name={axis_name!r}"
        )
    return _ValueAndGrad(loss, axis_name, filter_spec)


def data_parallel(step: Callable[..., Any], mesh: Mesh, axis_name: str = "data"):
    r"""The same step, compiled once, with its batch spread over a mesh axis and everything else replicated.

    Args:
        step: `(loss, model, opt_state, x, key[, cond]) -> any pytree`, such as `(model, opt_state, value)`; its
            gradients come from `value_and_grad(loss, axis_name)`. What it returns must be the same on every device.
        mesh: with Auto or Explicit axes.

    Returns:
        A callable pytree of the step's signature. `cond` is handed on where it is given.

    Raises:
        ValueError: where the mesh has no such axis, or (at the call) the batch does not divide by it.
    """
    if axis_name not in mesh.shape:
        raise ValueError(f"needs a mesh with the axis {axis_name!r}; got {tuple(mesh.shape)}; do name one of these")
    return _DataParallel(step, mesh, axis_name)


def varying(tree: PyTree[Any], axis_name: str) -> PyTree[Any]:
    """The same arrays, each device's own: a gradient with respect to them is the device's own too."""
    if axis_name not in jax.sharding.get_abstract_mesh().manual_axes:
        return tree

    def own(leaf):
        if not eqx.is_array(leaf) or axis_name in jax.typeof(leaf).manual_axis_type.varying:
            return leaf
        return lax.pcast(leaf, axis_name, to="varying")

    return jax.tree.map(own, tree)


class _ValueAndGrad(eqx.Module):
    loss: Callable[..., Any]
    axis_name: str | None = eqx.field(static=True)
    filter_spec: PyTree[Any]

    def __call__(
        self, model: PyTree[Any], x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any] = None
    ) -> tuple[Float[Array, ""], PyTree[Any]]:
        if self.axis_name is None:
            return self._local(self.loss, model, x, key, cond)
        loss, model = varying((self.loss, model), self.axis_name)
        return lax.pmean(self._local(loss, model, x, key, cond), self.axis_name)

    def _local(self, loss, model, x, key, cond):
        moving, fixed = eqx.partition(model, self.filter_spec)
        return jax.value_and_grad(lambda moving: loss(eqx.combine(moving, fixed), x, key, cond))(moving)


class _DataParallel(eqx.Module):
    step: Callable[..., Any]
    mesh: Mesh = eqx.field(static=True)
    axis_name: str = eqx.field(static=True)

    def __call__(
        self,
        loss: Callable[..., Any],
        model: PyTree[Any],
        opt_state: PyTree[Any],
        x: Float[Array, "n *x"],
        key: PRNGKeyArray,
        cond: PyTree[Any] = None,
    ) -> PyTree[Any]:
        _check_divides(x, self.mesh.shape[self.axis_name])
        return self._spread((loss, model, opt_state), (x, cond), key)

    @eqx.filter_jit
    def _spread(self, players, batch, key):
        arrays, rest = eqx.partition(players, eqx.is_array)
        results = []

        def on_one_device(arrays, batch, key):
            x, cond = batch
            result = self.step(*eqx.combine(arrays, rest), x, key, *(() if cond is None else (cond,)))
            dynamic, static = eqx.partition(result, eqx.is_array)
            results.append(static)
            return dynamic

        whole, split = (NamedSharding(self.mesh, spec) for spec in (P(), P(self.axis_name)))
        spread = jax.shard_map(on_one_device, mesh=self.mesh, in_specs=(P(), P(self.axis_name), P()), out_specs=P())
        dynamic = spread(jax.device_put(arrays, whole), jax.device_put(batch, split), jax.device_put(key, whole))
        return eqx.combine(dynamic, results[-1])


def _check_divides(x: Any, devices: int) -> None:
    if x.shape[0] % devices:
        raise ValueError(
            f"needs a batch that divides by the {devices} devices of the axis; got {x.shape[0]} examples;"
            f" do take {x.shape[0] - x.shape[0] % devices or devices}"
        )
