"""Instant moment matching: one loss, no auxiliary."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ._contract import check_batch, check_even, check_key
from ._defaults import default_weight
from ._denoiser import underlying
from ._divergence import Divergence, squared_error
from ._gradient import ascent, mean_over_parts
from ._judge import AbstractLoss, Draws, Loss, Model, dot, predictions, weighted_error, weights
from ._precondition import Diagonal, by_pieces, identity
from ._rollout import Draw, Rollout, fitted, halved, over
from ._shard import Axes, averaged, together, varying
from ._tangent import Tangent, forward_mode


def instant(
    teacher: Model,
    precond: Callable[[PyTree[Any]], PyTree[Any]] = identity,
    *,
    rollout: Draws = Rollout(),
    weight: Callable[..., Any] | None = None,
    divergence: Divergence = squared_error,
    tangent: Tangent = forward_mode,
    filter_spec: PyTree[Any] = eqx.is_inexact_array,
    axis_name: Axes | None = None,
    like: Any = None,
) -> Loss:
    r"""Algorithm 3 with its sign restored: no auxiliary, one loss.

    $w(s)\,(sg\,g_\theta(z_s) - \tilde x)^T sg[J_\theta(z_s)\,\nu]$, where $\nu = \Lambda\nabla_\theta L_\theta$ is the
    preconditioned gradient of the teacher's loss $L_\theta = E\,w\,|\tilde x' - g_\theta(z'_s)|^2$ on the batch's even
    examples, independent of the odd ones, on which the rest is taken. As printed, Algorithm 3 ascends.

    Value: an unbiased estimate of equation (9), $\frac12|E\,\nabla_\theta L_\theta|^2_\Lambda$; single values may be
    negative, the mean falls to zero. Gradient: an unbiased estimate of half the gradient of (9), as equation (8)'s is.

    Args:
        rollout: how $\tilde x$ and $z_s$ are drawn: `Rollout(schedule, k, kernel)`.
        weight: w(s); None is the one that fits what the teacher predicts, `default_weight(teacher)`.
        precond: Lambda, linear and symmetric: `identity`, a `Diagonal`, `adam_preconditioner(opt_state)`. Leaves for
            which a `Diagonal` has None, as those that an Adam under `optax.masked` left, are no part of $\theta$.
        tangent: how $J_\theta\nu$ is taken: `forward_mode`, `reverse_mode`, `central_difference`.
        filter_spec: which of the teacher's leaves are $\theta$, as in `eqx.partition`: a function of a leaf or a tree
            of bools.
        axis_name: the mesh axis the batch is spread over; nu is averaged over it before it is used.
        like: a batch `x`, or a pair `(x, cond)`, or their `jax.ShapeDtypeStruct`s: the loss is traced for it at once,
            so that a teacher or a Lambda that does not fit is told here and not at the first update.

    Raises:
        ValueError: for a `Diagonal` of another structure than the teacher's, or of none of its leaves;
            when traced, before anything is compiled: for an odd batch, and for a network that has no such
            tangent.
    """
    if isinstance(precond, Diagonal):
        filter_spec = precond.covered(teacher, filter_spec)
    draws, weight = over(fitted(rollout, teacher), axis_name), weight or default_weight(teacher)
    loss = _Instant(teacher, precond, draws, weight, divergence, tangent, filter_spec)
    if like is not None:
        x, cond = like if isinstance(like, tuple) else (like, None)
        eqx.filter_eval_shape(loss, teacher, x, jax.random.key(0, impl="threefry2x32"), cond)
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
        nu = self.preconditioned(self.gradient(student, x, key, cond))
        # One half after the other: interleaved, their activations would be held together.
        nu, x = lax.optimization_barrier((nu, x))
        return self.gap(nu, student, x, key, cond)

    def settled(
        self, student: Model, x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any], count: int
    ) -> "_Settled":
        """The loss with its nu taken from the whole batch, in `count` parts: what is left is a mean over examples."""

        def of_part(part, batch):
            return part.gradient(student, batch[0], key, batch[1])

        return _Settled(self, self.preconditioned(mean_over_parts(of_part, self, (x, cond), count, self.axis_name)))

    def gap(
        self, nu: PyTree[Any], student: Model, x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any]
    ) -> Float[Array, ""]:
        """The loss's value on the batch's odd examples, for a given nu."""
        draw = self.half(student, x, key, cond, odd=True)
        # Both as one: whoever took the target first would hold the teacher's activations for the tangent.
        target, tangent = lax.optimization_barrier(lax.stop_gradient(self._tangent(nu, draw)))
        return jnp.mean(weights(self.weight, draw, target) * dot(target - draw.x, tangent))

    def half(self, student, x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any], *, odd: bool) -> Draw:
        """The draw of the batch's odd examples, or of its even ones."""
        check_batch(x, cond)
        check_even(x)
        check_key(key)
        x, cond = jax.tree.map(itemgetter(slice(int(odd), None, 2)), (x, cond))
        return halved(self.draws)(student, x, jax.random.split(key)[int(odd)], cond)

    def gradient(self, student, x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any]) -> PyTree[Any]:
        """This device's own gradient of the teacher's loss, on the even examples."""
        draw = lax.stop_gradient(self.half(student, x, key, cond, odd=False))
        moving, fixed = self._parameters()

        def error(moving):
            return weighted_error(self.weight, self.divergence, eqx.combine(moving, fixed), draw)

        return ascent(jax.grad(error)(varying(moving, self.axis_name)))

    def preconditioned(self, gradient: PyTree[Any]) -> PyTree[Any]:
        """Every device's gradient to nu: averaged over the axis, then Lambda."""
        return by_pieces(self.precond)(averaged(gradient, self.axis_name))

    def _tangent(self, nu: PyTree[Any], draw: Draw) -> tuple[Float[Array, "n *x"], Float[Array, "n *x"]]:
        # Of the underlying denoiser, whose derivatives a straight-through one has: a difference would not know.
        moving, fixed = (underlying(tree) for tree in self._parameters())

        def predict(moving):
            return predictions(eqx.combine(moving, fixed), draw)

        bare, tangent = self.tangent(predict, *together(varying((moving, underlying(nu)), self.axis_name)))
        target = bare if underlying(self.teacher) is self.teacher else predictions(self.teacher, draw)
        _, tangent = jax.jvp(jax.vmap(self.divergence.dual), (target,), (tangent.astype(target.dtype),))
        return target, tangent

    def _parameters(self) -> tuple[PyTree[Any], PyTree[Any]]:
        return eqx.partition(self.teacher, self.filter_spec)


class _Settled(eqx.Module):
    """The instant loss for a given nu, part by part of its batch."""

    loss: _Instant
    nu: PyTree[Any]

    def part(self, first: Int[Array, ""], total: int) -> "_Settled":
        return _Settled(self.loss.part(first, total), self.nu)

    def __call__(
        self, student: Model, x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any] = None
    ) -> Float[Array, ""]:
        return self.loss.gap(self.nu, student, x, key, cond)
