"""The paper's optimiser is Adam with b1 = 0, in half the memory."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import linear

import momentax

EPS = float(jnp.finfo(jnp.float32).eps)
SCALES = [0.01, 3.0, 0.2, 10.0, 0.5, 1e-4]


@pytest.fixture(autouse=True, scope="module")
def _optax_promotes():
    """Optax raises its decay rates to an int32 count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _updates(optimizer, gradients):
    state, step, updates = optimizer.init(gradients[0]), jax.jit(optimizer.update), []
    for gradient in gradients:
        update, state = step(gradient, state)
        updates.append(update)
    return updates


def _rate(n, peak, warmup, updates):
    """From zero to the peak, and to zero."""
    return peak * np.where(n < warmup, n / max(warmup, 1), np.clip((updates - n) / (updates - warmup), 0, 1))


def test_it_is_clipping_and_then_adam_without_a_first_moment():
    """Over gradients on both sides of the clip."""
    gradients = [
        jax.tree.map(partial(jnp.multiply, scale), linear(jax.random.key(i))) for i, scale in enumerate(SCALES)
    ]
    rate = optax.linear_schedule(0.1, 0.0, 8)
    adam = optax.scale_by_adam(b1=0.0, b2=0.99, eps=1e-12)
    reference = optax.chain(optax.clip_by_global_norm(1.0), adam, optax.scale_by_learning_rate(rate))
    found = _updates(momentax.paper_optimizer(0.1, 8, warmup=0), gradients)
    expected = _updates(reference, gradients)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), found, expected)


@pytest.mark.parametrize(("warmup", "updates"), [(4, 10), (1, 6), (0, 5), (9, 10)])
def test_a_constant_gradients_updates_are_its_sign_times_the_rate(warmup, updates):
    """A running mean of a constant square is that square, if its start is corrected for.

    Optax takes rate and correction in float32, where 1 - 0.99 has a hundred ulps' error.
    """
    gradient = jnp.asarray([0.3, -0.02, 0.5])
    found = jnp.stack(_updates(momentax.paper_optimizer(1e-3, updates, warmup=warmup), [gradient] * (updates + 3)))
    rates = _rate(np.arange(updates + 3), 1e-3, warmup, updates)
    np.testing.assert_allclose(found, -rates[:, None] * np.sign(gradient), rtol=200 * EPS, atol=1e-3 * 8 * EPS)


def test_the_rate_is_zero_once_the_updates_are_done():
    gradient = jnp.ones(3)
    *_, last, after, later = _updates(momentax.paper_optimizer(1e-3, 5, warmup=2), [gradient] * 7)
    assert jnp.all(last < 0)
    np.testing.assert_allclose(jnp.stack([after, later]), 0, atol=1e-3 * EPS)


def test_the_default_settings_are_the_papers():
    """Warm-up over 1,000 updates: the second moves by a thousandth, a difference of numbers near 1."""
    gradient = jnp.asarray([0.3, -0.4])
    _, second = _updates(momentax.paper_optimizer(1e-2, 200_000), [gradient] * 2)
    np.testing.assert_allclose(second, [-1e-5, 1e-5], rtol=2000 * EPS)


def test_clipping_shows_in_the_second_moment():
    """A gradient a thousand times too long counts as one of norm 1: by hand, b2 = 0.5, no warm-up."""
    long, short = jnp.asarray([600.0, 800.0]), jnp.asarray([0.3, 0.4])
    _, second = _updates(momentax.paper_optimizer(1.0, 10**9, warmup=0, b2=0.5), [long, short])
    nu = (0.5 * np.asarray([0.6, 0.8]) ** 2 + np.asarray(short) ** 2) / 1.5
    np.testing.assert_allclose(second, -np.asarray(short) / np.sqrt(nu), rtol=1e-8)


def test_its_state_is_half_of_adams():
    params = jnp.zeros(1000)
    paper, adam = (
        optimizer.init(params) for optimizer in (momentax.paper_optimizer(1e-3, 10, warmup=1), optax.adam(1e-3))
    )
    assert _bytes(paper) < params.nbytes + 64
    assert _bytes(adam) > 2 * params.nbytes


def _bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("rate", "updates", "warmup"),
    [(0.0, 10, 1), (-1.0, 10, 1), (float("nan"), 10, 1), (1.0, 10, 10), (1.0, 10, -1)],
)
def test_settings_without_a_rise_and_a_fall_are_refused(rate, updates, warmup):
    with pytest.raises(ValueError, match=r"^needs .+; got .+; (use|lower) .+"):
        momentax.paper_optimizer(rate, updates, warmup=warmup)


@pytest.mark.parametrize("b1", [-0.1, 1.0, float("nan")])
def test_a_first_moment_that_never_moves_or_never_ends_is_refused(b1):
    with pytest.raises(ValueError, match=r"^needs b1 as a number in \[0, 1\); got .+; use .+"):
        momentax.paper_optimizer(1e-3, 10, warmup=1, b1=b1)


@pytest.mark.parametrize(
    "setting",
    [{"clip": 0.0}, {"clip": -1.0}, {"clip": float("nan")}, {"b2": 1.0}, {"b2": -0.1}, {"eps": -1e-8}],
    ids=str,
)
def test_settings_that_freeze_or_ascend_are_refused(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=rf"^needs {name} as a number in .+; got .+; use .+"):
        momentax.paper_optimizer(1e-3, 10, warmup=1, **setting)


@pytest.mark.parametrize("b1", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_takes_the_updates_of_single(dtype, b1):
    """Gradients whose squares no float16 has, on both sides: the moments are float32's, the updates theirs, rounded."""
    gradients = [jnp.asarray([3e-4, -2e-6, 0.0, 300.0], dtype) * jnp.asarray(s, dtype) for s in (1.0, 0.5, 2.0)]
    optimizer = momentax.paper_optimizer(1e-2, 10, warmup=0, clip=float("inf"), b1=b1)
    found = _updates(optimizer, gradients)
    expected = _updates(optimizer, [gradient.astype(jnp.float32) for gradient in gradients])
    assert all(leaf.dtype != dtype for leaf in jax.tree.leaves(optimizer.init(gradients[0])))
    for half, single in zip(found, expected, strict=True):
        assert half.dtype == dtype
        np.testing.assert_array_equal(half, single.astype(dtype))
    assert jnp.all((found[-1] != 0) == (gradients[0] != 0))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_clipped_by_its_norm(dtype):
    """Whose square no float16 has: by hand, the first update of RMSprop is the clipped gradient's sign."""
    optimizer = momentax.paper_optimizer(1.0, 10**9, warmup=0, b2=0.5, eps=1.0)
    (update,) = _updates(optimizer, [jnp.asarray([600.0, -800.0], dtype)])
    clipped = np.asarray([0.6, -0.8])
    np.testing.assert_allclose(
        update.astype(float), -clipped / (np.abs(clipped) + 1), rtol=2 * float(jnp.finfo(dtype).eps)
    )


def test_parameters_of_half_precision_move_as_those_of_single_do():
    """Down |w - 1|^2 / 2; each of 400 updates rounds by half a unit in the last place below 1."""
    half, single = (_descended(jnp.zeros(3, dtype), 400) for dtype in (jnp.float16, jnp.float32))
    assert jnp.all(single > 0.9)
    np.testing.assert_allclose(half, single, atol=400 * float(jnp.finfo(jnp.float16).eps) / 4)


def _descended(w: Any, updates: int) -> Any:
    optimizer = momentax.paper_optimizer(1e-2, updates, warmup=10)
    state, step = optimizer.init(w), jax.jit(optimizer.update)
    for _ in range(updates):
        update, state = step(w - 1, state, w)
        w = optax.apply_updates(w, update)
    return w
