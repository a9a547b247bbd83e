"""The losses against their definitions: by hand, by limits, and by closed forms."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers import Dropping, Tanh, assert_trees_close, gaussian_denoiser, linear, predictions, program_of
from strategies import WEIGHTS

import momentax as mm

KEY = jax.random.key(7)
X = jax.random.normal(jax.random.key(1), (8, 3), jnp.float64)


TEACHER, STUDENT, AUX = (Tanh(linear(jax.random.key(i))) for i in range(3))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_students_gradient_is_the_papers_and_none_flows_through_z_s(weight):
    r"""$(d\tilde x)^T w(s) [g_\phi(z_s) - g_\theta(z_s)]$, averaged over the batch."""
    rollout = mm.Rollout(k=4)
    loss = mm.student_loss(TEACHER, AUX, rollout=rollout, weight=weight)

    @eqx.filter_jit
    def both(student):
        draw, pull = jax.vjp(lambda student: rollout(student, X, KEY).x, student)
        frozen = rollout(student, X, KEY)
        target, average = predictions(TEACHER, frozen), predictions(AUX, frozen)
        w = jax.vmap(weight)(frozen.logsnr, draw - target)
        return pull(w[:, None] * (average - target) / len(X))[0], eqx.filter_grad(loss)(student)

    loss = eqx.Partial(lambda inner, student: inner(student, X, KEY), loss)
    by_hand, ours = both(STUDENT)
    assert_trees_close(by_hand, ours, rtol=1e-10, atol=1e-12)


class Leaking(eqx.Module):
    """A rollout of one's own, through whose z the student's gradient would flow."""

    rollout: mm.Rollout

    def __call__(self, student, x, key, cond=None):
        draw = self.rollout(student, x, key, cond)
        return draw._replace(z=draw.z + draw.x - jax.lax.stop_gradient(draw.x))


def test_none_flows_through_the_judges_of_any_rollout():
    losses = (mm.student_loss(TEACHER, AUX, rollout=rollout) for rollout in (mm.Rollout(), Leaking(mm.Rollout())))
    ours, leaking = (eqx.filter_jit(eqx.filter_grad(loss))(STUDENT, X, KEY) for loss in losses)
    assert_trees_close(ours, leaking, rtol=1e-10, atol=1e-12)


def test_judges_in_training_mode_drop_out_alike_and_not_as_the_student():
    """A teacher and an auxiliary that are equal have no gap, whatever they drop; the student's mask is another."""
    judge = Dropping(TEACHER)
    loss = eqx.filter_jit(eqx.filter_value_and_grad(mm.student_loss(judge, judge)))
    value, grads = loss(Dropping(STUDENT), X, KEY)
    assert value == 0
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(grads))
    assert eqx.filter_jit(mm.student_loss(judge, TEACHER))(STUDENT, X, KEY) != 0
    draw = mm.Rollout()(Dropping(STUDENT), X, KEY)
    masks = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (3,)))(draw.key)
    assert jnp.any(masks != (draw.x != 0))


def test_every_loss_hands_keys_to_every_network_that_takes_one():
    """Another key of the batch, another mask: the same data and noise would give the same value."""
    models = [Dropping(model) for model in (TEACHER, AUX, STUDENT)]
    for i in range(3):
        players = [model if i == j else model.net for j, model in enumerate(models)]
        teacher, aux, student = players
        dropped = mm.student_loss(teacher, aux), mm.aux_loss(teacher, student), mm.instant(teacher)
        plain = mm.student_loss(TEACHER, AUX), mm.aux_loss(TEACHER, STUDENT), mm.instant(TEACHER)
        moving = [(student, STUDENT), (aux, AUX), (student, STUDENT)]
        involved = [(0, 1, 2), (0, 1, 2), (0, 2)]
        for ours, theirs, (model, bare), who in zip(dropped, plain, moving, involved, strict=True):
            values = eqx.filter_jit(ours)(model, X, KEY), eqx.filter_jit(theirs)(bare, X, KEY)
            assert (values[0] != values[1]) == (i in who)
    loss = eqx.filter_jit(mm.denoising_loss())
    assert loss(models[0], X, KEY) != loss(TEACHER, X, KEY)


@pytest.mark.parametrize("weight", [mm.edm_weight, mm.adaptive_weight])
def test_the_joint_loss_is_both_turns_on_one_draw(weight):
    """The student's value; each player's own gradient, with the auxiliary that has not moved yet."""
    settings = {"rollout": mm.Rollout(k=4), "weight": weight}
    joint, student, aux = (
        mm.joint_loss(TEACHER, **settings),
        mm.student_loss(TEACHER, AUX, **settings),
        mm.aux_loss(TEACHER, STUDENT, **settings),
    )
    value, (of_student, of_aux) = eqx.filter_jit(mm.value_and_grad(joint))((STUDENT, AUX), X, KEY)
    expected, by_student = eqx.filter_jit(mm.value_and_grad(student))(STUDENT, X, KEY)
    _, by_aux = eqx.filter_jit(mm.value_and_grad(aux))(AUX, X, KEY)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert_trees_close((of_student, of_aux), (by_student, by_aux), rtol=1e-10, atol=1e-12)


class Constant(eqx.Module):
    """The auxiliary that knows nothing."""

    value: jax.Array

    def __call__(self, z, logsnr, cond=None):
        return self.value


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_auxiliarys_minimiser_is_the_average_of_student_and_teacher(weight):
    """Of constants, the one of least loss is half the weighted mean of x~ plus half that of the teacher."""
    rollout = mm.Rollout(k=4)
    loss = mm.aux_loss(TEACHER, STUDENT, rollout=rollout, weight=weight)
    draw = rollout(STUDENT, X, KEY)
    target = predictions(TEACHER, draw)
    w = jax.vmap(weight)(draw.logsnr, draw.x - target)
    best = Constant(jnp.average((draw.x + target) / 2, axis=0, weights=w))
    value, grads = eqx.filter_jit(eqx.filter_value_and_grad(loss))(best, X, KEY)
    by_hand = jnp.mean(w * jnp.sum((draw.x - best.value) ** 2 + (target - best.value) ** 2, axis=1))
    np.testing.assert_allclose(value, by_hand, rtol=1e-10)
    np.testing.assert_allclose(grads.value, 0, atol=1e-12 * float(jnp.max(w)))


class TwoLevels(mm.AbstractSchedule):
    """One log-SNR up to the middle, one after it."""

    def logsnr(self, t):
        return jnp.where(t <= 0.5, 1.0, -2.0).astype(t.dtype)

    def time(self, logsnr):
        return (logsnr < 0).astype(logsnr.dtype)


def always_the_middle(key, index, count, dtype):
    return jnp.full((), 0.5, dtype)


class Affine(eqx.Module):
    """x_hat = slope z + offset, whatever the noise."""

    slope: jax.Array
    offset: jax.Array

    def __call__(self, z, logsnr, cond=None):
        return self.slope * z + self.offset


def test_the_value_of_the_student_loss_is_the_moment_gap_where_the_auxiliary_has_converged():
    r"""$\frac12 E\,w\,|E_g[\tilde x | z_s] - g_\theta(z_s)|^2$, in closed form for Gaussian data and affine players."""
    student, teacher = Affine(jnp.float64(0.6), jnp.float64(0.1)), Affine(jnp.float64(0.4), jnp.float64(0.5))
    logsnr_s, logsnr_t = jnp.float64(1.0), jnp.float64(-2.0)
    step = mm.conditional_posterior(jnp.float64(1.0), jnp.float64(0.0), logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    kept, std = step.mean, step.std
    fresh = mm.conditional_posterior(jnp.float64(0.0), jnp.float64(1.0), logsnr_s=logsnr_s, logsnr_t=logsnr_t).mean
    z_s_slope, z_s_offset = kept + fresh * student.slope, fresh * student.offset
    var = z_s_slope**2 + std**2
    moment = Affine(student.slope * z_s_slope / var, student.offset - student.slope * z_s_slope / var * z_s_offset)
    average = jax.tree.map(lambda a, b: (a + b) / 2, moment, teacher)
    slope, offset = moment.slope - teacher.slope, moment.offset - teacher.offset
    gap = 0.5 * (slope**2 * var + (slope * z_s_offset + offset) ** 2) * 3
    rollout = mm.Rollout(TwoLevels(), 8, times=always_the_middle)
    loss = mm.student_loss(teacher, average, rollout=rollout, weight=mm.flat_weight)
    x = jax.random.normal(KEY, (400_000, 3))
    draws = jax.jit(lambda x: rollout(student, x, KEY).z)(x)
    np.testing.assert_allclose(jnp.var(draws), var, rtol=0.01)
    np.testing.assert_allclose(eqx.filter_jit(loss)(student, x, KEY), gap, rtol=0.02)


def test_the_denoising_loss_is_the_posterior_variance_at_the_exact_denoiser():
    r"""$E|x - E[x|z]|^2 = 1 / (1/s^2 + e^\ell)$ per dimension for data N(m, s^2), and no gradient is left."""
    schedule, teacher = TwoLevels(), gaussian_denoiser(0.3, 0.7)
    loss = mm.denoising_loss(schedule=schedule, weight=mm.flat_weight, times=always_the_middle)
    x = 0.3 + 0.7 * jax.random.normal(KEY, (400_000, 3))
    value, grads = eqx.filter_jit(eqx.filter_value_and_grad(loss))(teacher, x, KEY)
    np.testing.assert_allclose(value, 3 / (1 / 0.49 + np.e), rtol=0.01)
    wrong = eqx.filter_jit(eqx.filter_grad(loss))(gaussian_denoiser(0.8, 0.7), x, KEY)
    assert abs(grads.mean) < 0.02 * abs(wrong.mean)


def test_a_new_teacher_is_new_data_and_not_a_new_program():
    """One trace for every teacher, student and auxiliary; and no weight is a constant of the program."""
    traces = []

    @eqx.filter_jit
    def evaluate(loss, model):
        traces.append(loss)
        return eqx.filter_value_and_grad(loss)(model, X, KEY)

    players = [Tanh(linear(jax.random.key(i))) for i in range(6)]
    for a, b in zip(players[:3], players[3:], strict=True):
        for losses, model in [(mm.moment_match(a, b, a), b), (mm.moment_match(a, b), b)]:
            evaluate(losses.student, model)
        evaluate(mm.aux_loss(a, b), b)
    assert len(traces) == 3
    wide = linear(jax.random.key(0), 500)
    for loss in (mm.instant(wide), mm.student_loss(wide, wide), mm.aux_loss(wide, wide)):
        program = program_of(loss, wide, jnp.zeros((2, 500)), KEY)
        assert len(program) < 500 * 500


def test_half_precision_networks_give_single_precision_losses():
    """The coefficients stay in float32: what is lost is what bfloat16 loses in a network, some 2^-8."""
    x = X.astype(jnp.bfloat16)

    def evaluate(dtype):
        models = [jax.tree.map(lambda leaf: leaf.astype(dtype), model) for model in (TEACHER, STUDENT, AUX)]
        flat = mm.flat_weight
        losses = mm.denoising_loss(weight=flat), mm.aux_loss(*models[:2], weight=flat), mm.instant(models[0])
        return [eqx.filter_jit(loss)(models[2], x, KEY) for loss in losses]

    half, single = evaluate(jnp.bfloat16), evaluate(jnp.float32)
    assert {value.dtype for value in half + single} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(half[:2], single[:2], rtol=0.02)
    assert np.all(np.isfinite(half))


def test_conditioning_of_any_structure_reaches_every_player():
    """A tree, batched with x: the loss is that of networks with the conditioning added."""

    class Conditioned(eqx.Module):
        net: Any

        def __call__(self, z, logsnr, cond):
            return self.net(z, logsnr) + cond["shift"][0] * cond["scale"]

    cond = {"shift": (X,), "scale": jnp.linspace(0.0, 1.0, 8)}
    models = [Conditioned(model) for model in (TEACHER, AUX, STUDENT)]
    plain = eqx.filter_jit(mm.student_loss(TEACHER, AUX))(STUDENT, X, KEY)
    zero = jax.tree.map(jnp.zeros_like, cond)
    assert eqx.filter_jit(mm.student_loss(*models[:2]))(models[2], X, KEY, zero) == plain
    for loss in (mm.student_loss(*models[:2]), mm.aux_loss(*models[1:]), mm.instant(models[0])):
        assert eqx.filter_jit(loss)(models[2], X, KEY, cond) != eqx.filter_jit(loss)(models[2], X, KEY, zero)


def test_images_of_any_rank_are_summed_over_their_dimensions():
    """The same numbers in another shape have the same losses."""

    class Shaped(eqx.Module):
        net: Any

        def __call__(self, z, logsnr, cond=None):
            return self.net(z.ravel(), logsnr).reshape(z.shape)

    flat, shaped = jax.random.normal(KEY, (6, 4)), jax.random.normal(KEY, (6, 4)).reshape(6, 1, 2, 2)
    models = [Tanh(linear(jax.random.key(i), 4)) for i in range(3)]
    for make in (
        lambda a, b, c: mm.student_loss(a, b),
        lambda a, b, c: mm.aux_loss(a, b),
        lambda a, b, c: mm.instant(a),
    ):
        loss, loss_shaped = make(*models), make(*map(Shaped, models))
        value = eqx.filter_jit(loss)(models[2], flat, KEY)
        assert jnp.isfinite(value)
        # The noise of an example is drawn in its shape, and threefry fills shapes in row-major order.
        np.testing.assert_allclose(eqx.filter_jit(loss_shaped)(Shaped(models[2]), shaped, KEY), value, rtol=1e-12)


class WrongShape(eqx.Module):
    def __call__(self, z, logsnr, cond=None):
        return z[:1]


BAD_CALLS = {
    "a list": (mm.instant(TEACHER), ([1.0, 2.0], KEY), TypeError, "floating-point"),
    "odd batch": (mm.instant(TEACHER), (X[:7], KEY), ValueError, "even batch"),
    "raw key": (mm.student_loss(TEACHER, AUX), (X, jnp.zeros(2, jnp.uint32)), TypeError, "typed key"),
    "integer key": (mm.aux_loss(TEACHER, AUX), (X, 0), TypeError, "typed key"),
    "batch of keys": (mm.denoising_loss(), (X, jax.random.split(KEY)), ValueError, "one key"),
    "integer data": (mm.denoising_loss(), (X.astype(int), KEY), TypeError, "floating-point"),
    "empty batch": (mm.instant(TEACHER), (X[:0], KEY), ValueError, "n >= 1"),
    "one example": (mm.student_loss(TEACHER, AUX), (jnp.float64(1.0), KEY), ValueError, "shape"),
    "cond of another length": (mm.instant(TEACHER), (X, KEY, {"a": X[:4]}), ValueError, r"cond\['a'\]"),
    "one player of two": (mm.joint_loss(TEACHER), (X, KEY), TypeError, r"pair \(student, aux\)"),
    "teacher of another shape": (mm.student_loss(WrongShape(), AUX), (X, KEY), ValueError, "WrongShape"),
    "instant teacher of another shape": (mm.instant(WrongShape()), (X, KEY), ValueError, "WrongShape"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_told_before_anything_is_compiled(name, monkeypatch):
    """What is needed, what was given, what to do; as users meet it, without a type checker."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    loss, arguments, error, words = BAD_CALLS[name]
    with pytest.raises(error, match=words) as told:
        loss(STUDENT, *arguments)
    assert all(word in str(told.value) for word in ("needs ", "; got ", "; "))
