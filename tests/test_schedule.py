"""Schedules: a strictly decreasing map of [0, 1] and its inverse; each against its own published form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import DDPM, SCHEDULES, logsnrs, time_pairs, times

import momentax
from momentax import CosineSchedule, DiscreteSchedule, FlowSchedule, KarrasSchedule

GRID = jnp.linspace(0, 1, 257)
EPS = float(jnp.finfo(jnp.float32).eps)


class Broken(momentax.AbstractSchedule):
    """A schedule of one's own without numbers."""

    def logsnr(self, t):
        return t * jnp.nan

    def time(self, logsnr):
        return logsnr * jnp.nan


every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@eqx.filter_jit
def logsnr_of(schedule, t):
    return schedule.logsnr(t)


@eqx.filter_jit
def time_of(schedule, logsnr):
    return schedule.time(logsnr)


@every_schedule
@given(t=times)
def test_the_time_of_the_log_snr_is_the_time(schedule, t):
    r"""$\delta t = \delta\ell / |\ell'|$, and $\ell$ loses a few roundings of a number below 16."""
    np.testing.assert_allclose(time_of(schedule, logsnr_of(schedule, t)), t, rtol=0, atol=1e-13)


@every_schedule
@given(logsnr=logsnrs)
def test_the_log_snr_of_the_time_is_the_log_snr_within_the_ends(schedule, logsnr):
    r"""An error of $\epsilon$ in t is one of $\epsilon\,|d\ell/dt|$, below $6000\,\epsilon$ for these."""
    high, low = logsnr_of(schedule, jnp.asarray([0.0, 1.0]))
    there = logsnr_of(schedule, time_of(schedule, logsnr))
    np.testing.assert_allclose(there, jnp.clip(logsnr, low, high), rtol=0, atol=1e-11)


@every_schedule
@given(pair=time_pairs)
def test_later_is_noisier(schedule, pair):
    s, t = pair
    assume(t - s > 1e-9)
    assert logsnr_of(schedule, s) > logsnr_of(schedule, t)


@every_schedule
@given(beyond=st.floats(0, 50).map(jnp.asarray))
def test_log_snrs_beyond_the_ends_have_the_ends_times(schedule, beyond):
    high, low = logsnr_of(schedule, jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(time_of(schedule, high + beyond), 0, atol=1e-12)
    np.testing.assert_allclose(time_of(schedule, low - beyond), 1, atol=1e-12)


@every_schedule
def test_a_schedule_in_float32_is_the_schedule_in_float64(schedule):
    r"""$2\rho = 14$ logarithms of a number of three roundings, and a result below 16: under 64 ulps of 1."""
    single = schedule.logsnr(GRID.astype(jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single.astype(float), schedule.logsnr(GRID), rtol=0, atol=64 * EPS)


@every_schedule
def test_times_in_float32_come_back(schedule):
    r"""$\delta t = \delta\ell / |\ell'|$ where $|\ell'| > 6$, and a rounding or two."""
    back = schedule.time(schedule.logsnr(GRID.astype(jnp.float32)))
    assert back.dtype == jnp.float32
    np.testing.assert_allclose(back.astype(float), GRID, rtol=0, atol=12 * EPS)


def test_karras_18_levels_are_the_published_ones():
    """Equation (5) of Karras et al. 2022, where level 0 is the noisiest."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    published = (high + np.arange(18) / 17 * (low - high)) ** 7
    levels = jnp.exp(-KarrasSchedule().logsnr(1 - jnp.arange(18.0) / 17) / 2)
    np.testing.assert_allclose(levels, published, rtol=1e-13)


def test_uniform_times_under_karras_have_log_snrs_of_exponential_density():
    r"""$P(\ell \le a)$ is $1 - time(a)$; the density is proportional to $e^{-\ell / (2\rho)}$."""
    schedule = KarrasSchedule()
    points = jnp.linspace(-8, 12, 41)
    density = -jax.vmap(jax.grad(schedule.time))(points)
    ratio = density / jnp.exp(-points / 14)
    np.testing.assert_allclose(ratio, np.full(41, ratio[0]), rtol=1e-12)
    assert ratio[0] > 0


def test_the_ends_of_karras_are_its_sigmas_and_of_the_rest_their_log_snrs():
    ends = jnp.asarray([0.0, 1.0])
    np.testing.assert_allclose(KarrasSchedule(0.01, 20.0, 3.0).logsnr(ends), -2 * np.log([0.01, 20.0]), rtol=1e-13)
    for schedule in (CosineSchedule(-9.0, 11.0), FlowSchedule(-9.0, 11.0)):
        np.testing.assert_allclose(schedule.logsnr(ends), [11.0, -9.0], rtol=1e-12)


@given(times)
def test_cosines_alpha_is_the_cosine_of_an_angle_linear_in_time(t):
    low, high = np.arctan(np.exp(-7.5)), np.arctan(np.exp(7.5))
    logsnr, angle = CosineSchedule().logsnr(t), low + float(t) * (high - low)
    np.testing.assert_allclose(momentax.alpha(logsnr), np.cos(angle), rtol=1e-11)
    np.testing.assert_allclose(momentax.sigma(logsnr), np.sin(angle), rtol=1e-11)


def test_the_middle_of_symmetric_schedules_is_an_even_mixture():
    middle = jnp.asarray(0.5)
    for schedule in (CosineSchedule(), FlowSchedule(), CosineSchedule(-3.0, 3.0)):
        np.testing.assert_allclose(schedule.logsnr(middle), 0, atol=1e-14)


@given(times)
def test_flows_rescaled_signal_is_linear_in_time(t):
    r"""$\alpha / (\alpha + \sigma) = 1 - \tau$, which runs from one end's value to the other's."""
    logsnr = FlowSchedule(-15.0, 15.0).logsnr(t)
    signal = momentax.alpha(logsnr) / (momentax.alpha(logsnr) + momentax.sigma(logsnr))
    first, last = 1 / (1 + np.exp(-7.5)), 1 / (1 + np.exp(7.5))
    np.testing.assert_allclose(signal, (1 - t) * first + t * last, rtol=1e-10)


@given(logsnrs)
def test_alpha_and_sigma_preserve_variance_and_have_the_log_snr(logsnr):
    alpha, sigma = momentax.alpha(logsnr), momentax.sigma(logsnr)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-15)
    np.testing.assert_allclose(2 * jnp.log(alpha / sigma), logsnr, rtol=0, atol=1e-14)


def test_a_discrete_schedule_stands_on_its_table():
    steps = jnp.arange(1000.0)
    schedule = DiscreteSchedule(DDPM)
    logsnr = schedule.logsnr((steps + 1) / 1000)
    np.testing.assert_allclose(jax.nn.sigmoid(logsnr), DDPM, rtol=1e-10)
    np.testing.assert_allclose(1000 * schedule.time(logsnr) - 1, steps, rtol=0, atol=1e-9)
    np.testing.assert_allclose(schedule.step(logsnr), steps, rtol=0, atol=1e-9)


def test_a_discrete_schedule_is_linear_in_log_snr_between_its_steps():
    table = jnp.asarray([0.9, 0.5, 0.1])
    nodes = np.log([9.0, 1.0, 1 / 9])
    schedule = DiscreteSchedule(table)
    halves = schedule.logsnr(jnp.asarray([0.5, 5 / 6]))
    np.testing.assert_allclose(halves, [nodes[:2].mean(), nodes[1:].mean()], rtol=1e-14)
    np.testing.assert_allclose(schedule.logsnr(jnp.asarray(0.0)), 2 * nodes[0] - nodes[1], rtol=1e-14)


@pytest.mark.parametrize("k", [1, 4, 8, 50])
def test_k_steps_visit_the_trailing_steps_of_the_table(k):
    """Those of Lin et al. 2023: N/k - 1, 2N/k - 1, ..., N - 1, whole numbers where k divides N."""
    schedule = DiscreteSchedule(DDPM)
    visited = schedule.step(schedule.logsnr(jnp.arange(1, k + 1) / k))
    np.testing.assert_allclose(visited, np.arange(1, k + 1) * 1000 / k - 1, rtol=1e-12)


def test_a_discrete_schedules_step_is_the_nearest_of_its_table():
    """Nearest in log-SNR, and the first or last beyond the ends; in the dtype it is asked in."""
    nodes = np.log(DDPM) - np.log1p(-DDPM)
    schedule = DiscreteSchedule(DDPM)
    asked = np.random.default_rng(0).uniform(-12, 12, 500)
    steps = eqx.filter_jit(lambda schedule, logsnr: schedule.nearest_step(logsnr))(schedule, jnp.asarray(asked))
    np.testing.assert_array_equal(steps, np.argmin(np.abs(nodes[:, None] - asked), 0))
    np.testing.assert_array_equal(schedule.nearest_step(jnp.asarray(nodes)), np.arange(1000))
    single = schedule.nearest_step(jnp.asarray(nodes, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_array_equal(single, np.arange(1000))


def test_a_discrete_schedules_table_is_nobodys_to_train():
    """Neither of its own nor as the time of a denoiser; and two of one table are one program."""
    schedule, same = (DiscreteSchedule(jnp.asarray(DDPM, jnp.float32)) for _ in range(2))
    assert not jax.tree.leaves((schedule, schedule.step, schedule.nearest_step))
    assert jax.tree.structure(schedule.step) == jax.tree.structure(same.step)


@pytest.mark.oracle
def test_a_discrete_schedule_is_diffusers_ddpm():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    schedule = DiscreteSchedule(scheduler.alphas_cumprod.numpy())
    np.testing.assert_allclose(schedule.logsnrs, SCHEDULES["discrete"].logsnrs, rtol=0, atol=1e-3)


@given(times, st.integers(-6, 6))
def test_a_shift_moves_every_log_snr_by_as_much(t, shift):
    schedule = momentax.shifted(KarrasSchedule(), float(shift))
    np.testing.assert_allclose(schedule.logsnr(t), KarrasSchedule().logsnr(t) + shift, rtol=1e-15)


def test_the_resolution_shift_is_that_of_averaging_pixels():
    r"""Averaging n x n pixels divides the noise by n: $\ell_{image} + 2\ln n = \ell_{noise}$."""
    for n in (1, 2, 4):
        np.testing.assert_allclose(momentax.resolution_shift(32.0, 32.0 * n) + 2 * np.log(n), 0, atol=1e-15)
    assert momentax.resolution_shift(32.0, 64.0) < 0


@given(times)
def test_an_interpolated_schedule_is_low_near_noise_and_high_near_data(t):
    low, high = momentax.shifted(CosineSchedule(), -4.0), momentax.shifted(CosineSchedule(), 1.0)
    middle = CosineSchedule().logsnr(t) - 4 * t + (1 - t)
    np.testing.assert_allclose(momentax.interpolated(low, high).logsnr(t), middle, rtol=1e-13, atol=1e-13)
    assert low.logsnr(t) <= middle + 1e-12
    assert high.logsnr(t) >= middle - 1e-12


@pytest.mark.parametrize("schedule", [KarrasSchedule(), FlowSchedule()], ids=["karras", "flow"])
def test_an_interpolation_of_a_schedule_with_itself_is_itself(schedule):
    both = momentax.interpolated(schedule, schedule)
    np.testing.assert_allclose(both.logsnr(GRID), schedule.logsnr(GRID), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(both.time(both.logsnr(GRID)), GRID, rtol=0, atol=1e-12)


@st.composite
def ranges(draw):
    """Two log-SNRs that any schedule may end at; at the bounds and close together as often as not."""
    width = draw(st.floats(0.1, 160) | st.just(0.1))
    low = draw(st.floats(-80, 80 - width) | st.sampled_from([-80.0, 80 - width]))
    return low, min(low + max(width, 0.1000001), 80.0) if low + width < 80 else 80.0


@st.composite
def made(draw):
    """A schedule of any settings that are allowed."""
    low, high = draw(ranges().filter(lambda ends: ends[1] - ends[0] >= 0.1))
    kind = draw(st.sampled_from([CosineSchedule, FlowSchedule, KarrasSchedule]))
    if kind is not KarrasSchedule:
        return kind(low, high)
    # A rounding inside: the levels' logarithms are to be within the bounds, too.
    levels = np.exp(-np.clip([high, low], -79.999, 79.999) / 2)
    assume(2 * np.diff(np.log(levels))[0] >= 0.1001)
    logs = np.log(levels)
    least, most = 1.01 * np.abs(logs).max() / 80, 0.99 * 2000 * (logs[1] - logs[0])
    rho = draw(st.floats(least, most) | st.sampled_from([least, most]))
    return KarrasSchedule(float(levels[0]), float(levels[1]), float(rho))


@settings(max_examples=60)
@given(made())
def test_every_schedule_that_is_allowed_decreases_in_float32(schedule):
    """From end to end; the ends are those that it was given, to the rounding of a number below 80."""
    single = np.asarray(schedule.logsnr(GRID.astype(jnp.float32)))
    assert np.all(np.isfinite(single))
    assert np.all(np.diff(single) < 0), schedule
    double = np.asarray(schedule.logsnr(GRID))
    assert np.all(np.diff(double) < 0)
    if isinstance(schedule, KarrasSchedule):
        ends = -2 * np.log([schedule.sigma_min, schedule.sigma_max])
        # rho roundings of a logarithm, and of a root that is below e^80.
        error = 8 * EPS * (2 * schedule.rho + 80)
    else:
        ends, error = [schedule.logsnr_max, schedule.logsnr_min], 8 * EPS * 80
    np.testing.assert_allclose(single[[0, -1]], ends, rtol=0, atol=error)


@settings(max_examples=60)
@given(made())
def test_the_times_of_every_schedule_that_is_allowed_come_back_in_float64(schedule):
    """To what a rounding of a log-SNR of 80 is of a range of a tenth, or one of the time is."""
    if isinstance(schedule, KarrasSchedule):
        # Of a steep power or of nearly equal levels: what rounding a log-SNR does to the time, by their ratio.
        assume(0.5 < schedule.rho < 100)
    back = np.asarray(schedule.time(schedule.logsnr(GRID)))
    np.testing.assert_allclose(back, GRID, rtol=0, atol=1e-10)


@pytest.mark.parametrize("schedule", [CosineSchedule(-80.0, 80.0), FlowSchedule(-80.0, 80.0)], ids=["cosine", "flow"])
def test_the_widest_schedules_end_where_they_are_told(schedule):
    for dtype in (jnp.float32, jnp.float64):
        np.testing.assert_allclose(schedule.logsnr(jnp.asarray([0.0, 1.0], dtype)), [80.0, -80.0], rtol=1e-6)


@given(ranges().filter(lambda ends: ends[1] - ends[0] >= 0.1), st.floats(0, 1))
def test_cosine_of_any_range_is_the_tangent_of_an_angle(ends, t):
    r"""Where neither the angle nor its complement is small, so that the textbook's form can be computed."""
    low, high = max(ends[0], -9.0), min(ends[1], 9.0)
    assume(high - low > 0.1)
    angles = np.arctan(np.exp(-np.asarray([high, low]) / 2))
    expected = -2 * np.log(np.tan(angles[0] + t * (angles[1] - angles[0])))
    np.testing.assert_allclose(CosineSchedule(low, high).logsnr(jnp.asarray(t)), expected, rtol=0, atol=1e-11)


ERRONEOUS = {
    "karras swapped": lambda: KarrasSchedule(80.0, 0.002),
    "karras zero": lambda: KarrasSchedule(0.0, 80.0),
    "karras endless": lambda: KarrasSchedule(0.002, float("inf")),
    "karras rho": lambda: KarrasSchedule(rho=0.0),
    "karras small rho": lambda: KarrasSchedule(rho=0.07),
    "karras large rho": lambda: KarrasSchedule(rho=3e4),
    "karras far": lambda: KarrasSchedule(0.002, 1e18),
    "karras narrow": lambda: KarrasSchedule(1.0, 1.01),
    "karras nan": lambda: KarrasSchedule(rho=float("nan")),
    "cosine swapped": lambda: CosineSchedule(15.0, -15.0),
    "cosine endless": lambda: CosineSchedule(-float("inf"), 15.0),
    "cosine far": lambda: CosineSchedule(-15.0, 81.0),
    "cosine narrow": lambda: CosineSchedule(-15.0, -14.95),
    "cosine nan": lambda: CosineSchedule(float("nan"), 15.0),
    "flow far": lambda: FlowSchedule(-81.0, 15.0),
    "flow swapped": lambda: FlowSchedule(15.0, -15.0),
    "flow empty": lambda: FlowSchedule(1.0, 1.0),
    "discrete increasing": lambda: DiscreteSchedule(DDPM[::-1]),
    "discrete repeating": lambda: DiscreteSchedule(np.asarray([0.5, 0.5])),
    "discrete one": lambda: DiscreteSchedule(np.asarray([0.5])),
    "discrete table": lambda: DiscreteSchedule(DDPM[None]),
    "discrete betas": lambda: DiscreteSchedule(np.asarray([1.0, 0.5])),
    "crossing": lambda: momentax.interpolated(CosineSchedule(), momentax.shifted(CosineSchedule(), -1.0)),
    "crossing nan": lambda: momentax.interpolated(Broken(), CosineSchedule()),
    "discrete equal in float32": lambda: DiscreteSchedule(np.asarray([0.9, 0.9 - 1e-12])),
    "discrete far": lambda: DiscreteSchedule(np.asarray([0.5, 1e-36])),
    "shifted far": lambda: momentax.shifted(CosineSchedule(), 70.0),
    "shifted nan": lambda: momentax.shifted(CosineSchedule(), float("nan")),
    "shifted broken": lambda: momentax.shifted(Broken(), 0.0),
    "truncated nan": lambda: momentax.truncated(CosineSchedule(), float("nan")),
    "truncated nan above": lambda: momentax.truncated(CosineSchedule(), -5.0, float("nan")),
    "truncated swapped": lambda: momentax.truncated(CosineSchedule(), 5.0, -5.0),
    "truncated to nothing in float32": lambda: momentax.truncated(CosineSchedule(), -15.0, -14.999),
    "resolution": lambda: momentax.resolution_shift(0.0, 64.0),
}


@pytest.mark.parametrize("make", ERRONEOUS.values(), ids=ERRONEOUS)
def test_a_schedule_that_would_not_decrease_or_not_end_is_refused(make):
    with pytest.raises(ValueError, match=r"^needs .+; got .+; .+"):
        make()
