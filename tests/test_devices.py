"""A run does not depend on how many devices it is spread over: 1, 2, 4 and 8 of them."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Tanh, linear
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import momentax as mm

X = jax.random.normal(jax.random.key(1), (16, 8), jnp.float32)
TEACHER, STUDENT, AUX = (Tanh(linear(jax.random.key(i), 8, jnp.float32)) for i in range(3))
SGD = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.05))
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_rms(0.99, 1e-12), optax.scale(-1e-3))
OPTIMIZERS = {"sgd": SGD, "adam": ADAM}


def mesh(count):
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


class Bare(mm.AbstractSchedule):
    """Times for log-SNRs, with nothing computed on the way."""

    def logsnr(self, t):
        return t

    def time(self, logsnr):
        return logsnr


def noise_alone(z_t, x, *, logsnr_s, logsnr_t):
    return mm.Gaussian(jnp.zeros_like(z_t), jnp.ones_like(logsnr_s))


def student(z, logsnr, cond=None):
    return z


@pytest.mark.parametrize("times", [mm.stratified, mm.uniform])
def test_draws_are_the_same_to_the_last_bit(times):
    """Times, noise and keys are of an example's place in the whole batch; what is computed of them rounds as it may."""
    key = jax.random.key(3)

    def drawn(count):
        rollout = mm.Rollout(Bare(), kernel=noise_alone, times=times, axis_name="data")

        def draw(x):
            draw = rollout(student, x, key)
            assert draw.key is not None
            return draw.z, draw.logsnr, jax.random.key_data(draw.key)

        spread = jax.shard_map(draw, mesh=mesh(count), in_specs=P("data"), out_specs=P("data"))
        return [np.asarray(leaf) for leaf in jax.jit(spread)(X)]

    one = drawn(1)
    assert len(np.unique(one[0])) == X.size
    for count in (2, 4, 8):
        jax.tree.map(np.testing.assert_array_equal, drawn(count), one)


def values_over(count, algorithm, optimizer, spread):
    """The losses of fifty updates, on so many devices."""

    def step(loss, model, state, x, key):
        value, grads = mm.value_and_grad(loss, "data")(model, x, key)
        changes, state = optimizer.update(grads, state)
        return eqx.apply_updates(model, changes), state, value

    taken, values = spread(step, mesh(count)), []
    players = {name: (model, optimizer.init(model)) for name, model in (("student", STUDENT), ("aux", AUX))}
    for n in range(50):
        mover = "aux" if algorithm == "alternating" and n % 2 == 0 else "student"
        student, aux = (players[name][0] for name in ("student", "aux"))
        other = aux if algorithm == "alternating" else None
        losses = mm.moment_match(TEACHER, student, other, weight=mm.flat_weight, axis_name="data")
        key = jax.random.fold_in(jax.random.key(7), n)
        model, state, value = taken(getattr(losses, mover), *players[mover], X, key)
        players[mover] = model, state
        values.append(value)
    return np.array([float(value) for value in values])


RUNS = list(itertools.product(["alternating", "instant"], OPTIMIZERS, [mm.data_parallel, mm.fully_sharded]))
SHORT = [("instant", "sgd", mm.data_parallel), ("alternating", "adam", mm.fully_sharded)]


@pytest.mark.parametrize(
    ("algorithm", "optimizer", "spread"),
    [pytest.param(*run, marks=() if run in SHORT else pytest.mark.slow) for run in RUNS],
)
def test_losses_of_a_run_are_the_same(algorithm, optimizer, spread):
    """Each of fifty, within 1e-5 in single precision, whose sums are of another order.

    With clipping, which sees the gradient's scale, and with Adam, which does not but divides by small numbers.
    """
    one = values_over(1, algorithm, OPTIMIZERS[optimizer], spread)
    assert np.ptp(one) > 0
    for count in (2, 4, 8):
        many = values_over(count, algorithm, OPTIMIZERS[optimizer], spread)
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=0)
