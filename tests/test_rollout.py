"""What is drawn: the first lines of Algorithms 2 and 3."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gaussian_denoiser, linear
from hypothesis import given
from strategies import seeds

import momentax as mm

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(1), (64, 3), jnp.float64)
STUDENT = linear(jax.random.key(2))


def recorded_times(rollout, x, key):
    """Every (s, t) of a rollout, read off the kernel's arguments."""

    def kernel(z_t, x, *, logsnr_s, logsnr_t):
        times = [rollout.schedule.time(logsnr) for logsnr in (logsnr_s, logsnr_t)]
        return mm.Gaussian(jnp.stack([*times, times[0]]), jnp.zeros_like(logsnr_s))

    return mm.Rollout(rollout.schedule, rollout.k, kernel, rollout.times)(STUDENT, x, key).z[:, :2].T


@pytest.mark.parametrize("times", [mm.stratified, mm.uniform])
@pytest.mark.parametrize("k", [1, 4])
def test_s_is_uniform_and_t_follows_within_one_step(times, k):
    r"""$s \sim U[0, 1]$, $t - s \sim U[0, 1/k]$ where it is not cut off at t = 1."""
    s, t = eqx.filter_jit(recorded_times)(mm.Rollout(mm.CosineSchedule(), k, times=times), jnp.zeros((20_000, 3)), KEY)
    assert jnp.all(t >= s - 1e-9)
    assert jnp.all(t <= jnp.minimum(s + 1 / k, 1) + 1e-9)
    assert departure_from_uniform(s) < 2.2 / len(s) ** 0.5
    if k > 1:
        steps = k * (t - s)[s < 1 - 1 / k]
        assert departure_from_uniform(steps) < 2.2 / len(steps) ** 0.5


def departure_from_uniform(values):
    """Kolmogorov and Smirnov's statistic on a grid; 2.2 over the root of n is passed once in 10^4."""
    grid = np.linspace(0, 1, 11)
    return np.max(np.abs(np.searchsorted(np.sort(values), grid) / len(values) - grid))


def test_stratified_times_cover_the_interval_evenly():
    """One time in each of n equal parts, up to the common rotation."""
    s, _ = eqx.filter_jit(recorded_times)(mm.Rollout(mm.CosineSchedule()), X, KEY)
    spacing = jnp.diff(jnp.sort(s))
    np.testing.assert_allclose(spacing, 1 / len(X), atol=1e-9)


@given(seeds)
def test_a_draw_is_the_students_prediction_and_a_sample_of_its_kernel(seed):
    r"""With an exact kernel mean and no noise, $z_s$ is DDIM's step from the $z_t$ that the student saw."""
    draw, z_t, logsnr_t = _draw_with_inputs(jax.random.key(seed))
    x_tilde = jax.vmap(STUDENT)(z_t, logsnr_t)
    np.testing.assert_allclose(draw.x, x_tilde, rtol=1e-12)
    step = jax.vmap(lambda z, x, s, t: mm.ddim(z, x, logsnr_s=s, logsnr_t=t).mean)
    np.testing.assert_allclose(draw.z, step(z_t, x_tilde, draw.logsnr, logsnr_t), rtol=1e-9, atol=1e-12)
    assert jnp.all(draw.logsnr >= logsnr_t)


class Seeing(eqx.Module):
    """A student that returns what it was shown."""

    def __call__(self, z, logsnr, cond=None):
        return jnp.concatenate([z[:-1], logsnr[None]])


@jax.jit
def _draw_with_inputs(key):
    rollout = mm.Rollout(mm.CosineSchedule(), kernel=mm.ddim)
    shown = rollout(Seeing(), jnp.zeros((8, 3)), key).x
    # The noise of z_t is the key's and the data are zero: a student that returns z itself shows the rest.
    z_t = rollout(lambda z, logsnr, cond=None: z, jnp.zeros((8, 3)), key).x
    return rollout(STUDENT, jnp.zeros((8, 3)), key), z_t, shown[:, -1]


def test_noisy_states_are_those_of_the_process():
    r"""Where the student returns the data, $z_s \sim q(z_s | x)$: its standardised noise is standard normal."""
    x = jnp.full((20_000, 3), 0.5)
    draws = [
        lambda: mm.Forward()(x, KEY),
        lambda: mm.Rollout()(lambda z, logsnr, cond=None: 0 * z + 0.5, x, KEY),
        lambda: mm.Rollout(kernel=mm.stochastic(0.5))(lambda z, logsnr, cond=None: 0 * z + 0.5, x, KEY),
    ]
    for draw in (jax.jit(drawn)() for drawn in draws):
        noise = (draw.z - jax.vmap(jnp.multiply)(mm.alpha(draw.logsnr), draw.x)) / mm.sigma(draw.logsnr)[:, None]
        assert abs(jnp.mean(noise)) < 5 / noise.size**0.5
        assert abs(jnp.mean(noise**2) - 1) < 5 * (2 / noise.size) ** 0.5


def test_no_gradient_flows_through_z_s():
    """The gradient with respect to the student is x~'s alone."""
    moved = eqx.filter_jit(eqx.filter_grad(lambda student: jnp.sum(mm.Rollout()(student, X, KEY).z)))(STUDENT)
    kept = eqx.filter_jit(eqx.filter_grad(lambda student: jnp.sum(mm.Rollout()(student, X, KEY).x)))(STUDENT)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(moved))
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(kept))


def test_an_example_is_drawn_alike_on_one_device_and_on_many():
    """Spread over an axis, times and noise are bit for bit those of the whole batch."""

    def noise_of(rollout, x):
        return rollout(Seeing(), x, KEY)

    whole = eqx.filter_jit(noise_of)(mm.Rollout(kernel=mm.renoise), jnp.zeros((64, 3)))
    spread = jax.jit(jax.vmap(lambda x: noise_of(mm.Rollout(kernel=mm.renoise, axis_name="data"), x), axis_name="data"))
    parts = spread(jnp.zeros((4, 16, 3)))
    assert jnp.array_equal(parts.logsnr.ravel(), whole.logsnr)
    assert jnp.array_equal(parts.x.reshape(64, 3), whole.x)
    np.testing.assert_allclose(parts.z.reshape(64, 3), whole.z, rtol=1e-14)


def test_half_precision_data_are_drawn_in_single_precision():
    x = X.astype(jnp.bfloat16)
    draw = eqx.filter_jit(mm.Rollout())(linear(KEY, dtype=jnp.bfloat16), x, KEY)
    assert draw.x.dtype == draw.z.dtype == draw.logsnr.dtype == jnp.float32


@pytest.mark.parametrize("k", [0, -1, 2.5, True])
def test_a_number_of_steps_that_is_none_is_an_error(k):
    with pytest.raises(Exception, match="k"):
        mm.Rollout(k=k)


POINTS = jnp.array([-1.0, 0.2, 1.3])
PRIOR = jnp.array([0.2, 0.5, 0.3])
GRID = jnp.linspace(-9, 9, 4001)


def density(z, gaussian):
    return jnp.exp(-0.5 * ((z - gaussian.mean) / gaussian.std) ** 2) / (gaussian.std * (2 * jnp.pi) ** 0.5)


@pytest.mark.parametrize("kernel", [mm.conditional_posterior, mm.stochastic(0.5), mm.renoise])
@pytest.mark.parametrize(("logsnr_s", "logsnr_t"), [(1.0, -1.5), (3.0, 2.0), (-1.0, -8.0)])
def test_an_exact_student_matches_the_moments_of_the_data(kernel, logsnr_s, logsnr_t):
    r"""Equation (3): $\tilde x \sim q(x | z_t)$ satisfies $E_g[\tilde x | z_s] = E_q[x | z_s]$, by quadrature.

    And the score of the student's $z_s$ is Tweedie's, $(\alpha_s E_q[x | z_s] - z_s) / \sigma_s^2$: matching
    $\tilde x$ matches the multistep score, appendix D.
    """
    s, t = jnp.float64(logsnr_s), jnp.float64(logsnr_t)
    states = jnp.linspace(-2.5, 2.5, 11)

    @jax.jit
    def moments():
        joint_t = PRIOR * density(GRID[:, None], mm.marginal(POINTS, t))
        posterior = joint_t / jnp.sum(joint_t, axis=1, keepdims=True)

        def joint(z_s):
            step = jax.vmap(lambda z_t: kernel(jnp.full(3, z_t), POINTS, logsnr_s=s, logsnr_t=t))(GRID)
            mass = jnp.sum(joint_t, axis=1, keepdims=True) * posterior
            return jnp.sum(mass * density(z_s, mm.Gaussian(step.mean, step.std[:, None])), axis=0)

        weights = jax.vmap(joint)(states)
        generated = weights @ POINTS / jnp.sum(weights, axis=1)
        score = jax.vmap(jax.grad(lambda z_s: jnp.log(jnp.sum(joint(z_s)))))(states)
        exact = PRIOR * density(states[:, None], mm.marginal(POINTS, s))
        return generated, exact @ POINTS / jnp.sum(exact, axis=1), score

    generated, data, score = moments()
    np.testing.assert_allclose(generated, data, atol=1e-7)
    np.testing.assert_allclose(score, (mm.alpha(s) * data - states) / mm.sigma(s) ** 2, atol=1e-5)


def test_at_one_step_posterior_and_renoising_coincide():
    r"""From t = 1 the student's gradient is Diff-Instruct's, $(d\tilde x)^T w [g_\phi - g_\theta](z)$, z re-noised."""

    class Ends(mm.AbstractSchedule):
        def logsnr(self, t):
            return jnp.where(t < 0.5, 1.0, -40.0).astype(t.dtype)

        def time(self, logsnr):
            return (logsnr < 0).astype(logsnr.dtype)

    def start(key, index, count, dtype):
        return jnp.full((), 0.4999, dtype)

    def late(student):
        draws = mm.Rollout(Ends(), 1, times=start), mm.Rollout(Ends(), 1, mm.renoise, start)
        teacher, aux = gaussian_denoiser(0.3, 0.7), gaussian_denoiser(-0.2, 0.4)
        losses = [mm.student_loss(teacher, aux, rollout=rollout, weight=mm.flat_weight) for rollout in draws]
        _, pull = jax.vjp(lambda student: draws[1](student, X, KEY).x, student)
        z = jax.lax.stop_gradient(draws[1](student, X, KEY).z)
        gap = jax.vmap(lambda z: aux(z, jnp.float64(1.0)) - teacher(z, jnp.float64(1.0)))(z)
        return [eqx.filter_grad(loss)(student, X, KEY) for loss in losses], pull(gap / len(X))[0]

    (posterior, renoised), diff_instruct = eqx.filter_jit(late)(STUDENT)
    for ours, theirs, written in zip(*map(jax.tree.leaves, (posterior, renoised, diff_instruct)), strict=True):
        np.testing.assert_allclose(theirs, written, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
