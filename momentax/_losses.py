"""The losses, of one type: `(model, x, key, cond=None) -> scalar`, where what moves is the first argument."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._defaults import default_denoising_weight, default_weight
from ._divergence import Divergence, squared_error
from ._judge import AbstractLoss, Draws, Loss, Model, dot, predictions, weighted_error, weights
from ._rollout import Draw, Forward, Rollout, fitted, over, stratified
from ._schedule import AbstractSchedule
from ._shard import Axes


def denoising_loss(
    *,
    schedule: AbstractSchedule | None = None,
    weight: Callable[..., Any] | None = None,
    times: Callable[..., Any] = stratified,
    divergence: Divergence = squared_error,
    axis_name: Axes | None = None,
) -> Loss:
    r"""Trains a teacher: $E\,w(s)\,|x - g(z_s)|^2$ with $z_s \sim q(z_s | x)$, section 2.1 of Salimans et al. 2024.

    Value: the weighted squared error, summed over an example's dimensions, averaged over the batch. Gradient: the
    value's. The minimiser is $E[x | z_s]$ for every weight of the log-SNR alone.

    Args:
        schedule: what the model is trained under; None is its own, `default_schedule(model)`. Tell it to the denoiser
            (`Denoiser(net, predict, time, schedule)`): a student's rollouts are bounded by it.
        weight: w(s); None is that of an unweighted loss on what the model predicts: `flat_weight` for x, `snr_weight`
            for the noise and the score, `v_weight` for everything else.
        times: p(s) in the schedule's time: `stratified` or `uniform`.
        divergence: what the error is measured by.
        axis_name: the mesh axis the batch is spread over.
    """
    return _Denoising(Forward(schedule, times, axis_name), weight, divergence)


def student_loss(
    teacher: Model,
    aux: Model,
    *,
    rollout: Draws = Rollout(),
    weight: Callable[..., Any] | None = None,
    divergence: Divergence = squared_error,
) -> Loss:
    r"""The generator's loss of Algorithm 2, $w(s)\,(\tilde x - sg\,g_\theta(z_s))^T sg[g_\phi(z_s) - g_\theta(z_s)]$.

    Gradient: $w(s)\,(d\tilde x)^T[g_\phi - g_\theta]$, none through $z_s$, teacher or auxiliary: the paper's. Value:
    where the auxiliary has converged, $\frac12 E\,w(s)\,|E_g[\tilde x | z_s] - g_\theta(z_s)|^2$, the moment gap of
    equation (4), which is zero for a perfect student.
    """
    return _Student(teacher, aux, fitted(rollout, teacher), weight or default_weight(teacher), divergence)


def aux_loss(
    teacher: Model,
    student: Model,
    *,
    rollout: Draws = Rollout(),
    weight: Callable[..., Any] | None = None,
    divergence: Divergence = squared_error,
) -> Loss:
    r"""The auxiliary's loss of Algorithm 2, $w(s)\,(|\tilde x - g_\phi(z_s)|^2 + |g_\theta(z_s) - g_\phi(z_s)|^2)$.

    Value: as written. Gradient: with respect to the auxiliary only. The minimiser is, for every weight of the log-SNR
    alone, the average of $E_g[\tilde x | z_s]$ and the teacher's $g_\theta(z_s)$.
    """
    return _Aux(teacher, student, fitted(rollout, teacher), weight or default_weight(teacher), divergence)


def joint_loss(
    teacher: Model,
    *,
    rollout: Draws = Rollout(),
    weight: Callable[..., Any] | None = None,
    divergence: Divergence = squared_error,
    axis_name: Axes | None = None,
) -> Loss:
    r"""Both turns of Algorithm 2 in one, of the pair `(student, aux)`: one rollout, one evaluation of the teacher.

    With n examples it costs what 7n forward passes do; a turn of each player, which draw for themselves, 10n.

    Value: `student_loss`'s. Gradient: a pair, of `student_loss` with respect to the student and of `aux_loss` with
    respect to the auxiliary, both at the same draw and before either has moved. They are two players of a game, not one
    objective: give each its own optimiser, or one that does not mix them (a clip by the global norm does).

    Raises:
        TypeError: when called, for a model that is not a pair.
    """
    draws = over(fitted(rollout, teacher), axis_name)
    return _Joint(teacher, draws, weight or default_weight(teacher), divergence)


class _Denoising(AbstractLoss):
    draws: Draws
    weight: Callable[..., Any] | None
    divergence: Divergence

    def __call__(
        self, model: Model, x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any] = None
    ) -> Float[Array, ""]:
        draw, weight = fitted(self.draws, model)(x, key, cond), self.weight or default_denoising_weight(model)
        return weighted_error(weight, self.divergence, model, draw)


class _Student(AbstractLoss):
    teacher: Model
    aux: Model
    draws: Draws
    weight: Callable[..., Any]
    divergence: Divergence

    def __call__(
        self, student: Model, x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any] = None
    ) -> Float[Array, ""]:
        draw = self.draws(student, x, key, cond)
        target, average = (lax.stop_gradient(predictions(model, draw)) for model in (self.teacher, self.aux))
        return _student_value(weights(self.weight, draw, target), self.divergence, draw, target, average)


class _Aux(AbstractLoss):
    teacher: Model
    student: Model
    draws: Draws
    weight: Callable[..., Any]
    divergence: Divergence

    def __call__(
        self, aux: Model, x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any] = None
    ) -> Float[Array, ""]:
        draw = lax.stop_gradient(self.draws(self.student, x, key, cond))
        target = lax.stop_gradient(predictions(self.teacher, draw))
        average = predictions(aux, draw)
        return _aux_value(weights(self.weight, draw, target), self.divergence, draw, target, average)


class _Joint(AbstractLoss):
    teacher: Model
    draws: Draws
    weight: Callable[..., Any]
    divergence: Divergence

    def __call__(
        self, players: tuple[Model, Model], x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any] = None
    ) -> Float[Array, ""]:
        student, aux = _pair(players)
        draw = self.draws(student, x, key, cond)
        still = lax.stop_gradient(draw)
        target, average = lax.stop_gradient(predictions(self.teacher, still)), predictions(aux, still)
        w = weights(self.weight, still, target)
        auxiliary = _aux_value(w, self.divergence, still, target, average)
        readable = _student_value(w, self.divergence, draw, target, lax.stop_gradient(average))
        return readable + (auxiliary - lax.stop_gradient(auxiliary))


def _pair(players: Any) -> tuple[Model, Model]:
    if not isinstance(players, tuple) or len(players) != 2:
        raise TypeError(
            f"needs a pair (student, aux) for the joint loss; got {type(players).__name__};"
            " do call it, or the gradient of it, with (student, aux)"
        )
    return players


def _student_value(
    w: Float[Array, " n"], divergence: Divergence, draw: Draw, target: Array, average: Array
) -> Float[Array, ""]:
    gap = jax.vmap(divergence.dual)(average) - jax.vmap(divergence.dual)(target)
    return jnp.mean(w * dot(draw.x - target, gap))


def _aux_value(
    w: Float[Array, " n"], divergence: Divergence, draw: Draw, target: Array, average: Array
) -> Float[Array, ""]:
    loss = jax.vmap(divergence.loss)
    return jnp.mean(w * (loss(draw.x, average) + loss(target, average)))
