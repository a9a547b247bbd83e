import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from momentax.metrics import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    sliced_wasserstein,
)

rng = np.random.default_rng(0)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


PAIRS = [frechet_distance, kernel_distance, precision_recall, sliced_wasserstein]


@pytest.mark.parametrize("metric", PAIRS)
def test_jax_arrays_bytes_and_half_precision_are_taken_exactly(metric):
    a, b = (rng.integers(0, 256, (n, 3), np.uint8) for n in (20, 30))
    assert metric(a, b) == metric(a.astype(float), b.astype(float))
    assert metric(jnp.asarray(a), jax.device_put(b)) == metric(a, b)
    half = jnp.asarray(a, jnp.bfloat16)
    assert metric(half, b) == metric(np.asarray(half).astype(float), b)


@pytest.mark.parametrize("metric", [*PAIRS, lambda a, b: inception_score(abs(a) / abs(a).sum(1, keepdims=True))])
def test_inputs_are_left_alone_and_numbers_are_plain(metric):
    a, b = normal(0, 9, 3), normal(1, 9, 3)
    kept = a.copy(), b.copy()
    numbers = metric(a, b)
    np.testing.assert_array_equal((a, b), kept)
    assert {type(number) for number in (numbers if isinstance(numbers, tuple) else [numbers])} == {float}


@pytest.fixture
def unchecked(monkeypatch):
    """Without the hook, which would refuse a wrong rank before the library's own check does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


class Tensor:
    """What PyTorch gives, as far as it goes: its dtype is none of NumPy's."""

    dtype, shape, ndim = "torch.float32", (9, 3), 2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("metric", [*PAIRS, lambda a, b: inception_score(b)])
@pytest.mark.parametrize(
    ("x", "got"),
    [
        (Tensor(), "test_metrics_inputs.Tensor"),
        ([[1.0, 2.0]], "list"),
        (np.full((9, 3), None), r"object\[9, 3\]"),
        (np.full((9, 3), "1"), r"<U1\[9, 3\]"),
        (np.ones((9, 3), complex), r"complex128\[9, 3\]"),
    ],
    ids=["tensor", "list", "objects", "texts", "complex"],
)
def test_what_is_no_array_of_real_numbers_is_refused_with_what_makes_one(metric, x, got):
    with pytest.raises(TypeError, match=rf"^needs .+ of real numbers; got {got}; .*x\.numpy\(\).*np\.asarray\(x\)"):
        metric(normal(0, 9, 3), x)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("metric", PAIRS)
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((9,), (9, 3)), r"needs the first set of shape \[n, d\]; got \(9,\); do x.reshape"),
        (((9, 3), (9, 1, 8, 8)), r"needs the second set of shape \[n, d\]; got \(9, 1, 8, 8\)"),
        (((9, 0), (9, 0)), r"got \(9, 0\)"),
        (((9, 3), (9, 4)), "needs features of one width; got 3 and 4; do use one network"),
        (((0, 3), (9, 3)), r"needs the first set of at least \d rows; got 0; do draw more samples"),
    ],
)
def test_sets_of_wrong_shapes_are_refused(metric, shapes, message):
    with pytest.raises(ValueError, match=message):
        metric(*(normal(0, *shape) for shape in shapes))


@pytest.mark.parametrize(("metric", "least"), list(zip(PAIRS, [2, 4, 4, 1], strict=True)))
def test_each_metric_takes_as_few_samples_as_it_says(metric, least):
    metric(normal(0, least, 3), normal(1, least, 3))
    with pytest.raises(ValueError, match=f"needs the second set of at least {least} rows; got {least - 1}"):
        metric(normal(0, least, 3), normal(1, least - 1, 3))


@pytest.mark.parametrize("metric", PAIRS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(metric, bad):
    a, b = normal(0, 9, 3), normal(1, 9, 3)
    b[4, 1] = bad
    with pytest.raises(ValueError, match="needs the second set to be finite; got 1 entries that are not; do look"):
        metric(a, b)


@pytest.mark.parametrize(
    "p", [np.zeros((2, 3)), np.full((2, 3), 1 / 2), np.array([[1.5, -0.5]]), np.log(np.full((2, 2), 0.5))]
)
def test_what_is_not_a_distribution_is_refused(p):
    with pytest.raises(ValueError, match=r"needs probabilities of at least 0 that sum to 1; .* do apply a softmax"):
        inception_score(p)


def test_probabilities_in_half_precision_are_taken():
    p = jax.nn.softmax(jnp.asarray(5 * normal(0, 50, 10), jnp.float16))
    assert inception_score(p) == pytest.approx(inception_score(np.asarray(p, float)), rel=1e-12)


@pytest.mark.parametrize(
    ("metric", "settings", "message"),
    [
        (kernel_distance, {"block": 1}, "needs block as a whole number >= 2; got 1; use 1000"),
        (kernel_distance, {"block": 2}, r"needs 2 rows in each of 5 blocks; got sets of 9 and 9 rows; do"),
        (precision_recall, {"k": 0}, "needs k as a whole number >= 1; got 0"),
        (precision_recall, {"k": 9}, "needs the first set of at least 10 rows; got 9"),
        (sliced_wasserstein, {"p": 0.5}, r"needs p as a number in \[1, inf\); got 0.5"),
        (sliced_wasserstein, {"p": math.nan}, r"needs p as a number in \[1, inf\); got nan"),
        (sliced_wasserstein, {"projections": 0}, "needs projections as a whole number >= 1; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(metric, settings, message):
    with pytest.raises(ValueError, match=message):
        metric(normal(0, 9, 3), normal(1, 9, 3), **settings)
