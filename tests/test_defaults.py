"""What is taken where nothing is said: the teacher's own schedule, in its range, and a weight for its prediction."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import linear
from hypothesis import given
from hypothesis import strategies as st

import momentax as mm

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (8, 3))
PREDICTIONS = [mm.predict_x, mm.predict_eps, mm.predict_v, mm.predict_score, mm.predict_flow, mm.predict_edm]
LINEAR = mm.DiscreteSchedule(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))


class Net(eqx.Module):
    """A network of one weight that looks at nothing but its noisy input."""

    weight: jax.Array

    def __call__(self, z, t, cond=None):
        return self.weight * z


def teacher(predict, schedule=None, weight=0.3):
    return mm.Denoiser(Net(jnp.asarray(weight)), predict, schedule=schedule)


@pytest.mark.parametrize("predict", PREDICTIONS, ids=lambda predict: predict.__name__)
@given(logsnr=st.floats(-15, 12))
def test_the_default_weight_keeps_an_error_of_the_network_from_growing(predict, logsnr):
    r"""$w\,|\partial\hat x / \partial net|^2 \le 1$: an error never weighs more in the moments than in the network."""

    def x_hat(output):
        denoiser = mm.Denoiser(lambda z, t, cond: output, predict)
        return denoiser(jnp.asarray(0.7), jnp.asarray(logsnr))

    slope = jax.grad(x_hat)(jnp.asarray(0.2))
    weight = mm.default_weight(teacher(predict))(jnp.asarray(logsnr), jnp.zeros(3))
    assert weight * slope**2 <= 1 + 1e-9
    assert weight == 1 or np.isclose(weight, np.exp(logsnr))


def test_a_teacher_that_is_guided_or_clipped_has_the_defaults_of_its_own():
    bare = teacher(mm.predict_eps, mm.CosineSchedule())
    for wrapped in (mm.guided(bare, 0.5), mm.clipped(mm.guided(bare, 0.5))):
        assert mm.default_schedule(wrapped) == mm.default_schedule(bare)
        assert mm.default_weight(wrapped) is mm.min_snr_weight


@pytest.mark.parametrize("predict", PREDICTIONS, ids=lambda predict: predict.__name__)
def test_the_schedule_is_the_teachers_own_but_where_the_noise_is_all_there_is(predict):
    """A prediction of the noise is not asked beyond the end of DDPM's table."""
    magnifies = predict in (mm.predict_eps, mm.predict_score)
    assert mm.default_schedule(teacher(predict)) == mm.KarrasSchedule()
    assert mm.default_schedule(teacher(predict, LINEAR)) == LINEAR
    low = mm.default_schedule(teacher(predict, mm.CosineSchedule())).logsnr(jnp.asarray(1.0))
    assert np.isclose(low, -10.2 if magnifies else -15)


def losses(teacher, **settings):
    """Every loss of a teacher, with its model."""
    yield mm.student_loss(teacher, teacher, **settings), teacher
    yield mm.aux_loss(teacher, teacher, **settings), teacher
    yield mm.joint_loss(teacher, **settings), (teacher, teacher)
    yield mm.instant(teacher, **settings), teacher
    both = mm.moment_match(teacher, teacher, teacher, **settings)
    assert both.aux is not None
    yield both.aux, teacher


@pytest.mark.parametrize("predict", [mm.predict_v, mm.predict_eps], ids=lambda predict: predict.__name__)
def test_saying_nothing_is_saying_the_defaults(predict):
    own = teacher(predict, mm.CosineSchedule())
    rollout, weight = mm.Rollout(mm.default_schedule(own)), mm.default_weight(own)
    student = eqx.tree_at(lambda model: model.net.weight, own, jnp.asarray(0.4))
    for (silent, _), (told, model) in zip(losses(own), losses(own, rollout=rollout, weight=weight), strict=True):
        moved = (student, own) if isinstance(model, tuple) else student
        values = [eqx.filter_jit(loss)(moved, X, KEY) for loss in (silent, told)]
        assert np.isfinite(values[0])
        assert values[0] == values[1]
    kept = mm.ancestral_sampler(own, 4)(KEY, (3,))
    assert np.array_equal(kept, mm.ancestral_sampler(own, 4, schedule=mm.default_schedule(own))(KEY, (3,)))


@pytest.mark.parametrize(
    ("predict", "weight"), [(mm.predict_v, mm.v_weight), (mm.predict_eps, mm.snr_weight)], ids=["v", "eps"]
)
def test_a_teacher_is_trained_under_its_own_schedule_on_what_it_predicts(predict, weight):
    r"""By default the weighted error of $\hat x$ is the plain error of the noise, or of v."""
    model = teacher(predict, LINEAR)
    value = eqx.filter_jit(mm.denoising_loss())(model, X, KEY)
    draw = mm.Forward(LINEAR)(X, KEY)

    def plain(x, z, logsnr):
        alpha, sigma = mm.alpha(logsnr), mm.sigma(logsnr)
        eps = (z - alpha * x) / sigma
        wanted = eps if predict is mm.predict_eps else alpha * eps - sigma * x
        return jnp.sum((wanted - model.net(z, logsnr)) ** 2)

    assert np.isclose(value, jnp.mean(jax.vmap(plain)(draw.x, draw.z, draw.logsnr)), rtol=1e-9)


def test_rollouts_that_leave_a_noise_teachers_range_are_refused_before_anything_is_traced():
    for loss in ("student_loss", "aux_loss"):
        with pytest.raises(
            ValueError, match=r"from -10.12 on; got CosineSchedule, down to -15; leave the schedule out"
        ):
            getattr(mm, loss)(*2 * [teacher(mm.predict_eps, LINEAR)], rollout=mm.Rollout(mm.CosineSchedule()))
    mended = mm.Rollout(mm.truncated(mm.CosineSchedule(), -10.12))
    assert np.isfinite(mm.instant(teacher(mm.predict_eps, LINEAR), rollout=mended)(teacher(mm.predict_eps), X, KEY))


def test_rollouts_that_leave_another_teachers_range_are_told():
    with pytest.warns(UserWarning, match="needs rollouts within what the teacher was trained on"):
        mm.instant(teacher(mm.predict_v, LINEAR), rollout=mm.Rollout(mm.CosineSchedule()))
    mm.instant(teacher(mm.predict_v, mm.CosineSchedule()), rollout=mm.Rollout(mm.KarrasSchedule()))


def test_a_student_that_would_be_sampled_on_another_schedule_is_refused():
    """Its sampler takes the schedule that it tells: it has to be the one that the rollouts took from the teacher."""
    own, other = teacher(mm.predict_v, LINEAR), teacher(mm.predict_v)
    with pytest.raises(ValueError, match="needs a student that is sampled on its teacher's schedule"):
        mm.instant(own)(other, X, KEY)
    assert np.isfinite(mm.instant(own, rollout=mm.Rollout(LINEAR))(other, X, KEY))
    assert np.isfinite(mm.instant(own)(linear(KEY), X, KEY))


@given(t=st.floats(0, 1), low=st.floats(-14, -1), high=st.floats(1, 14))
def test_a_truncated_schedule_is_the_part_between(t, low, high):
    """Its ends are the bounds, its times go on evenly in the schedule's own, and time is its inverse."""
    schedule, part = mm.CosineSchedule(), mm.truncated(mm.CosineSchedule(), low, high)
    first, last = (schedule.time(jnp.asarray(end)) for end in (high, low))
    logsnr = part.logsnr(jnp.asarray(t))
    assert np.isclose(schedule.time(logsnr), first + t * (last - first), atol=1e-9)
    assert np.isclose(part.time(logsnr), t, atol=1e-7)
    assert np.allclose(part.logsnr(jnp.asarray([0.0, 1.0])), [high, low], atol=1e-5)
    assert np.isclose(part.time(jnp.asarray(low - 1.0)), 1)


def test_a_truncated_schedule_keeps_its_own_ends_where_they_come_first():
    assert np.allclose(
        mm.truncated(LINEAR, -30.0, 30.0).logsnr(jnp.linspace(0, 1, 7)), LINEAR.logsnr(jnp.linspace(0, 1, 7))
    )
    with pytest.raises(ValueError, match="choose an interval that overlaps"):
        mm.truncated(LINEAR, 20.0)


def test_steps_as_short_as_rounding_are_taken_without_a_nan():
    r"""Where $\delta$ is so small that rounding puts $\ell_t$ above $\ell_s$, no variance is negative."""
    schedule = mm.truncated(mm.KarrasSchedule(), -8.0)
    with jax.enable_x64(False):
        rollout = mm.Rollout(schedule, k=10**6, times=mm.uniform)
        draw = eqx.filter_jit(rollout)(lambda z, logsnr, cond=None: z, jnp.ones((20_000, 1), jnp.float32), KEY)
        assert bool(jnp.all(jnp.isfinite(draw.z)))


def test_a_schedule_of_ones_own_may_hold_arrays_that_are_traced():
    """Its range is not known then, and not held against the teacher's."""

    class Moved(mm.AbstractSchedule):
        shift: jax.Array

        def logsnr(self, t):
            return mm.KarrasSchedule().logsnr(t) + self.shift

        def time(self, logsnr):
            return mm.KarrasSchedule().time(logsnr - self.shift)

    @eqx.filter_jit
    def value(schedule, model):
        return mm.instant(model, rollout=mm.Rollout(schedule))(model, X, KEY)

    own = teacher(mm.predict_eps, LINEAR)
    assert np.isfinite(value(Moved(jnp.asarray(1.0)), own))
    with pytest.raises(ValueError, match="needs rollouts within what the teacher was trained on"):
        mm.instant(own, rollout=mm.Rollout(Moved(jnp.asarray(-9.0))))
