"""Noise schedules: time t in [0, 1], from data to noise, to the log signal-to-noise ratio and back."""

import abc
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from ._contract import at_least_single
from ._number import a_real, real


def alpha(logsnr: Float[Array, "*s"]) -> Float[Array, "*s"]:
    r"""The signal's scale, $\alpha = \sqrt{\mathrm{sigmoid}(\ell)}$, variance preserving (Kingma et al. 2021)."""
    return jnp.sqrt(jax.nn.sigmoid(at_least_single(logsnr))).astype(jnp.result_type(logsnr))


def sigma(logsnr: Float[Array, "*s"]) -> Float[Array, "*s"]:
    r"""The noise's scale, $\sigma = \sqrt{\mathrm{sigmoid}(-\ell)}$, so that $\alpha^2 + \sigma^2 = 1$."""
    return jnp.sqrt(jax.nn.sigmoid(-at_least_single(logsnr))).astype(jnp.result_type(logsnr))


class AbstractSchedule(eqx.Module):
    r"""A finite, strictly decreasing map $\ell(t)$ of [0, 1], and its inverse.

    A schedule of your own is a subclass with the two methods. Both take and return arrays of any shape.
    """

    @abc.abstractmethod
    def logsnr(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        r"""$\ell(t) = \ln(\alpha_t^2 / \sigma_t^2)$, for t in [0, 1]."""

    @abc.abstractmethod
    def time(self, logsnr: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The t in [0, 1] whose log-SNR this is; log-SNRs beyond the schedule's ends give its ends."""


class KarrasSchedule(AbstractSchedule):
    r"""$\sigma_e(t) = (t\,\sigma_{max}^{1/\rho} + (1 - t)\,\sigma_{min}^{1/\rho})^\rho$, $\ell = -2\ln\sigma_e$.

    The test-time schedule of Karras et al. 2022, equation (5). Its uniform times are the paper's p(s).

    Raises:
        ValueError: for levels whose log-SNRs are beyond [-80, 80] or span less than 0.1, and for a rho at which they
            vanish (below $|\ln\sigma| / 80$) or run together (above 1000 for each unit they span) in float32.
    """

    sigma_min: float = eqx.field(default=0.002, static=True, converter=a_real("sigma_min", "(0, inf)", "use 0.002"))
    sigma_max: float = eqx.field(default=80.0, static=True, converter=a_real("sigma_max", "(0, inf)", "use 80.0"))
    rho: float = eqx.field(default=7.0, static=True, converter=a_real("rho", "(0, inf)", "use 7.0"))

    def __check_init__(self):
        logs = [math.log(level) for level in (self.sigma_min, self.sigma_max)]
        _check_ends(-2 * logs[1], -2 * logs[0])
        least, most = max(map(abs, logs)) / _LIMIT, 2000 * (logs[1] - logs[0])
        real("rho", self.rho, f"[{least:.4g}, {most:.4g}]", "use 7.0, at which no level vanishes in float32")

    def logsnr(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        low, high = self._ends()
        return -2 * self.rho * jnp.log(t * high + (1 - t) * low)

    def time(self, logsnr: Float[Array, "*s"]) -> Float[Array, "*s"]:
        low, high = self._ends()
        return jnp.clip((jnp.exp(-logsnr / (2 * self.rho)) - low) / (high - low), 0, 1)

    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)


class CosineSchedule(AbstractSchedule):
    r"""$\ell = -2\ln\tan(a + t(b - a))$ with $a, b = \arctan e^{-\ell_{max}/2}, \arctan e^{-\ell_{min}/2}$.

    Nichol & Dhariwal 2021, in log-SNR and truncated as in Hoogeboom et al. 2023.

    Raises:
        ValueError: for log-SNRs beyond [-80, 80], and for a range of less than 0.1.
    """

    logsnr_min: float = eqx.field(default=-15.0, static=True, converter=a_real("logsnr_min", "(-inf, inf)", "use -15"))
    logsnr_max: float = eqx.field(default=15.0, static=True, converter=a_real("logsnr_max", "(-inf, inf)", "use 15"))

    def __check_init__(self):
        _check_ends(self.logsnr_min, self.logsnr_max)

    def logsnr(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        angles = self._angles()
        to_data, to_noise = angles.low + t * angles.span, angles.rest + (1 - t) * angles.span
        # Each tangent where it is at most 1; the bound keeps the other one away from its pole.
        data, noise = (-2 * jnp.log(jnp.tan(jnp.minimum(angle, 1.0))) for angle in (to_data, to_noise))
        return jnp.where(t < angles.middle, data, -noise)

    def time(self, logsnr: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return self._angles().time(jnp.arctan(jnp.exp(-logsnr / 2)), jnp.arctan(jnp.exp(logsnr / 2)))

    def _angles(self) -> "_Span":
        return _span(lambda logsnr: math.atan(math.exp(-logsnr / 2)), self.logsnr_min, self.logsnr_max)


class FlowSchedule(AbstractSchedule):
    r"""$\ell = 2\ln\frac{1 - \tau}{\tau}$ with $\tau$ linear in t: rectified flow, rescaled to variance preserving.

    Liu et al. 2022; Esser et al. 2024. The range of $\ell$ truncates $\tau$ to the inside of [0, 1].

    Raises:
        ValueError: for log-SNRs beyond [-80, 80], and for a range of less than 0.1.
    """

    logsnr_min: float = eqx.field(default=-15.0, static=True, converter=a_real("logsnr_min", "(-inf, inf)", "use -15"))
    logsnr_max: float = eqx.field(default=15.0, static=True, converter=a_real("logsnr_max", "(-inf, inf)", "use 15"))

    def __check_init__(self):
        _check_ends(self.logsnr_min, self.logsnr_max)

    def logsnr(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        taus = self._taus()
        noise, data = taus.low + t * taus.span, taus.rest + (1 - t) * taus.span
        return 2 * (jnp.log(data) - jnp.log(noise))

    def time(self, logsnr: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return self._taus().time(jax.nn.sigmoid(-logsnr / 2), jax.nn.sigmoid(logsnr / 2))

    def _taus(self) -> "_Span":
        return _span(lambda logsnr: 1 / (1 + math.exp(logsnr / 2)), self.logsnr_min, self.logsnr_max)


class DiscreteSchedule(AbstractSchedule):
    r"""A table of $\bar\alpha_0 > \dots > \bar\alpha_{N-1}$ (Ho et al. 2020), linear in $\ell$ in between.

    Step i stands at t = (i + 1) / N, so that k steps of a sampler, k a divisor of N, visit whole steps of the table:
    the "trailing" ones of Lin et al. 2023. From the first step to t = 0 the table goes on as it begins. A checkpoint's
    own time is `schedule.step`, or `schedule.nearest_step` for a network that looks it up:
    `Denoiser(net, predict_eps, schedule.step, schedule)`. The table is static: nothing trains it.
    """

    logsnrs: tuple[float, ...] = eqx.field(static=True, repr=False)

    def __init__(self, alphas_cumprod: Sequence[float] | Array | np.ndarray):
        table = np.asarray(alphas_cumprod, np.float64)
        if table.ndim != 1 or len(table) < 2 or not (np.all((table > 0) & (table < 1)) and np.all(np.diff(table) < 0)):
            raise ValueError(
                "needs alphas_cumprod as at least two strictly decreasing numbers inside (0, 1);"
                f" got shape {table.shape}; use `jnp.cumprod(1 - betas)`"
            )
        self.logsnrs = tuple((np.log(table) - np.log1p(-table)).tolist())
        _check_decreasing(np.asarray(self.logsnrs, np.float32), "a table of fewer steps")

    def logsnr(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return jnp.interp(t, *self._table(t.dtype))

    def time(self, logsnr: Float[Array, "*s"]) -> Float[Array, "*s"]:
        times, logsnrs = self._table(logsnr.dtype)
        return jnp.interp(logsnr, logsnrs[::-1], times[::-1])

    def step(self, logsnr: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The step 0..N - 1 of this log-SNR, fractions included, as embeddings by sines and cosines take them."""
        return jnp.maximum(len(self.logsnrs) * self.time(logsnr) - 1, 0)

    def nearest_step(self, logsnr: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The step 0..N - 1 whose log-SNR is the nearest, a whole number in the dtype of `logsnr`; no gradient."""
        return jnp.round(self.step(logsnr))

    def _table(self, dtype) -> tuple[Float[Array, " steps"], Float[Array, " steps"]]:
        before = 2 * self.logsnrs[0] - self.logsnrs[1]
        return jnp.linspace(0, 1, 1 + len(self.logsnrs), dtype=dtype), jnp.asarray((before, *self.logsnrs), dtype)


def shifted(schedule: AbstractSchedule, shift: float) -> AbstractSchedule:
    r"""$\ell(t) + c$: the same times at another resolution, Hoogeboom et al. 2023.

    Args:
        shift: c, in nats of log-SNR; `resolution_shift` gives the one for a resolution. The weights take the
            same number, to be evaluated at the unshifted log-SNR.

    Raises:
        ValueError: where log-SNRs would be beyond [-80, 80].
    """
    return _Shifted(schedule, shift)


def interpolated(low: AbstractSchedule, high: AbstractSchedule) -> AbstractSchedule:
    r"""$t\,\ell_{low}(t) + (1 - t)\,\ell_{high}(t)$: one schedule near noise, another near data.

    Hoogeboom et al. 2023, for two shifts of one schedule with $\ell_{low} \le \ell_{high}$.
    """
    return _Interpolated(low, high)


def truncated(
    schedule: AbstractSchedule, logsnr_min: float = -math.inf, logsnr_max: float = math.inf
) -> AbstractSchedule:
    r"""The part of a schedule with $\ell_{min} \le \ell(t) \le \ell_{max}$, spread over [0, 1].

    For a teacher that is not to be trusted beyond: $\ell'(t) = \ell(a + t(b - a))$, where $\ell(a) = \ell_{max}$ and
    $\ell(b) = \ell_{min}$, or the schedule's own end where that comes first.

    Args:
        logsnr_min: the least log-SNR, in nats.
        logsnr_max: the greatest, in nats.

    Raises:
        ValueError: where nothing of the schedule is left, or too little to tell its times apart in float32.
    """
    return _Truncated(schedule, logsnr_min, logsnr_max)


def ends(schedule: AbstractSchedule) -> tuple[float, float]:
    """The least and the greatest log-SNR of a schedule."""
    with jax.ensure_compile_time_eval():
        low, high = (float(schedule.logsnr(jnp.asarray(t, jnp.float32))) for t in (1.0, 0.0))
    return low, high


def resolution_shift(noise_d: float, image_d: float) -> float:
    r"""$c = 2\ln(d_{noise} / d_{image})$, which gives images of side `image_d` the noise that suits `noise_d`."""
    sides = {"noise_d": noise_d, "image_d": image_d}
    noise, image = (real(name, side, "(0, inf)", "use the side in pixels") for name, side in sides.items())
    return 2 * (math.log(noise) - math.log(image))


class _Shifted(AbstractSchedule):
    schedule: AbstractSchedule
    shift: float = eqx.field(static=True, converter=a_real("shift", "(-inf, inf)", "use `resolution_shift`"))

    def __check_init__(self):
        _check_decreasing(_on_grid(self), "another shift")

    def logsnr(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return self.schedule.logsnr(t) + self.shift

    def time(self, logsnr: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return self.schedule.time(logsnr - self.shift)


class _Interpolated(AbstractSchedule):
    low: AbstractSchedule
    high: AbstractSchedule

    def __check_init__(self):
        if not np.all(_on_grid(self.low) <= _on_grid(self.high)):
            raise ValueError("needs low.logsnr(t) <= high.logsnr(t) for every t; got them crossing; swap them")
        _check_decreasing(_on_grid(self), "other schedules")

    def logsnr(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return t * self.low.logsnr(t) + (1 - t) * self.high.logsnr(t)

    def time(self, logsnr: Float[Array, "*s"]) -> Float[Array, "*s"]:
        def halve(bounds, _):
            left, right = bounds
            middle = (left + right) / 2
            early = self.logsnr(middle) > logsnr
            return (jnp.where(early, middle, left), jnp.where(early, right, middle)), None

        whole = jnp.zeros_like(logsnr), jnp.ones_like(logsnr)
        (left, right), _ = jax.lax.scan(halve, whole, length=jnp.finfo(logsnr.dtype).nmant + 1)
        return (left + right) / 2


class _Truncated(AbstractSchedule):
    schedule: AbstractSchedule
    logsnr_min: float = eqx.field(static=True, converter=a_real("logsnr_min", "[-inf, inf]", "use -inf for no bound"))
    logsnr_max: float = eqx.field(static=True, converter=a_real("logsnr_max", "[-inf, inf]", "use inf for no bound"))

    def __check_init__(self):
        low, high = ends(self.schedule)
        if not (self.logsnr_min < min(high, self.logsnr_max) and max(low, self.logsnr_min) < self.logsnr_max):
            raise ValueError(
                f"needs log-SNRs between logsnr_min and logsnr_max in the schedule, which has {low:.4g} to {high:.4g};"
                f" got {self.logsnr_min!r} to {self.logsnr_max!r}; choose an interval that overlaps"
            )
        _check_decreasing(_on_grid(self), "a wider interval")

    def logsnr(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        first, last = self._times(t.dtype)
        return self.schedule.logsnr(first + t * (last - first))

    def time(self, logsnr: Float[Array, "*s"]) -> Float[Array, "*s"]:
        first, last = self._times(logsnr.dtype)
        return jnp.clip((self.schedule.time(logsnr) - first) / (last - first), 0, 1)

    def _times(self, dtype) -> tuple[Float[Array, ""], Float[Array, ""]]:
        low, high = ends(self.schedule)
        inside = min(high, self.logsnr_max), max(low, self.logsnr_min)
        first, last = (self.schedule.time(jnp.asarray(logsnr, dtype)) for logsnr in inside)
        return first, last


class _Span(NamedTuple):
    """What is linear in time between two log-SNRs: an angle or tau, which with its complement makes a constant.

    Its value at the data's end, its complement there, the complement at the noise's end, and what lies between.
    """

    low: float
    complement: float
    rest: float
    span: float

    @property
    def middle(self) -> float:
        """The time at which it equals its complement, in or beyond [0, 1]."""
        return 0.5 + (self.rest - self.low) / (2 * self.span)

    def time(self, value: Float[Array, "*s"], complement: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The time of a value, from the end that it is near to where the whole range is."""
        if self.low < self.complement:
            return jnp.clip((value - self.low) / self.span, 0, 1)
        return jnp.clip(1 - (complement - self.rest) / self.span, 0, 1)


def _span(value: Callable[[float], float], logsnr_min: float, logsnr_max: float) -> _Span:
    """That of a function whose complement is its value at the negative log-SNR: nothing cancels."""
    low, high, complement, rest = (value(end) for end in (logsnr_max, logsnr_min, -logsnr_max, -logsnr_min))
    return _Span(low, complement, rest, high - low if low < complement else complement - rest)


_LIMIT = 80.0
"""Of log-SNRs, either way: SNRs, and the square roots of their odds, are normal numbers in float32."""


def _check_ends(logsnr_min: float, logsnr_max: float) -> None:
    inside = -_LIMIT <= logsnr_min <= logsnr_max - 0.1 and logsnr_max <= _LIMIT
    if not inside:
        raise ValueError(
            f"needs log-SNRs of at least {-_LIMIT} and at most {_LIMIT}, 0.1 apart or more, the least first;"
            f" got {logsnr_min!r} to {logsnr_max!r}; swap or change them"
        )


def _on_grid(schedule: AbstractSchedule) -> Float32[np.ndarray, " times"]:
    """Log-SNRs at 257 times in float32."""
    with jax.ensure_compile_time_eval():
        return np.asarray(schedule.logsnr(jnp.linspace(0, 1, 257, dtype=jnp.float32)))


def _check_decreasing(logsnrs: Float32[np.ndarray, " n"], otherwise: str) -> None:
    """Of what is made of tables or other schedules; the bound has room for roundings."""
    if not (np.all(np.diff(logsnrs) < 0) and np.all(np.abs(logsnrs) <= _LIMIT + 0.01)):
        raise ValueError(
            f"needs log-SNRs in [{-_LIMIT}, {_LIMIT}] that decrease in float32;"
            f" got {logsnrs.max():.4g} to {logsnrs.min():.4g}, or equal ones; use {otherwise}"
        )
