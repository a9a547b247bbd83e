"""Preconditioners Lambda: linear maps from gradients to gradients, in the instant loss the metric of its norm."""

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._contract import check_key
from ._number import check_real
from ._shard import cut, whole


def identity(grads: PyTree[Any]) -> PyTree[Any]:
    r"""$\Lambda = I$: plain gradient descent as the teacher's optimiser."""
    return grads


class Diagonal(eqx.Module):
    r"""$\Lambda = \mathrm{diag}(scale)$: a tree like the gradients'; each leaf keeps the gradient's dtype.

    Leaves that the gradients leave out (None, as a `filter_spec` makes them) are left out.
    """

    scale: PyTree[Any]

    def __call__(self, grads: PyTree[Any]) -> PyTree[Any]:
        if not _is_part(grads, self.scale):
            raise ValueError(
                f"needs gradients of the scale's structure, {jax.tree.structure(self.scale)};"
                f" got {jax.tree.structure(grads)}; do take Lambda from this teacher,"
                " by `estimate_preconditioner` if it is guided or clipped"
            )
        return jax.tree.map(_scaled, grads, self.scale, is_leaf=_is_none)


def by_pieces(precond: Callable[[PyTree[Any]], PyTree[Any]]) -> Callable[[PyTree[Any]], PyTree[Any]]:
    """Lambda for gradients in pieces too: one that is not known to work element by element is given them whole."""
    if precond is identity or isinstance(precond, Diagonal):
        return precond
    return lambda grads: cut(precond(whole(grads)), grads)


def adam_preconditioner(opt_state: PyTree[Any], *, b2: float = 0.999, eps: float = 1e-8) -> Diagonal:
    r"""$\Lambda = 1 / (\sqrt{\hat\nu} + \epsilon)$: Adam's, from the state the teacher was trained with.

    $\hat\nu = \nu / (1 - \beta_2^n)$ is the bias-corrected second moment (Kingma & Ba 2015, Algorithm 1); Lambda is
    Algorithm 3's. With b1 = 0, minus the learning rate times Lambda times the gradient was the last update.

    Args:
        opt_state: of any optax chain that contains one `scale_by_adam`, at least one update old.
        b2, eps: as that `scale_by_adam` had them; the state does not tell.

    Raises:
        ValueError: where the state contains none, or several, or has seen no gradient.
    """
    _check_settings(b2, eps)
    state = _only(_adam_states(opt_state))
    if not isinstance(state.count, Tracer) and int(jnp.asarray(state.count)) < 1:
        raise ValueError("needs an Adam state that has seen a gradient; got count 0; do update it at least once")
    return Diagonal(
        jax.tree.map(lambda nu: 1 / (jnp.sqrt(nu) + eps), optax.tree.bias_correction(state.nu, b2, state.count))
    )


def estimate_preconditioner(
    loss: Callable[..., Float[Array, ""]],
    teacher: PyTree[Any],
    batches: Iterable[Any],
    key: PRNGKeyArray,
    *,
    b2: float = 0.999,
    eps: float = 1e-8,
    filter_spec: PyTree[Any] = eqx.is_inexact_array,
) -> Diagonal:
    r"""Adam's Lambda for a teacher whose optimiser state is lost: its second moment over some batches.

    The parameters do not move. Salimans et al. 2024 read Lambda off the teacher's Adam; this runs
    Adam's recursion at the teacher itself.

    Args:
        loss: what the teacher was trained with, `(model, x, key, cond=None) -> scalar`: `denoising_loss(...)`.
        batches: some tens of batches `x`, or pairs `(x, cond)`.
        filter_spec: which leaves it is for, as in `eqx.partition`: those of `instant(..., filter_spec=...)`.

    Raises:
        ValueError: where there are no batches.
    """
    check_key(key)
    _check_settings(b2, eps)
    adam = optax.scale_by_adam(b2=b2, eps=eps)

    @eqx.filter_jit
    def observe(state, teacher, x, key, cond):
        moving, fixed = eqx.partition(teacher, filter_spec)
        grads = jax.grad(lambda moving: loss(eqx.combine(moving, fixed), x, key, cond))(moving)
        return adam.update(grads, state)[1]

    state = adam.init(eqx.filter(teacher, filter_spec))
    for i, batch in enumerate(batches):
        x, cond = batch if isinstance(batch, tuple) else (batch, None)
        state = observe(state, teacher, x, jax.random.fold_in(key, i), cond)
    return adam_preconditioner(state, b2=b2, eps=eps)


def _check_settings(b2: Any, eps: Any) -> None:
    check_real("b2", b2, "[0, 1)", "use 0.999, or what the optimiser had")
    check_real("eps", eps, "[0, inf)", "use 1e-8, or what the optimiser had")


def _scaled(grad: Float[Array, "..."] | None, scale: Float[Array, "..."] | None) -> Float[Array, "..."] | None:
    return None if grad is None or scale is None else (grad.astype(scale.dtype) * scale).astype(grad.dtype)


def _is_part(grads: PyTree[Any], scale: PyTree[Any]) -> bool:
    def covered(grad, scale):
        return grad is None or scale is not None

    try:
        return all(jax.tree.leaves(jax.tree.map(covered, grads, scale, is_leaf=_is_none)))
    except ValueError:
        return False


def _is_none(node: Any) -> bool:
    return node is None


def _adam_states(opt_state: PyTree[Any]) -> list[optax.ScaleByAdamState]:
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState))
    return [leaf for leaf in leaves if isinstance(leaf, optax.ScaleByAdamState)]


def _only(states: list[optax.ScaleByAdamState]) -> optax.ScaleByAdamState:
    if len(states) != 1:
        raise ValueError(
            f"needs an optimiser state with one scale_by_adam; got {len(states)};"
            " do pass that state alone, or `estimate_preconditioner`"
        )
    return states[0]
