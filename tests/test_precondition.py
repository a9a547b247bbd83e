"""Lambda is what Adam itself multiplied the last gradient by."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import linear
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

import momentax

RATE = 0.01
PARAMS = linear(jax.random.key(0))
WRAPPINGS = {
    "alone": lambda adam: adam,
    "chain": lambda adam: optax.chain(optax.clip_by_global_norm(1e9), adam),
    "nested chain": lambda adam: optax.chain(optax.identity(), optax.chain(optax.chain(adam), optax.identity())),
    "multi-step": lambda adam: optax.MultiSteps(adam, 1),
    "if finite": lambda adam: optax.apply_if_finite(optax.chain(adam), 3),
    "decayed": lambda adam: optax.chain(adam, optax.add_decayed_weights(0.0)),
}


@pytest.fixture(autouse=True, scope="module")
def _optax_promotes():
    """Optax raises its decay rates to an int32 count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _gradients(seed, n):
    return [linear(key) for key in jax.random.split(jax.random.key(seed), n)]


def _after(optimizer, gradients):
    """The state and the last update."""
    state, update, step = optimizer.init(PARAMS), None, jax.jit(optimizer.update)
    for gradient in gradients:
        update, state = step(gradient, state, PARAMS)
    return state, update


def _same(found, expected, rtol=1e-12):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol), found, expected)


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize(("n", "b2"), [(1, 0.999), (5, 0.9)])
def test_adams_last_update_is_minus_rate_times_lambda_of_the_last_gradient(wrap, n, b2):
    gradients = _gradients(0, n)
    state, update = _after(wrap(optax.adam(RATE, b1=0.0, b2=b2)), gradients)
    precond = momentax.adam_preconditioner(state, b2=b2)
    _same(jax.tree.map(lambda g: -RATE * g, precond(gradients[-1])), update)


def test_the_first_moment_plays_no_part():
    with_it, without = (_after(optax.adam(RATE, b1=b1), _gradients(1, 4))[0] for b1 in (0.9, 0.0))
    _same(momentax.adam_preconditioner(with_it), momentax.adam_preconditioner(without), rtol=0)


def test_lambda_is_the_running_mean_of_squares_corrected_for_its_start():
    r"""$\hat\nu = \sum_i \beta_2^{n-i} g_i^2 / \sum_i \beta_2^{n-i}$, Kingma & Ba 2015, by NumPy."""
    gradients = _gradients(2, 6)
    state, _ = _after(optax.scale_by_adam(b2=0.9, eps=0.1), gradients)
    found = momentax.adam_preconditioner(state, b2=0.9, eps=0.1).scale
    expected = jax.tree.map(lambda *g: 1 / (_mean_square(g, 0.9) ** 0.5 + 0.1), *gradients)
    _same(found, expected)


def _mean_square(gradients, b2):
    weights = b2 ** np.arange(len(gradients))[::-1]
    return np.average(np.square(np.stack(gradients)), axis=0, weights=weights)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(RATE, momentum=0.9),
        optax.rmsprop(RATE),
        optax.chain(optax.scale_by_adam(), optax.scale_by_adam()),
    ],
    ids=["none", "rms", "two"],
)
def test_a_state_without_one_adam_is_an_error(optimizer):
    with pytest.raises(ValueError, match=r"^needs .+; got .+; pass .+"):
        momentax.adam_preconditioner(_after(optimizer, _gradients(0, 1))[0])


def test_an_adam_that_saw_no_gradient_is_an_error():
    with pytest.raises(ValueError, match=r"^needs .+; got count 0; update .+"):
        momentax.adam_preconditioner(optax.adam(RATE).init({"a": jnp.ones(2)}))


def test_lambda_is_read_under_jit_as_outside():
    state, _ = _after(optax.adam(RATE), _gradients(3, 2))
    _same(eqx.filter_jit(momentax.adam_preconditioner)(state), momentax.adam_preconditioner(state), rtol=1e-14)


@given(seeds, st.floats(-3, 3), st.floats(-3, 3))
def test_lambda_is_linear_and_symmetric(seed, a, b):
    precond = momentax.Diagonal(jax.tree.map(jnp.exp, PARAMS))
    g, h = _gradients(seed, 2)
    mixed = jax.tree.map(lambda g, h: a * g + b * h, g, h)
    expected = jax.tree.map(lambda g, h: a * g + b * h, precond(g), precond(h))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-13), precond(mixed), expected)
    np.testing.assert_allclose(optax.tree.vdot(h, precond(g)), optax.tree.vdot(precond(h), g), rtol=0, atol=1e-13)


def test_the_identity_changes_nothing():
    (gradient,) = _gradients(4, 1)
    assert momentax.identity(gradient) is gradient


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_a_gradient_keeps_its_dtype_and_is_scaled_in_the_scales(dtype):
    precond = momentax.Diagonal({"a": jnp.asarray([2.0, 0.3])})
    gradient = jnp.asarray([0.5, 3.0], dtype)
    found = precond({"a": gradient})["a"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, (gradient.astype(float) * jnp.asarray([2.0, 0.3])).astype(dtype))


@pytest.mark.parametrize("grads", [{"b": jnp.ones(2)}, [jnp.ones(2)], {"a": jnp.ones(2), "b": jnp.ones(2)}, {"a": {}}])
def test_gradients_of_another_structure_are_an_error(grads):
    with pytest.raises(ValueError, match=r"^needs .+; got .+; take .+"):
        momentax.Diagonal({"a": jnp.ones(2)})(grads)


class _Teacher(eqx.Module):
    w: jax.Array
    steps: jax.Array
    name: str = "teacher"


TEACHER = _Teacher(jnp.asarray([0.5, -2.0, 0.1]), jnp.asarray(3))
BATCHES = [jnp.asarray(batch) for batch in np.random.default_rng(0).normal(size=(5, 4, 3))]


def _linear_loss(model, x, key, cond=None):
    return jnp.vdot(model.w, jnp.mean(x if cond is None else x * cond[:, None], 0))


def _square_loss(model, x, key, cond=None):
    return jnp.sum(model.w**2) / 2


def _noise_loss(model, x, key, cond=None):
    return jnp.vdot(model.w, jax.random.normal(key, (3,)))


estimate = partial(momentax.estimate_preconditioner, b2=0.9, eps=1e-6)


def test_an_estimate_is_the_second_moment_recursion_over_the_batches():
    found = estimate(_linear_loss, TEACHER, iter(BATCHES), jax.random.key(0)).scale.w
    gradients = [np.mean(batch, 0) for batch in BATCHES]
    np.testing.assert_allclose(found, 1 / (_mean_square(gradients, 0.9) ** 0.5 + 1e-6), rtol=1e-12)


def test_an_estimate_hands_the_conditioning_of_a_pair_to_the_loss():
    cond = jnp.asarray([1.0, -1.0, 2.0, 0.5])
    found = estimate(_linear_loss, TEACHER, [(batch, cond) for batch in BATCHES], jax.random.key(0)).scale.w
    gradients = [np.mean(batch * cond[:, None], 0) for batch in BATCHES]
    np.testing.assert_allclose(found, 1 / (_mean_square(gradients, 0.9) ** 0.5 + 1e-6), rtol=1e-12)


def test_an_estimate_does_not_move_the_parameters():
    """The gradient of |w|^2 / 2 is w at every batch, so Lambda is 1 / (|w| + eps) unless w moves."""
    found = estimate(_square_loss, TEACHER, BATCHES, jax.random.key(0)).scale.w
    np.testing.assert_allclose(found, 1 / (np.abs(TEACHER.w) + 1e-6), rtol=1e-13)


def test_every_batch_of_an_estimate_has_noise_of_its_own():
    one, two = (estimate(_noise_loss, TEACHER, BATCHES[:n], jax.random.key(0)).scale.w for n in (1, 2))
    again = estimate(_noise_loss, TEACHER, BATCHES[:1], jax.random.key(0)).scale.w
    np.testing.assert_array_equal(one, again)
    assert not np.any(np.isclose(one, two, rtol=1e-6))


def test_an_estimate_applies_to_the_gradients_of_a_teacher_with_other_leaves():
    precond = estimate(_square_loss, TEACHER, BATCHES, jax.random.key(0))
    gradient = eqx.filter_grad(_square_loss)(TEACHER, BATCHES[0], jax.random.key(0))
    np.testing.assert_allclose(precond(gradient).w, np.sign(TEACHER.w), rtol=1e-4)


def test_an_estimate_from_no_batches_is_an_error():
    with pytest.raises(ValueError, match=r"^needs .+; got .+; update .+"):
        estimate(_square_loss, TEACHER, [], jax.random.key(0))


def test_leaves_that_the_gradients_leave_out_are_left_out():
    """As a `filter_spec` makes them; an estimate for some leaves is the part of that for all."""
    full = momentax.Diagonal({"a": jnp.asarray([2.0, 0.3]), "b": jnp.asarray(3.0)})
    found = full({"a": None, "b": jnp.asarray(2.0)})
    assert found == {"a": None, "b": jnp.asarray(6.0)}
    teacher, loss = linear(jax.random.key(0)), momentax.denoising_loss()
    batches = [jax.random.normal(jax.random.key(i), (16, 3)) for i in range(3)]
    spec = eqx.tree_at(lambda net: net.drift, jax.tree.map(lambda _: False, teacher), True)
    part = momentax.estimate_preconditioner(loss, teacher, batches, jax.random.key(9), filter_spec=spec)
    whole = momentax.estimate_preconditioner(loss, teacher, batches, jax.random.key(9))
    assert part.scale.weight is None
    np.testing.assert_allclose(part.scale.drift, whole.scale.drift, rtol=1e-12)
    with pytest.raises(ValueError, match="needs gradients of the scale's structure"):
        part(jax.tree.map(jnp.ones_like, teacher))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_an_estimate_in_half_precision_is_taken_in_single(dtype):
    """By NumPy in double, of gradients in half precision: their squares are zero in float16, 0.999 is 1 in bfloat16."""
    teacher = _Teacher(TEACHER.w.astype(dtype), TEACHER.steps)
    batches = [jnp.asarray(1e-4 * batch) for batch in np.random.default_rng(1).normal(size=(300, 4, 3))]

    def loss(model, x, key, cond=None):
        return jnp.sum(model.w * jnp.mean(x, 0).astype(dtype))

    found = momentax.estimate_preconditioner(loss, teacher, batches, jax.random.key(0)).scale.w
    gradients = [np.asarray(jnp.mean(batch, 0).astype(dtype)).astype(float) for batch in batches]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 1 / (_mean_square(gradients, 0.999) ** 0.5 + 1e-8), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_state_in_half_precision_is_read_in_single(dtype):
    """In the smallest numbers too: eps is zero in float16, and a bias correction rounds."""
    gradient = {"a": jnp.asarray([0.0, 3.0, -0.25], dtype)}
    optimizer = optax.scale_by_adam(b2=0.9)
    _, state = optimizer.update(gradient, optimizer.init(gradient))
    found = momentax.adam_preconditioner(state, b2=0.9).scale["a"]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[0], 1e8, rtol=1e-6)
    # One rounding of the square in the state, whose root halves it.
    np.testing.assert_allclose(found[1:], [1 / 3, 4], rtol=float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(("dtype", "b2"), [(jnp.bfloat16, 0.999), (jnp.float16, 0.9999), (jnp.float32, 1 - 1e-9)])
def test_a_state_too_coarse_for_its_decay_is_refused(dtype, b2):
    gradient, optimizer = {"a": jnp.ones(3, dtype)}, optax.scale_by_adam()
    _, state = optimizer.update(gradient, optimizer.init(gradient))
    with pytest.raises(ValueError, match=rf"^needs a second moment in .+b2={b2} from 1; got {jnp.dtype(dtype)}.+; use"):
        momentax.adam_preconditioner(state, b2=b2)


def test_lambda_of_half_precision_is_fit_for_instant():
    """The loss of the same teacher in single precision, to some rounding errors."""
    teacher = linear(jax.random.key(0), dtype=jnp.bfloat16)
    batches = [jax.random.normal(jax.random.key(i), (16, 3), jnp.float32) for i in range(5)]
    precond = momentax.estimate_preconditioner(momentax.denoising_loss(), teacher, batches, jax.random.key(9))

    @eqx.filter_jit
    def value(teacher):
        return momentax.instant(teacher, precond)(linear(jax.random.key(1)), batches[0], jax.random.key(3))

    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), teacher)
    np.testing.assert_allclose(value(teacher), value(single), rtol=8 * float(jnp.finfo(jnp.bfloat16).eps))
