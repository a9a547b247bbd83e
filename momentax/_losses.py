"""The losses, of one type: `(model, x, key, cond=None) -> scalar`, where what moves is the first argument."""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._contract import check_batch, check_even
from ._denoiser import denoise
from ._divergence import Divergence, squared_error
from ._parallel import varying
from ._precondition import identity
from ._rollout import Draw, Forward, Rollout, over, stratified
from ._schedule import AbstractSchedule, KarrasSchedule
from ._weight import edm_weight

Model = Callable[..., Any]
Loss = Callable[..., Float[Array, ""]]
Draws = Callable[..., Draw]


class Losses(NamedTuple):
    """Both players' losses; `aux` is None where there is one player."""

    student: Loss
    aux: Loss | None


def denoising_loss(
    *,
    schedule: AbstractSchedule = KarrasSchedule(),
    weight: Callable[..., Any] = edm_weight,
    times: Callable[..., Any] = stratified,
    divergence: Divergence = squared_error,
    axis_name: str | None = None,
) -> Loss:
    r"""Trains a teacher: $E\,w(s)\,|x - g(z_s)|^2$ with $z_s \sim q(z_s | x)$, section 2.1 of Salimans et al. 2024.

    Value: the weighted squared error, summed over an example's dimensions, averaged over the batch. Gradient: the
    value's. The minimiser is $E[x | z_s]$ for every weight of the log-SNR alone.
    """
    return _Denoising(Forward(schedule, times, axis_name), weight, divergence)


def student_loss(
    teacher: Model,
    aux: Model,
    *,
    rollout: Draws = Rollout(),
    weight: Callable[..., Any] = edm_weight,
    divergence: Divergence = squared_error,
) -> Loss:
    r"""The generator's loss of Algorithm 2, $w(s)\,(\tilde x - sg\,g_\theta(z_s))^T sg[g_\phi(z_s) - g_\theta(z_s)]$.

    Gradient: $w(s)\,(d\tilde x)^T[g_\phi - g_\theta]$, none through $z_s$, teacher or auxiliary: the paper's. Value:
    where the auxiliary has converged, $\frac12 E\,w(s)\,|E_g[\tilde x | z_s] - g_\theta(z_s)|^2$, the moment gap of
    equation (4), which is zero for a perfect student.
    """
    return _Student(teacher, aux, rollout, weight, divergence)


def aux_loss(
    teacher: Model,
    student: Model,
    *,
    rollout: Draws = Rollout(),
    weight: Callable[..., Any] = edm_weight,
    divergence: Divergence = squared_error,
) -> Loss:
    r"""The auxiliary's loss of Algorithm 2, $w(s)\,(|\tilde x - g_\phi(z_s)|^2 + |g_\theta(z_s) - g_\phi(z_s)|^2)$.

    Value: as written. Gradient: with respect to the auxiliary only. The minimiser is, for every weight of the log-SNR
    alone, the average of $E_g[\tilde x | z_s]$ and the teacher's $g_\theta(z_s)$.
    """
    return _Aux(teacher, student, rollout, weight, divergence)


def instant(
    teacher: Model,
    precond: Callable[[PyTree[Any]], PyTree[Any]] = identity,
    *,
    rollout: Draws = Rollout(),
    weight: Callable[..., Any] = edm_weight,
    divergence: Divergence = squared_error,
    axis_name: str | None = None,
) -> Loss:
    r"""Algorithm 3 with its sign restored: no auxiliary, one loss.

    $w(s)\,(sg\,g_\theta(z_s) - \tilde x)^T sg[J_\theta(z_s)\,\nu]$, where $\nu = \Lambda\nabla_\theta L_\theta$ is the
    preconditioned gradient of the teacher's loss $L_\theta = E\,w\,|\tilde x' - g_\theta(z'_s)|^2$ on the batch's even
    examples, independent of the odd ones, on which the rest is taken. As printed, Algorithm 3 ascends.

    Value: an unbiased estimate of equation (9), $\frac12|E\,\nabla_\theta L_\theta|^2_\Lambda$; single values may be
    negative, the mean falls to zero. Gradient: an unbiased estimate of half the gradient of (9), as equation (8)'s is.

    Args:
        precond: Lambda, linear and symmetric: `identity`, a `Diagonal`, `adam_preconditioner(opt_state)`.
        axis_name: the mesh axis the batch is spread over; nu is averaged over it before it is used.

    Raises:
        ValueError: at the call, for an odd batch.
    """
    return _Instant(teacher, precond, over(rollout, axis_name), weight, divergence)


def moment_match(
    teacher: Model,
    student: Model,
    aux: Model | None = None,
    *,
    precond: Callable[[PyTree[Any]], PyTree[Any]] = identity,
    rollout: Draws = Rollout(),
    weight: Callable[..., Any] = edm_weight,
    divergence: Divergence = squared_error,
    axis_name: str | None = None,
) -> Losses:
    """The losses of moment matching: alternating with an auxiliary (Algorithm 2), instant without (Algorithm 3).

    Rebinding the players is free: make the losses anew with every new student and auxiliary.

    Raises:
        ValueError: for an auxiliary together with a preconditioner, which is the auxiliary's replacement.
    """
    rollout = over(rollout, axis_name)
    if aux is None:
        return Losses(instant(teacher, precond, rollout=rollout, weight=weight, divergence=divergence), None)
    if precond is not identity:
        raise ValueError("needs aux or precond; got both; do drop precond (alternating) or aux (instant)")
    settings = {"rollout": rollout, "weight": weight, "divergence": divergence}
    return Losses(student_loss(teacher, aux, **settings), aux_loss(teacher, student, **settings))


class _Loss(eqx.Module):
    """What the losses share: the axis that their draws are spread over."""

    draws: eqx.AbstractVar[Draws]

    @property
    def axis_name(self) -> str | None:
        return getattr(self.draws, "axis_name", None)


class _Denoising(_Loss):
    draws: Draws
    weight: Callable[..., Any]
    divergence: Divergence

    def __call__(
        self, model: Model, x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any] = None
    ) -> Float[Array, ""]:
        return _error(self, model, self.draws(x, key, cond))


class _Student(_Loss):
    teacher: Model
    aux: Model
    draws: Draws
    weight: Callable[..., Any]
    divergence: Divergence

    def __call__(
        self, student: Model, x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any] = None
    ) -> Float[Array, ""]:
        draw = self.draws(student, x, key, cond)
        target, average = (lax.stop_gradient(_predictions(model, draw)) for model in (self.teacher, self.aux))
        gap = jax.vmap(self.divergence.dual)(average) - jax.vmap(self.divergence.dual)(target)
        return jnp.mean(_weights(self.weight, draw, target) * _dot(draw.x - target, gap))


class _Aux(_Loss):
    teacher: Model
    student: Model
    draws: Draws
    weight: Callable[..., Any]
    divergence: Divergence

    def __call__(
        self, aux: Model, x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any] = None
    ) -> Float[Array, ""]:
        draw = lax.stop_gradient(self.draws(self.student, x, key, cond))
        target = lax.stop_gradient(_predictions(self.teacher, draw))
        average, loss = _predictions(aux, draw), jax.vmap(self.divergence.loss)
        return jnp.mean(_weights(self.weight, draw, target) * (loss(draw.x, average) + loss(target, average)))


class _Instant(_Loss):
    teacher: Model
    precond: Callable[[PyTree[Any]], PyTree[Any]]
    draws: Draws
    weight: Callable[..., Any]
    divergence: Divergence

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
        return jnp.mean(_weights(self.weight, draw, target) * _dot(target - draw.x, tangent))

    def _nu(self, draw: Draw) -> PyTree[Any]:
        if self.axis_name is None:
            return self.precond(eqx.filter_grad(partial(_error, self))(self.teacher, draw))
        teacher = varying(self.teacher, self.axis_name)
        return self.precond(lax.pmean(eqx.filter_grad(partial(_error, self))(teacher, draw), self.axis_name))

    def _tangent(self, nu: PyTree[Any], draw: Draw) -> tuple[Float[Array, "n *x"], Float[Array, "n *x"]]:
        moving, fixed = eqx.partition(self.teacher, eqx.is_inexact_array)

        def predict(moving):
            target = _predictions(eqx.combine(moving, fixed), draw)
            return jax.vmap(self.divergence.dual)(target), target

        _, tangent, target = jax.jvp(predict, (moving,), (nu,), has_aux=True)
        return target, tangent


def _predictions(model: Model, draw: Draw) -> Float[Array, "n *x"]:
    return jax.vmap(lambda z, logsnr, cond: denoise(model, z, logsnr, cond))(draw.z, draw.logsnr, draw.cond)


def _error(loss: "_Denoising | _Instant", model: Model, draw: Draw) -> Float[Array, ""]:
    predictions = _predictions(model, draw)
    errors = jax.vmap(loss.divergence.loss)(draw.x, predictions)
    return jnp.mean(_weights(loss.weight, draw, predictions) * errors)


def _weights(weight: Callable[..., Any], draw: Draw, target: Float[Array, "n *x"]) -> Float[Array, " n"]:
    return lax.stop_gradient(jax.vmap(weight)(draw.logsnr, draw.x - target))


def _dot(a: Float[Array, "n *x"], b: Float[Array, "n *x"]) -> Float[Array, " n"]:
    return jax.vmap(jnp.vdot)(a, b)
