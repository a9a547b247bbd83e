"""The public boundary: every demand says what it needs, what it got and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from momentax._contract import at_least_single, check_batch, check_key, check_steps, check_within

SENTENCE = r"^needs .+; got .+; do .+"


@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), 0, None, jnp.zeros(2, jnp.uint32)])
def test_a_key_that_is_not_typed_is_a_type_error(key):
    with pytest.raises(TypeError, match=SENTENCE):
        check_key(key)


def test_a_batch_of_keys_is_not_a_key():
    with pytest.raises(ValueError, match=SENTENCE):
        check_key(jax.random.split(jax.random.key(0), 3))


def test_the_shape_and_dtype_of_a_wrong_key_are_told():
    with pytest.raises(TypeError, match=r"got uint32\[2\]"):
        check_key(jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        check_key(jax.random.split(jax.random.key(0), 3))


def test_a_key_under_jit_and_vmap_is_a_key():
    @jax.jit
    @jax.vmap
    def checked(key):
        check_key(key)
        return key

    assert checked(jax.random.split(jax.random.key(0), 3)).shape == (3,)


@pytest.mark.parametrize("x", [jnp.zeros((2, 3), jnp.int32), np.zeros((2, 3), np.uint8), [[1.0, 2.0]], None])
def test_a_batch_that_is_not_floating_point_is_a_type_error(x):
    with pytest.raises(TypeError, match=SENTENCE):
        check_batch(x)


@pytest.mark.parametrize("x", [jnp.zeros(()), jnp.zeros((0, 3))])
def test_a_batch_without_examples_is_an_error(x):
    with pytest.raises(ValueError, match=SENTENCE):
        check_batch(x)


@pytest.mark.parametrize("leaf", [jnp.zeros(()), 3, jnp.zeros((3,)), jnp.zeros((0, 2))])
def test_a_conditioning_of_another_length_is_an_error_that_names_the_leaf(leaf):
    with pytest.raises(ValueError, match=SENTENCE) as error:
        check_batch(jnp.zeros((2, 3)), {"label": jnp.zeros(2), "text": leaf})
    assert "cond['text']" in str(error.value)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_a_batch_of_any_floating_point_with_its_conditioning_passes(dtype):
    check_batch(jnp.zeros((2, 3), dtype), {"label": jnp.zeros(2, jnp.int32), "text": jnp.zeros((2, 5))})
    check_batch(jnp.zeros(1, dtype))


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "8", None])
def test_a_number_of_steps_is_a_positive_whole_number(k):
    with pytest.raises(ValueError, match=SENTENCE):
        check_steps(k)
    check_steps(1)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_number_outside_its_interval_is_an_error_that_names_it(value):
    with pytest.raises(ValueError, match=SENTENCE) as error:
        check_within("eta", value, 0.0, 1.0)
    assert "eta" in str(error.value)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_an_interval_holds_its_ends(value):
    check_within("eta", value, 0.0, 1.0)


@pytest.mark.parametrize(
    ("given", "carried"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_half_precision_is_carried_in_single_and_nothing_else_changes(given, carried):
    x = jnp.asarray([0.5, -1.25], given)
    assert at_least_single(x).dtype == carried
    np.testing.assert_array_equal(at_least_single(x).astype(float), x.astype(float))
