"""Which examples broke an update, after the fact, and at which log-SNRs."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ._contract import check_batch, check_even, check_key
from ._judge import AbstractLoss, weighted_error
from ._losses import _Joint
from ._rollout import fitted

Verdict = tuple[Float[Array, "*examples"], Bool[Array, "*examples"]]


def nonfinite_logsnr(
    loss: Any,
    model: PyTree[Any],
    x: Float[Array, "n *x"],
    key: PRNGKeyArray,
    cond: PyTree[Any] = None,
    *,
    filter_spec: PyTree[Any] = eqx.is_inexact_array,
) -> tuple[float, float] | None:
    r"""The least and the greatest log-SNR at which a value or a gradient of the update was not finite.

    Takes the very draws of the update that had these arguments, on however many devices, and one example's own part in
    the value and in the gradient after the other, on one device and in the memory of one example. What counts is the
    log-SNR of an example's first failure: that of $z_t$, where its data, the student's prediction or only its
    derivative is not finite; that of $z_s$, for a teacher, an auxiliary, a weight, their product, for an even example's
    part in nu = $\Lambda\nabla L$. Of `joint_loss` the student is asked before the auxiliary. An odd example of
    `instant` is asked with the entries of nu that are finite.

    Args:
        loss: one of this library's; over an axis, with the whole batch.
        filter_spec: as `value_and_grad` had it.

    Returns:
        None, where every example alone is finite: then it is their sum that overflows, or what the optimiser made.

    Raises:
        TypeError: for a loss of one's own, or a batch or a key of a wrong type.
        ValueError: for draws of one's own that cannot be taken one by one.
    """
    _check_loss(loss)
    check_batch(x, cond)
    check_key(key)
    if hasattr(loss, "settled"):
        check_even(x)
    placed = jax.tree.map(_on_one_device, (_of_whole_batch(loss), model, x, key, cond, filter_spec))
    logsnr, failed = (np.asarray(leaf) for leaf in _verdicts(*placed))
    found = logsnr[failed]
    return (float(found.min()), float(found.max())) if found.size else None


@eqx.filter_jit
def _verdicts(loss, model, x, key, cond, filter_spec):
    n, pairs = x.shape[0], hasattr(loss, "settled")
    size = 2 if pairs else 1
    settled = _harmless(loss.settled(model, x, key, cond, n // 2)) if pairs else loss

    def examine(first):
        x_part, cond_part = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, first, size), (x, cond))

        def share(model):
            return settled.part(first, n)(model, x_part, key, cond_part) * (size / n)

        of_part = _of_pair if pairs else _of_players if isinstance(loss, _Joint) else _of_example
        found = _value_and_grad(share, model, filter_spec)
        return of_part(loss.part(first, n), found, model, x_part, key, cond_part)

    return lax.map(examine, jnp.arange(0, n, size, dtype=jnp.int32))


def _of_example(loss, found, model, x, key, cond) -> Verdict:
    value, grads = _all_finite(*found)
    if not hasattr(loss, "teacher"):
        at = fitted(loss.draws, model)(x, key, cond).logsnr[0]
        return _first((value, at), (grads, at))
    seen, t, s = _shown(loss, getattr(loss, "student", model), x, key, cond)
    return _first((seen, t), (value, s), (grads, s if hasattr(loss, "student") else t))


def _of_players(loss, found, model, x, key, cond) -> Verdict:
    """Of a student, whose gradient is taken at z_t, and an auxiliary, whose gradient is taken at z_s."""
    value, of_student, of_aux = _all_finite(found[0], *found[1])
    seen, t, s = _shown(loss, model[0], x, key, cond)
    return _first((seen, t), (value, s), (of_student, t), (of_aux, s))


def _shown(loss, student, x, key, cond) -> tuple[Any, Any, Any]:
    """Whether data and the student's prediction are finite, and the log-SNRs of z_t and z_s."""
    draw, given = (loss.draws(player, x, key, cond) for player in (student, _Witness()))
    (seen,) = _all_finite((x, draw.x))
    return seen, given.x.ravel()[0], draw.logsnr[0]


def _of_pair(loss, found, model, x, key, cond) -> Verdict:
    def seen(odd):
        draw, given = (loss.half(player, x, key, cond, odd=odd) for player in (model, _Witness()))
        return draw, *_all_finite((x[int(odd)], draw.x)), given.x.ravel()[0]

    (even, even_x, t_even), (odd, odd_x, t_odd) = seen(False), seen(True)
    error = weighted_error(loss.weight, loss.divergence, loss.teacher, even)
    nu = loss.preconditioned(loss.gradient(model, x, key, cond))
    (value, grads), (of_nu,) = _all_finite(*found), _all_finite((error, nu))
    of_even = _first((even_x, t_even), (of_nu, even.logsnr[0]))
    of_odd = _first((odd_x, t_odd), (value, odd.logsnr[0]), (grads, t_odd))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), of_even, of_odd)


class _Witness(eqx.Module):
    """A student that tells the log-SNR it was given."""

    def __call__(self, z: Float[Array, "*x"], logsnr: Float[Array, ""], cond: Any = None) -> Float[Array, "*x"]:
        return jnp.broadcast_to(logsnr, z.shape)


def _first(*stages: tuple[Bool[Array, ""], Float[Array, ""]]) -> Verdict:
    logsnr = stages[-1][1]
    for finite, at in reversed(stages[:-1]):
        logsnr = jnp.where(finite, logsnr, at)
    return logsnr, ~jnp.all(jnp.stack([finite for finite, _ in stages]))


def _value_and_grad(function: Any, model: PyTree[Any], filter_spec: PyTree[Any]) -> tuple[Any, PyTree[Any]]:
    moving, fixed = eqx.partition(model, filter_spec)
    return jax.value_and_grad(lambda moving: function(eqx.combine(moving, fixed)))(moving)


def _all_finite(*trees: PyTree[Any]) -> tuple[Bool[Array, ""], ...]:
    return tuple(
        jnp.all(jnp.asarray([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])) for tree in trees
    )


def _harmless(settled: Any) -> Any:
    nu = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), settled.nu)
    return eqx.tree_at(lambda settled: settled.nu, settled, nu)


def _of_whole_batch(loss: Any) -> Any:
    if loss.axis_name is None:
        return loss
    return dataclasses.replace(loss, draws=dataclasses.replace(loss.draws, axis_name=None))


def _on_one_device(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
        return leaf
    device = min(leaf.sharding.addressable_devices, key=lambda device: device.id)
    return jax.device_put(leaf, SingleDeviceSharding(device))


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, AbstractLoss):
        raise TypeError(
            f"needs one of momentax's losses; got {type(loss).__name__}; do hand on the loss itself, without a wrapper"
        )
    if not hasattr(loss.draws, "part"):
        raise ValueError(
            f"needs draws that can be taken one by one; got {type(loss.draws).__name__};"
            " do give it the fields `part` and `axis_name`, as `Rollout` has them"
        )
