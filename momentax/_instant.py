"""Instant moment matching: one loss, no auxiliary."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._contract import check_batch, check_even
from ._divergence import Divergence, squared_error
from ._guidance import underlying
from ._judge import AbstractLoss, Draws, Loss, Model, dot, predictions, weighted_error, weights
from ._parallel import varying
from ._precondition import identity
from ._rollout import Draw, Rollout, over
from ._tangent import Tangent, forward_mode
from ._weight import edm_weight


def instant(
    teacher: Model,
    precond: Callable[[PyTree[Any]], PyTree[Any]] = identity,
    *,
    rollout: Draws = Rollout(),
    weight: Callable[..., Any] = edm_weight,
    divergence: Divergence = squared_error,
    tangent: Tangent = forward_mode,
    filter_spec: PyTree[Any] = eqx.is_inexact_array,
    axis_name: str | None = None,
    like: Any = None,
) -> Loss:
    r"""Algorithm 3 with its sign restored: no auxiliary, one loss.

    $w(s)\,(sg\,g_\theta(z_s) - \tilde x)^T sg[J_\theta(z_s)\,\nu]$, where $\nu = \Lambda\nabla_\theta L_\theta$ is the
    preconditioned gradient of the teacher's loss $L_\theta = E\,w\,|\tilde x' - g_\theta(z'_s)|^2$ on the batch's even
    examples, independent of the odd ones, on which the rest is taken. As printed, Algorithm 3 ascends.

    Value: an unbiased estimate of equation (9), $\frac12|E\,\nabla_\theta L_\theta|^2_\Lambda$; single values may be
    negative, the mean falls to zero. Gradient: an unbiased estimate of half the gradient of (9), as equation (8)'s is.

    Args:
        precond: Lambda, linear and symmetric: `identity`, a `Diagonal`, `adam_preconditioner(opt_state)`.
        tangent: how $J_\theta\nu$ is taken: `forward_mode`, `reverse_mode`, `central_difference`.
        filter_spec: which of the teacher's leaves are $\theta$, as in `eqx.partition`: a function of a leaf or a tree
            of bools.
        axis_name: the mesh axis the batch is spread over; nu is averaged over it before it is used.
        like: a batch `x`, or a pair `(x, cond)`, or their `jax.ShapeDtypeStruct`s: the loss is traced for it at once,
            so that a teacher or a Lambda that does not fit is told here and not at the first update.

    Raises:
        ValueError: when traced, before anything is compiled: for an odd batch, and for a network that has no such
            tangent.
    """
    loss = _Instant(teacher, precond, over(rollout, axis_name), weight, divergence, tangent, filter_spec)
    if like is not None:
        x, cond = like if isinstance(like, tuple) else (like, None)
        eqx.filter_eval_shape(loss, teacher, x, jax.random.key(0), cond)
    return loss


class _Instant(AbstractLoss):
    teacher: Model
    precond: Callable[[PyTree[Any]], PyTree[Any]]
    draws: Draws
    weight: Callable[..., Any]
    divergence: Divergence
    tangent: Tangent
    filter_spec: PyTree[Any]

    def __call__(
        self, student: Model, x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any] = None
    ) -> Float[Array, ""]:
        check_batch(x, cond)
        check_even(x)
        key_nu, key_gap = jax.random.split(key)
        even, odd = (jax.tree.map(itemgetter(slice(half, None, 2)), (x, cond)) for half in (0, 1))
        nu = self._nu(lax.stop_gradient(self.draws(student, even[0], key_nu, even[1])))
        draw = self.draws(student, odd[0], key_gap, odd[1])
        target, tangent = lax.stop_gradient(self._tangent(nu, draw))
        return jnp.mean(weights(self.weight, draw, target) * dot(target - draw.x, tangent))

    def _nu(self, draw: Draw) -> PyTree[Any]:
        moving, fixed = self._parameters()

        def error(moving):
            return weighted_error(self.weight, self.divergence, eqx.combine(moving, fixed), draw)

        if self.axis_name is None:
            return self.precond(jax.grad(error)(moving))
        return self.precond(lax.pmean(jax.grad(error)(varying(moving, self.axis_name)), self.axis_name))

    def _tangent(self, nu: PyTree[Any], draw: Draw) -> tuple[Float[Array, "n *x"], Float[Array, "n *x"]]:
        # Of the underlying denoiser, whose derivatives a straight-through one has: a difference would not know.
        moving, fixed = (underlying(tree) for tree in self._parameters())

        def predict(moving):
            return predictions(eqx.combine(moving, fixed), draw)

        bare, tangent = self.tangent(predict, moving, underlying(nu))
        target = bare if underlying(self.teacher) is self.teacher else predictions(self.teacher, draw)
        _, tangent = jax.jvp(jax.vmap(self.divergence.dual), (target,), (tangent.astype(target.dtype),))
        return target, tangent

    def _parameters(self) -> tuple[PyTree[Any], PyTree[Any]]:
        return eqx.partition(self.teacher, self.filter_spec)
