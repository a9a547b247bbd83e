"""Hypothesis strategies: numbers are drawn, shapes stay fixed, so that a jitted body compiles once."""

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import momentax

DDPM = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
"""The alphas_cumprod of Ho et al. 2020: a linear table of 1000 betas."""

SCHEDULES = {
    "karras": momentax.KarrasSchedule(),
    "cosine": momentax.CosineSchedule(),
    "flow": momentax.FlowSchedule(),
    "discrete": momentax.DiscreteSchedule(DDPM),
    "shifted": momentax.shifted(momentax.CosineSchedule(), momentax.resolution_shift(32.0, 128.0)),
    "interpolated": momentax.interpolated(
        momentax.shifted(momentax.CosineSchedule(), -4.0), momentax.shifted(momentax.CosineSchedule(), 1.0)
    ),
}
"""One of every kind; a fixed set, since a schedule's settings are static."""


def _array(numbers):
    return jnp.asarray(numbers, jnp.float64)


schedules = st.sampled_from(list(SCHEDULES.values()))

times = st.floats(0, 1, allow_subnormal=False).map(_array)
"""t in [0, 1], a float64 scalar array."""

logsnrs = st.floats(-15, 15).map(_array)
"""A log-SNR that any schedule may reach, a float64 scalar array."""

logsnr_pairs = st.tuples(logsnrs, logsnrs).map(lambda pair: (max(pair), min(pair)))
"""(logsnr_s, logsnr_t) with s <= t, so that logsnr_s >= logsnr_t."""

time_pairs = st.tuples(times, times).map(lambda pair: (min(pair), max(pair)))
"""(s, t) with s <= t."""

vectors = st.lists(st.floats(-3, 3, allow_subnormal=False), min_size=3, max_size=3).map(_array)
"""A float64 array of shape [3], one example."""

seeds = st.integers(0, 2**31 - 1)


@st.composite
def kernels(draw):
    """One of every kind."""
    family = [momentax.conditional_posterior, momentax.ddim, momentax.renoise]
    return draw(st.sampled_from([*family, momentax.stochastic(0.5), momentax.noisier(0.3)]))


WEIGHTS = [
    momentax.edm_weight,
    momentax.flat_weight,
    momentax.adaptive_weight,
    momentax.snr_weight,
    momentax.truncated_snr_weight,
    momentax.v_weight,
]
