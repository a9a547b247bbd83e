"""Updates that a NaN does not survive in: taken where everything is finite, and otherwise not at all."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree


def update_if_finite(
    optimizer: Any, model: PyTree[Any], opt_state: PyTree[Any], value: Float[Array, ""], grads: PyTree[Any]
) -> tuple[PyTree[Any], PyTree[Any], Bool[Array, ""]]:
    """One update where loss and gradient are finite; otherwise model and state come back as they were, bit for bit.

    What the optimiser makes of it has to be finite too, wherever the model and the state were: a gradient whose square
    overflows would leave a second moment of infinity, which no later update moves. All this is decided on the device,
    by every device alike where value and gradients are the same on all: nothing is synchronised until `finite` is read,
    which may be many updates later. The program grows with the number of leaves, whether `finite` leaves it or not.

    Args:
        optimizer: of optax. It is given the parameters that move, for weight decay, and `value` if it takes more.
        value, grads: as `value_and_grad` returns them; `grads` is None at leaves that stay.

    Returns:
        `(model, opt_state, finite)`.

    Raises:
        ValueError: when traced: for gradients that are not the model's, and a state that is not theirs.
    """
    _check_gradients(grads, model)
    moving, fixed = eqx.partition(model, jax.tree.map(_is_given, grads, is_leaf=_is_none))
    _check_state(opt_state, optimizer, moving)
    updated = _update(optimizer, moving, opt_state, value, grads)
    finite = _every([*_all_finite((value, grads)), *_as_finite(updated, (moving, opt_state))])
    moving, opt_state = jax.tree.map(partial(_chosen, finite), updated, (moving, opt_state))
    return eqx.combine(moving, fixed), opt_state, finite


def _update(optimizer: Any, moving: PyTree[Any], opt_state: PyTree[Any], value, grads) -> tuple[PyTree[Any], Any]:
    update = optax.with_extra_args_support(optimizer).update
    changes, opt_state = update(grads, opt_state, moving, value=value)
    return optax.apply_updates(moving, changes), opt_state


def _all_finite(tree: PyTree[Any]) -> Iterator[Bool[Array, ""]]:
    return (jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf))


def _as_finite(new: PyTree[Any], old: PyTree[Any]) -> Iterator[Bool[Array, ""]]:
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    return (jnp.all(jnp.isfinite(a) | ~jnp.isfinite(b)) for a, b in pairs if eqx.is_inexact_array(b))


def _every(conditions: list[Bool[Array, ""]]) -> Bool[Array, ""]:
    """Whether all are true: the least of them, by sorting.

    XLA copies a conjunction into every kernel that it is used in, and each leaf is chosen by it: a program with the
    square of their number, which takes as long to compile. Nothing is fused into a sort, nor a sort into anything.
    """
    return lax.sort(jnp.stack(conditions))[0]


def _chosen(finite: Bool[Array, ""], new: Any, old: Any) -> Any:
    if not eqx.is_array(old):
        return new
    if not jnp.issubdtype(old.dtype, jnp.floating) or jnp.finfo(old.dtype).bits >= 32:
        return jnp.where(finite, new, old)
    # Some processors choose between halves by way of single precision, where a NaN does not keep its bits.
    bits = jnp.dtype(f"uint{jnp.finfo(old.dtype).bits}")
    chosen = jnp.where(finite, *(lax.bitcast_convert_type(half, bits) for half in (new, old)))
    return lax.bitcast_convert_type(chosen, old.dtype)


def _check_gradients(grads: PyTree[Any], model: PyTree[Any]) -> None:
    def check(path, grad, leaf):
        if grad is not None and jnp.shape(grad) != jnp.shape(leaf):
            raise ValueError(
                f"needs a gradient of the shape {jnp.shape(leaf)} of model{jax.tree_util.keystr(path)};"
                f" got {jnp.shape(grad)}; do take it with `value_and_grad`, averaged over the batch"
            )

    if not _is_part(grads, model):
        raise ValueError(
            f"needs gradients of the model's structure, {jax.tree.structure(model)};"
            f" got {jax.tree.structure(grads)}; do take them of this model, with `value_and_grad`"
        )
    jax.tree.map_with_path(check, grads, model, is_leaf=_is_none)


def _check_state(opt_state: PyTree[Any], optimizer: Any, moving: PyTree[Any]) -> None:
    needed, got = (jax.tree.structure(state) for state in (eqx.filter_eval_shape(optimizer.init, moving), opt_state))
    if needed != got:
        raise ValueError(
            f"needs a state of this optimiser for the leaves that have a gradient, {needed.num_leaves} leaves;"
            f" got another, {got.num_leaves} leaves; do `optimizer.init(eqx.filter(model, filter_spec))`"
        )


def _is_part(grads: PyTree[Any], model: PyTree[Any]) -> bool:
    try:
        jax.tree.map(lambda grad, leaf: None, grads, model, is_leaf=_is_none)
    except ValueError:
        return False
    return True


def _is_given(grad: Any) -> bool:
    return grad is not None


def _is_none(node: Any) -> bool:
    return node is None
