"""What a loss looks at: draws of clean data and of the noisy states they are judged in.

The seam between process and loss. Every example has a key of its own, folded from its global place in the batch, so
that a draw is the same on one device and on many.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ._contract import at_least_single, check_batch, check_key
from ._defaults import check_trained_range, default_schedule, trained_under
from ._denoiser import Denoiser, denoise, underlying
from ._number import whole
from ._process import conditional_posterior, marginal
from ._schedule import AbstractSchedule, KarrasSchedule
from ._shard import Axes

Times = Callable[[PRNGKeyArray, Int[Array, ""], int, Any], Float[Array, ""]]


class Part(NamedTuple):
    """Which examples of a batch are drawn: those from the `first` on, of `total` on this device."""

    first: Int[Array, ""]
    total: int


class Draw(NamedTuple):
    r"""A batch of n: clean `x` (of a student, it carries the gradient), noisy `z`, its log-SNR, the conditioning.

    `key` holds one key per example for all networks that are judged on `z`: those in training mode drop out alike.
    """

    x: Float[Array, "n *x"]
    z: Float[Array, "n *x"]
    logsnr: Float[Array, " n"]
    cond: PyTree[Any]
    key: PRNGKeyArray | None = None


def stratified(key: PRNGKeyArray, index: Int[Array, ""], count: int, dtype: Any) -> Float[Array, ""]:
    r"""$(u + i/n) \bmod 1$ with one u for the batch: uniform on [0, 1), evenly spread over the batch.

    The low-discrepancy sampler of Kingma et al. 2021, appendix I.1. Each time alone is exactly uniform.
    """
    return (jax.random.uniform(key, (), dtype) + index.astype(dtype) / count) % 1


def uniform(key: PRNGKeyArray, index: Int[Array, ""], count: int, dtype: Any) -> Float[Array, ""]:
    """Independently uniform on [0, 1), as Algorithms 2 and 3 are printed."""
    return jax.random.uniform(jax.random.fold_in(key, index), (), dtype)


class Forward(eqx.Module):
    r"""The process itself: $s \sim p(s)$, $z_s \sim q(z_s | x)$ for data x.

    Args:
        schedule: None is that of the model in a loss, `default_schedule(model)`; alone, `KarrasSchedule()`.
        times: p(s) in the schedule's time, `(key, index, count, dtype) -> s`, for example `index` of `count`.
        axis_name: the mesh axis (or `vmap` axis), or several, that the batch is spread over.
        part: which examples of the batch a call is given, where it is taken in parts; None is all.
    """

    schedule: AbstractSchedule | None = None
    times: Times = stratified
    axis_name: Axes | None = eqx.field(default=None, static=True)
    part: Part | None = None

    def __call__(self, x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any] = None) -> Draw:
        return _per_example(self._draw, x, key, cond, self.axis_name, self.part)

    def _draw(self, x: Float[Array, "*x"], place: "_Place", cond: PyTree[Any]) -> Draw:
        schedule = KarrasSchedule() if self.schedule is None else self.schedule
        logsnr = schedule.logsnr(place.time(self.times, x.dtype))
        return Draw(x, marginal(x, logsnr).sample(place.key), logsnr, cond, place.net_key)


def _steps(k: Any) -> int:
    return whole("k", k, 1, "use 8")


class Rollout(eqx.Module):
    r"""One step of the student's sampler: the first lines of Algorithms 2 and 3 of Salimans et al. 2024.

    $s \sim p(s)$, $\delta \sim U[0, 1/k]$, $t = \min(s + \delta, 1)$; $z_t \sim q(z_t | x)$; $\tilde x = g_\eta(z_t)$;
    $z_s \sim q(z_s | z_t, \tilde x)$, with the gradient stopped at $z_s$. A call returns the `Draw` of
    $\tilde x$ and $z_s$, in float32 or better.

    Args:
        schedule: None is the teacher's own in a loss, `default_schedule(teacher)`; alone, the student's.
        k: the number of steps that the student shall sample in.
        kernel: $q(z_s | z_t, \tilde x)$, any function of `conditional_posterior`'s type.
        times: p(s) in the schedule's time, `(key, index, count, dtype) -> s`, for example `index` of `count`.
        axis_name: the mesh axis (or `vmap` axis), or several, that the batch is spread over.
        part: which examples of the batch a call is given, where it is taken in parts; None is all.
    """

    schedule: AbstractSchedule | None = None
    k: int = eqx.field(default=8, static=True, converter=_steps)
    kernel: Callable[..., Any] = conditional_posterior
    times: Times = stratified
    axis_name: Axes | None = eqx.field(default=None, static=True)
    part: Part | None = None

    def __call__(
        self, student: Callable[..., Any], x: Float[Array, "n *x"], key: PRNGKeyArray, cond: PyTree[Any] = None
    ) -> Draw:
        schedule = self._schedule_for(student)

        def draw(x, place, cond):
            return self._draw(schedule, student, x, place, cond)

        return _per_example(draw, x, key, cond, self.axis_name, self.part)

    def _schedule_for(self, student: Callable[..., Any]) -> AbstractSchedule:
        if isinstance(self.schedule, _TeachersOwn):
            _check_same(self.schedule.schedule, student)
        return default_schedule(student) if self.schedule is None else self.schedule

    def _draw(
        self, schedule: AbstractSchedule, student, x: Float[Array, "*x"], place: "_Place", cond: PyTree[Any]
    ) -> Draw:
        key_step, key_t, key_s = jax.random.split(place.key, 3)
        key_student, key_judges = jax.random.split(place.net_key)
        s = place.time(self.times, x.dtype)
        t = jnp.minimum(s + jax.random.uniform(key_step, (), x.dtype) / self.k, 1)
        logsnr_s = schedule.logsnr(s)
        logsnr_t = jnp.minimum(schedule.logsnr(t), logsnr_s)  # which rounding may turn round where s is close to t
        z_t = marginal(x, logsnr_t).sample(key_t)
        x_tilde = denoise(student, z_t, logsnr_t, cond, key_student)
        z_s = self.kernel(z_t, x_tilde, logsnr_s=logsnr_s, logsnr_t=logsnr_t).sample(key_s)
        return Draw(x_tilde, lax.stop_gradient(z_s), logsnr_s, cond, key_judges)


def fitted(draws: Any, teacher: Callable[..., Any]) -> Any:
    """The same draws on the teacher's own schedule, if they have none; a schedule that leaves its range is told.

    Draws of one's own are as they are.

    Raises:
        ValueError: for rollouts that are noisier than what a teacher was trained on that predicts noise or score.
    """
    if not isinstance(draws, Forward | Rollout):
        return draws
    if draws.schedule is not None:
        check_trained_range(draws.schedule, teacher)
        return draws
    own = default_schedule(teacher)
    return dataclasses.replace(draws, schedule=own if trained_under(teacher) is None else _TeachersOwn(own))


def over(draws: Any, axis_name: Axes | None) -> Any:
    """The same draws, a dataclass with an `axis_name`, from a batch spread over an axis; None changes nothing."""
    return draws if axis_name is None else dataclasses.replace(draws, axis_name=axis_name)


def within(draws: Any, first: Int[Array, ""], total: int) -> Any:
    """The same draws of a part of their batch."""
    return dataclasses.replace(draws, part=Part(first, total))


def halved(draws: Any) -> Any:
    """The same draws of every second example: of a part of the batch, it is one of half as many."""
    part = getattr(draws, "part", None)
    return draws if part is None else within(draws, part.first // 2, part.total // 2)


class _TeachersOwn(AbstractSchedule):
    """The schedule of the teacher, which nobody named: the student has to tell the same to its sampler."""

    schedule: AbstractSchedule

    def logsnr(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return self.schedule.logsnr(t)

    def time(self, logsnr: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return self.schedule.time(logsnr)


def _check_same(schedule: AbstractSchedule, student: Callable[..., Any]) -> None:
    if isinstance(underlying(student), Denoiser) and default_schedule(student) != schedule:
        raise ValueError(
            "needs a student that is sampled on its teacher's schedule; got a momentax.Denoiser with another `schedule`"
            " or `predict` than the teacher's, and rollouts without a schedule; give the student the teacher's"
            " schedule, or name one in Rollout(schedule) and in the student's sampler"
        )


class _Place(NamedTuple):
    """One example's place in the global batch: the batch's key, its own two, its position, the batch's size."""

    shared: PRNGKeyArray
    key: PRNGKeyArray
    net_key: PRNGKeyArray
    position: Int[Array, ""]
    total: int

    def time(self, times: Times, dtype: Any) -> Float[Array, ""]:
        return times(self.shared, self.position, self.total, dtype)


def _per_example(draw, x, key: PRNGKeyArray, cond: PyTree[Any], axis_name: Axes | None, part: Part | None) -> Draw:
    check_batch(x, cond)
    check_key(key)
    shared, own, nets = jax.random.split(key, 3)
    device, devices = (0, 1) if axis_name is None else (lax.axis_index(axis_name), lax.axis_size(axis_name))
    first, total = (0, x.shape[0]) if part is None else part

    def one(x, index, cond):
        key, net_key = (jax.random.fold_in(key, index) for key in (own, nets))
        return draw(x, _Place(shared, key, net_key, index, devices * total), cond)

    places = device * total + first + jnp.arange(x.shape[0], dtype=jnp.int32)
    return jax.vmap(one)(at_least_single(x), places, cond)
