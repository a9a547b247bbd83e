"""The tables of diffusers' schedulers: the products of 1 - beta, as each class and its settings make them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from ._options import Options

Betas = Float64[np.ndarray, " steps"]

CLOSE_TO_ZERO = 2.0**-24
"""What a table that ends at zero SNR ends at instead, so that its log-SNR (-16.6) is finite: diffusers' own number."""


class BetaDefaults(NamedTuple):
    """What a class of schedulers takes where its settings do not say."""

    start: float = 1e-4
    end: float = 0.02
    schedule: str = "linear"


DDPM = BetaDefaults()


def alphas_cumprod(options: Options, defaults: BetaDefaults, snr_shift: float = 1.0) -> Betas:
    r"""$\bar\alpha$ of every step, strictly inside (0, 1).

    Args:
        snr_shift: the default of what the signal-to-noise ratio is divided by.

    Raises:
        ValueError: for betas that leave a step without noise of its own, or no signal before the last.
    """
    table = np.cumprod(1 - _betas(options, defaults))
    shift = options.take("snr_shift_scale", snr_shift)
    table = table / (shift + (1 - shift) * table)
    if options.take("rescale_betas_zero_snr", False):
        table = _rescaled(table)
    return _checked(_inside(table))


def _rescaled(table: Betas) -> Betas:
    """With the first root where it was and the last at zero (Lin et al. 2024, algorithm 1)."""
    root = np.sqrt(table)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def _inside(table: Betas) -> Betas:
    """With finite log-SNRs: ends at 1 and 0 are moved a quarter into the next gap, or by less."""
    table = table.copy()
    if table[0] == 1:
        table[0] = 1 - min(CLOSE_TO_ZERO, (1 - table[1]) / 4)
    if table[-1] == 0:
        table[-1] = min(CLOSE_TO_ZERO, table[-2] / 4)
    return table


def _checked(table: Betas) -> Betas:
    falling = np.append(True, np.diff(table) < 0) & (table > 0) & (table < 1)
    if not falling.all():
        step = int(np.argmin(falling))
        raise ValueError(
            f"needs betas inside (0, 1) whose product stays above zero; got alphas_cumprod {table[step]} at step"
            f" {step}; choose another scheduler, or pass a momentax.DiscreteSchedule of your own"
        )
    return table


def _betas(options: Options, defaults: BetaDefaults) -> Betas:
    trained = options.take("trained_betas", None)
    if trained is not None:
        return np.asarray(trained, np.float64)
    named = ("num_train_timesteps", 1000), ("beta_start", defaults.start), ("beta_end", defaults.end)
    steps, low, high = (options.take(*pair) for pair in named)
    return _BETAS[options.take("beta_schedule", defaults.schedule, *_BETAS)](steps, low, high)


def _linear(steps: int, low: float, high: float) -> Betas:
    return np.linspace(low, high, steps)


def _scaled_linear(steps: int, low: float, high: float) -> Betas:
    return np.linspace(low**0.5, high**0.5, steps) ** 2


def _sigmoid(steps: int, low: float, high: float) -> Betas:
    return low + (high - low) / (1 + np.exp(-np.linspace(-6, 6, steps)))


def _of_kept(kept: Callable[[float], float]) -> Callable[[int, float, float], Betas]:
    r"""Betas of a function $\bar\alpha(t)$ of [0, 1], up to 0.999 (Nichol & Dhariwal 2021)."""

    def betas(steps: int, low: float, high: float) -> Betas:
        values = np.array([kept(i / steps) for i in range(steps + 1)])
        return np.minimum(1 - values[1:] / values[:-1], 0.999)

    return betas


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _exponential(t: float) -> float:
    return math.exp(-12 * t)


def _laplace(t: float) -> float:
    """As diffusers has it: a root of the logistic function of a logarithm, finite at both ends."""
    slope = math.copysign(0.5, 0.5 - t)
    return (1 + math.exp(slope * math.log(1 - 2 * abs(0.5 - t) + 1e-6))) ** -0.5


_BETAS: dict[Any, Callable[[int, float, float], Betas]] = {
    "exp": _of_kept(_exponential),
    "laplace": _of_kept(_laplace),
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid,
    "squaredcos_cap_v2": _of_kept(_cosine),
}
