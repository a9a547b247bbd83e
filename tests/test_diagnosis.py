"""Which log-SNRs broke an update, against the draws that the losses made."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Tanh, linear
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import momentax as mm

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(1), (8, 3), jnp.float64)
COND = jnp.zeros((8, 3))
ROLLOUT = mm.Rollout(mm.CosineSchedule(), k=4)
NAMES = ["denoising", "student", "aux", "joint", "instant"]


class Faulty(eqx.Module):
    """A network that has its faults above given log-SNRs, as arrays: one program has them all.

    It answers NaN above `silent`, or, if it is `moody`, to half of all keys. Above `steep` its values are finite and
    its derivative is not: that of a root at zero.
    """

    net: Any
    silent: Any
    steep: Any
    moody: Any
    zero: Any

    def __call__(self, z, logsnr, cond, *, key):
        silent = (logsnr > self.silent) | (self.moody & jax.random.bernoulli(key))
        root = jnp.sqrt(self.zero + jax.nn.relu(self.steep - logsnr))
        return jnp.where(silent, jnp.nan, self.net(z, logsnr) + cond + root)


def faulty(seed: int, silent: Any = 99.0, steep: float = 99.0, moody: bool = False) -> Faulty:
    faults = jnp.float64(silent), jnp.float64(steep), jnp.asarray(moody)
    return Faulty(Tanh(linear(jax.random.key(seed))), *faults, jnp.float64(0))


class Weight(eqx.Module):
    """Infinite above a log-SNR."""

    limit: Any

    def __call__(self, logsnr, residual):
        return jnp.where(logsnr > self.limit, jnp.inf, 1.0)


def made(name: str, axis: str | None = None, limit: float = 99.0, scale: Any = 1.0, **players: Any) -> tuple[Any, Any]:
    """A loss and what moves in it."""
    teacher, student, aux = (players.get(player, faulty(i)) for i, player in enumerate(("teacher", "student", "aux")))
    rollout, weight = mm.Rollout(ROLLOUT.schedule, ROLLOUT.k, axis_name=axis), Weight(jnp.float64(limit))
    if name == "denoising":
        return mm.denoising_loss(schedule=ROLLOUT.schedule, weight=weight, axis_name=axis), teacher
    if name == "instant":
        moving = eqx.filter(teacher, eqx.is_inexact_array)
        precond = mm.Diagonal(jax.tree.map(lambda leaf: jnp.full_like(leaf, scale), moving))
        return mm.instant(teacher, precond, rollout=rollout, weight=weight), student
    if name == "joint":
        return mm.joint_loss(teacher, rollout=rollout, weight=weight), (student, aux)
    if name == "student":
        return mm.student_loss(teacher, aux, rollout=rollout, weight=weight), student
    return mm.aux_loss(teacher, student, rollout=rollout, weight=weight), aux


class Seeing(eqx.Module):
    """A student that returns the log-SNR it was shown."""

    def __call__(self, z, logsnr, cond=None):
        return jnp.full_like(z, logsnr)


def drawn(name) -> tuple[Any, Any, Any]:
    """Every example's log-SNRs (t, s), and its key for the judges, by the draws that the loss is documented to make."""
    if name == "denoising":
        draw = mm.Forward(ROLLOUT.schedule)(X, KEY)
        return draw.logsnr, draw.logsnr, draw.key
    halves = [(KEY, slice(None))]
    if name == "instant":
        halves = [(key, slice(half, None, 2)) for half, key in enumerate(jax.random.split(KEY))]
    t, s, keys = jnp.zeros(8), jnp.zeros(8), jax.random.split(KEY, 8)
    for key, place in halves:
        draw = ROLLOUT(Seeing(), X[place], key)
        t, s, keys = t.at[place].set(draw.x[:, 0]), s.at[place].set(draw.logsnr), keys.at[place].set(draw.key)
    return t, s, keys


DRAWN = {name: drawn(name) for name in NAMES}


def assert_told(loss_and_model: tuple[Any, Any], logsnrs: Any, x: Any = X, cond: Any = COND) -> None:
    """The least and the greatest of the offending log-SNRs, of which there are some."""
    loss, model = loss_and_model
    got = mm.nonfinite_logsnr(loss, model, x, KEY, cond)
    assert got is not None
    np.testing.assert_allclose(got, (jnp.min(logsnrs), jnp.max(logsnrs)), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_that_breaks_above_a_log_snr_is_told_by_the_range_of_what_it_was_shown(name):
    """From the least to the greatest above it, no other; None where it was shown none."""
    _, s, _ = DRAWN[name]
    for above in (-4.0, 0.0, 3.0):
        assert_told(made(name, teacher=faulty(0, silent=above)), s[s > above])
        assert jnp.any(s <= above)
    loss, model = made(name, teacher=faulty(0, silent=jnp.max(s)))
    assert mm.nonfinite_logsnr(loss, model, X, KEY, COND) is None


@pytest.mark.parametrize("name", ["student", "aux", "joint", "instant"])
def test_a_student_that_breaks_is_told_by_its_own_log_snrs(name):
    """Those of z_t, though teacher and auxiliary see its NaN at z_s."""
    t, _, _ = DRAWN[name]
    assert_told(made(name, student=faulty(1, silent=1.0)), t[t > 1])


@pytest.mark.parametrize("name", ["student", "aux", "joint"])
def test_an_auxiliary_that_breaks_is_told_too(name):
    _, s, _ = DRAWN[name]
    assert_told(made(name, aux=faulty(2, silent=1.0)), s[s > 1])


@pytest.mark.parametrize("name", NAMES)
def test_a_pixel_or_a_conditioning_that_is_not_finite_is_told_by_its_own_example(name):
    """Even examples and odd ones, whatever nu became of it."""
    t, _, _ = DRAWN[name]
    for example, bad in ((2, jnp.nan), (5, jnp.nan), (2, jnp.inf), (5, -jnp.inf)):
        assert_told(made(name), t[example], X.at[example, 1].set(bad))
        assert_told(made(name), t[example], X, COND.at[example].set(bad))


@pytest.mark.parametrize("name", NAMES)
def test_a_derivative_that_is_not_finite_is_told_though_every_value_is(name):
    """By the log-SNRs at which the network that moves was asked; the student of even examples does not move."""
    t, s, _ = DRAWN[name]
    player = {"denoising": "teacher", "aux": "aux"}.get(name, "student")
    moving: Any = {player: faulty(0, steep=-1.0)}
    shown = {"denoising": s, "aux": s, "student": t, "joint": t, "instant": t[1::2]}[name]
    assert_told(made(name, **moving), shown[shown > -1])


def test_a_derivative_of_the_auxiliary_alone_is_told_at_what_it_was_shown():
    s = DRAWN["joint"][1]
    assert_told(made("joint", aux=faulty(2, steep=-1.0)), s[s > -1])


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_that_is_not_finite_is_told(name):
    _, s, _ = DRAWN[name]
    assert_told(made(name, limit=1.0), s[s > 1])


def test_a_preconditioner_that_explodes_is_told_by_the_even_examples_that_nu_is_made_of():
    """Every one of them overflows in it, and no odd example is to blame."""
    assert_told(made("instant", scale=jnp.inf), DRAWN["instant"][1][::2])


@pytest.mark.parametrize("name", NAMES)
def test_networks_are_handed_the_keys_of_the_update(name):
    """What depends on the dropout's mask comes back."""
    _, s, keys = DRAWN[name]
    dead = jax.vmap(jax.random.bernoulli)(keys)
    assert 0 < jnp.sum(dead) < 8
    assert_told(made(name, teacher=faulty(0, moody=True)), s[dead])


def test_where_every_example_alone_is_finite_there_is_nothing_to_tell():
    """The sum of finite numbers is not finite."""
    loss = mm.denoising_loss(schedule=ROLLOUT.schedule, weight=mm.flat_weight)
    model, x = mm.Denoiser(lambda z, t, cond: 0 * z, mm.predict_x), jnp.full((4, 1), 1e154)
    assert not jnp.isfinite(loss(model, x, KEY))
    assert mm.nonfinite_logsnr(loss, model, x, KEY) is None


class Sharp(eqx.Module):
    """A network of an enormous derivative above a log-SNR."""

    zero: Any
    above: Any

    def __call__(self, z, logsnr, cond=None):
        return 0 * z + jnp.where(logsnr > self.above, 1e308, 1.0) * self.zero


def test_an_example_is_asked_for_its_share_in_the_mean():
    """A gradient that overflows alone, and not in the mean over the batch, broke nothing."""
    s = jnp.sort(DRAWN["denoising"][1])
    loss = mm.denoising_loss(schedule=ROLLOUT.schedule, weight=mm.flat_weight)
    model = Sharp(jnp.float64(0), s[-2])
    x = jnp.ones((8, 3))
    assert jnp.isfinite(eqx.filter_jit(eqx.filter_grad(loss))(model, x, KEY).zero)
    assert mm.nonfinite_logsnr(loss, model, x, KEY) is None


def test_an_update_that_failed_on_many_devices_is_told_on_one():
    """With the arguments of the update: a loss over the axis, the model that came back, a batch in pieces."""
    mesh, sgd = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,)), optax.sgd(0.1)
    loss, model = made("denoising", axis="data", teacher=faulty(0, silent=3.0))

    def step(loss, model, state, x, key, cond):
        value, grads = mm.value_and_grad(loss, "data")(model, x, key, cond)
        return mm.update_if_finite(sgd, model, state, value, grads)

    x, cond = jax.device_put((X, COND), NamedSharding(mesh, P("data")))
    state = sgd.init(eqx.filter(model, eqx.is_inexact_array))
    model, _, finite = mm.data_parallel(step, mesh)(loss, model, state, x, KEY, cond)
    assert not finite
    s = DRAWN["denoising"][1]
    assert_told((loss, model), s[s > 3], x, cond)


def test_leaves_that_did_not_move_are_not_asked():
    """A root at zero is finite; its derivative is nobody's concern."""
    loss, model = made("denoising", teacher=faulty(0, steep=0.0))
    assert mm.nonfinite_logsnr(loss, model, X, KEY, COND) is not None
    assert mm.nonfinite_logsnr(loss, model, X, KEY, COND, filter_spec=False) is None


class Quiet(eqx.Module):
    """A half-precision network that answers NaN above a log-SNR of zero."""

    net: Any

    def __call__(self, z, logsnr, cond=None):
        return jnp.where(logsnr > 0, jnp.nan, self.net(z, logsnr))


def test_half_precision_is_told_as_well():
    x, model = X.astype(jnp.bfloat16), Quiet(linear(jax.random.key(0), dtype=jnp.bfloat16))
    got = mm.nonfinite_logsnr(mm.denoising_loss(), model, x, KEY)
    s = mm.Forward()(x, KEY).logsnr
    assert got is not None
    # Fused or not, single precision rounds the schedule's powers differently.
    np.testing.assert_allclose(got, (jnp.min(s[s > 0]), jnp.max(s)), rtol=1e-5)


SENTENCE = r"^needs .+; got .+; do .+"


def test_what_cannot_be_taken_one_by_one_is_an_error():
    _, model = made("student")
    with pytest.raises(TypeError, match=SENTENCE):
        mm.nonfinite_logsnr(lambda model, x, key, cond=None: 0.0, model, X, KEY)
    own = mm.student_loss(model, model, rollout=lambda *args: ROLLOUT(*args))
    with pytest.raises(ValueError, match=SENTENCE):
        mm.nonfinite_logsnr(own, model, X, KEY)
    with pytest.raises(ValueError, match=r"needs an even batch"):
        mm.nonfinite_logsnr(mm.instant(model), model, X[:7], KEY)
