"""One step: the student's loss is half of Diff-Instruct's, written out with scores."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Tanh, assert_trees_close, linear, predictions
from strategies import WEIGHTS

import momentax as mm

KEY = jax.random.key(7)


class OneStep(mm.AbstractSchedule):
    """Noise alone at every time but zero: whatever delta is drawn, the student is given pure noise."""

    level: jax.Array

    def logsnr(self, t):
        return jnp.where(t > 0, -80.0, self.level).astype(t.dtype)

    def time(self, logsnr):
        return (logsnr < self.level).astype(logsnr.dtype)


def at_zero(key, index, count, dtype):
    return jnp.zeros((), dtype)


class Average(eqx.Module):
    """Where an auxiliary of moment matching converges, if one that sees the student alone converges to `moment`."""

    moment: Tanh
    teacher: Tanh

    def __call__(self, z, logsnr, cond=None):
        return (self.moment(z, logsnr) + self.teacher(z, logsnr)) / 2


def score(model, z, logsnr):
    r"""$\nabla\ln q(z) = (\alpha\,\hat x - z) / \sigma^2$."""
    x = jax.vmap(model)(z, jnp.full(len(z), logsnr))
    return (mm.alpha(logsnr) * x - z) / jax.nn.sigmoid(-logsnr)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_in_one_step_moment_matching_is_diff_instruct(weight):
    r"""$E\,w\,(s_\phi(x_s) - s_\theta(x_s))^T\,dx_s/d\eta$ with $x_s = \alpha\,g_\eta(\epsilon_1) + \sigma\epsilon$.

    Luo et al. 2023, as variational score distillation's (Wang et al. 2023), at $w$ over the signal-to-noise ratio. Its
    auxiliary knows the student alone, where Algorithm 2's converges to the average with the teacher: hence the half.
    """
    teacher, moment, student = (Tanh(linear(jax.random.key(i))) for i in range(3))
    x = jax.random.normal(jax.random.key(1), (64, 3))

    @eqx.filter_jit
    def both(student, logsnr):
        rollout = mm.Rollout(OneStep(logsnr), 1, times=at_zero)
        echo = rollout(lambda z, logsnr, cond: z, x, KEY)
        noise = (echo.z - mm.alpha(logsnr) * echo.x) / mm.sigma(logsnr)

        def diff_instruct(student):
            made = jax.vmap(student)(echo.x, jnp.full(64, -80.0))
            noised = mm.alpha(logsnr) * made + mm.sigma(logsnr) * noise
            frozen = jax.lax.stop_gradient(noised)
            target = jax.vmap(teacher)(frozen, jnp.full(64, logsnr))
            w = jax.lax.stop_gradient(jax.vmap(weight)(jnp.full(64, logsnr), made - target)) / jnp.exp(logsnr)
            gap = score(moment, frozen, logsnr) - score(teacher, frozen, logsnr)
            return jnp.mean(w * jnp.sum(gap * noised, axis=1))

        loss = mm.student_loss(teacher, Average(moment, teacher), rollout=rollout, weight=weight)
        return eqx.filter_grad(diff_instruct)(student), eqx.filter_grad(loss)(student, x, KEY)

    for level in (-4.0, 0.5, 5.0):
        by_hand, ours = both(student, jnp.asarray(level))
        half = jax.tree.map(lambda leaf: leaf / 2, by_hand)
        largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(ours))
        assert largest > 0
        assert_trees_close(half, ours, rtol=1e-9, atol=1e-12 * largest)


def test_pure_noise_forgets_the_data():
    """So that the rollout of the test above is one of one step."""
    rollout = mm.Rollout(OneStep(jnp.asarray(0.5)), 1, times=at_zero)
    draws = [rollout(Tanh(linear(KEY)), scale * jnp.ones((64, 3)), KEY) for scale in (-1.0, 1.0)]
    np.testing.assert_allclose(*[predictions(Tanh(linear(KEY)), draw) for draw in draws], rtol=1e-12)
