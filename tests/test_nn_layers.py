"""The layers that the networks share are those of equinox, or what can be written out in a few lines."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from nets import perturbed

from momentax.nn._attention import Attention
from momentax.nn._embedding import Embedding
from momentax.nn._image import Conv, check_image, depth_to_space, grow, shrink, space_to_depth
from momentax.nn._linear import Linear
from momentax.nn._norm import GroupNorm, LayerNorm
from momentax.nn._position import position_table
from momentax.nn._wavelet import haar, inverse_haar


@eqx.filter_jit
def applied(module, *args):
    return module(*args)


@eqx.filter_jit
def channels_last(module, x):
    return jnp.moveaxis(module(jnp.moveaxis(x, -1, 0)), 0, -1)


@pytest.mark.parametrize(("stride", "padding"), [(1, (1, 1)), (2, (0, 1)), (2, (1, 1))])
def test_a_convolution_is_that_of_equinox(stride, padding):
    conv = perturbed(Conv(3, 5, stride=stride, padding=padding, key=jr.key(0)), 1)
    oracle = eqx.nn.Conv2d(3, 5, 3, stride, [padding, padding], key=jr.key(0))
    new = conv.weight.transpose(3, 2, 0, 1), conv.bias[:, None, None]
    oracle = eqx.tree_at(lambda c: (c.weight, c.bias), oracle, new)
    x = jr.normal(jr.key(2), (6, 4, 3))
    assert jnp.allclose(applied(conv, x), channels_last(oracle, x), atol=1e-12)


@pytest.mark.parametrize("use_bias", [True, False])
def test_a_linear_map_is_that_of_equinox(use_bias):
    linear = perturbed(Linear(3, 5, use_bias=use_bias, key=jr.key(0)), 1)
    oracle = eqx.nn.Linear(3, 5, use_bias=use_bias, key=jr.key(0))
    names = ["weight", "bias"][: 1 + use_bias]
    new = [linear.weight.T, linear.bias][: 1 + use_bias]
    oracle = eqx.tree_at(lambda module: [getattr(module, name) for name in names], oracle, new)
    x = jr.normal(jr.key(2), (6, 4, 3))
    assert jnp.allclose(applied(linear, x), jax.vmap(jax.vmap(oracle))(x), atol=1e-12)


@pytest.mark.parametrize(("channels", "groups"), [(32, 8), (24, 2), (2, 1)])
def test_group_normalisation_is_that_of_equinox(channels, groups):
    norm = perturbed(GroupNorm(channels, groups, epsilon=1e-3), 1)
    oracle = eqx.nn.GroupNorm(groups, channels, eps=1e-3)
    oracle = eqx.tree_at(lambda n: (n.weight, n.bias), oracle, (norm.weight, norm.bias))
    x = 3 + jr.normal(jr.key(0), (6, 4, channels))
    assert jnp.allclose(applied(norm, x), channels_last(oracle, x), atol=1e-10)


@pytest.mark.parametrize("affine", [True, False])
def test_layer_normalisation_is_that_of_equinox(affine):
    norm = perturbed(LayerNorm(12, epsilon=1e-3, affine=affine), 1)
    oracle = eqx.nn.LayerNorm(12, eps=1e-3, use_weight=affine, use_bias=affine)
    if affine:
        oracle = eqx.tree_at(lambda n: (n.weight, n.bias), oracle, (norm.weight, norm.bias))
    x = 3 + jr.normal(jr.key(0), (6, 4, 12))
    assert jnp.allclose(applied(norm, x), jax.vmap(jax.vmap(oracle))(x), atol=1e-10)


@pytest.mark.parametrize("norm", [LayerNorm(16), GroupNorm(16, 4)], ids=["layer", "group"])
def test_norms_of_half_precision_are_those_of_single_precision_rounded_once(norm):
    """At a mean of 100 neighbours in bfloat16 are 0.5 apart: sums in it would lose the variance of one."""
    x = (100 + jr.normal(jr.key(0), (6, 4, 16), jnp.float32)).astype(jnp.bfloat16)
    low = applied(norm, x)
    assert low.dtype == jnp.bfloat16
    assert jnp.array_equal(low, applied(norm, x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_depth_to_space_inverts_space_to_depth():
    x = jr.normal(jr.key(0), (4, 6, 3))
    tiles = space_to_depth(x, 2)
    assert jnp.array_equal(tiles[1, 2], x[2:4, 4:6].ravel())
    assert jnp.array_equal(depth_to_space(tiles, 2), x)


def test_growing_repeats_and_shrinking_takes_the_mean():
    x = jr.normal(jr.key(0), (4, 6, 3))
    assert jnp.allclose(shrink(x)[1, 2], x[2:4, 4:6].mean((0, 1)), atol=1e-12)
    assert jnp.array_equal(grow(x)[2:4, 4:6], jnp.broadcast_to(x[1, 2], (2, 2, 3)))


def test_the_haar_transform_is_orthonormal_and_inverted():
    x = jr.normal(jr.key(0), (8, 16, 3))
    for levels, shape in enumerate([(8, 16, 3), (4, 8, 12), (2, 4, 48), (1, 2, 192)]):
        y = haar(x, levels)
        assert y.shape == shape
        assert jnp.allclose(jnp.sum(y**2), jnp.sum(x**2), rtol=1e-12)
        assert jnp.allclose(inverse_haar(y, levels), x, atol=1e-12)


def test_the_haar_transform_is_means_and_differences():
    x = jr.normal(jr.key(0), (4, 8, 1))
    (a, b), (c, d) = x[2:4, 4:6, 0]
    means, *details = haar(x, 1)[1, 2]
    assert jnp.allclose(means, (a + b + c + d) / 2)
    assert jnp.allclose(jnp.array(details), jnp.array([a - b + c - d, a + b - c - d, a - b - c + d]) / 2)
    assert jnp.allclose(haar(x, 2)[..., :4], haar(haar(x, 1)[..., :1], 1), atol=1e-12)
    assert jnp.allclose(haar(x, 2)[0, 1, 4:7], haar(x, 1)[0, 2, 1:], atol=1e-12)


def test_positions_are_sines_and_cosines_of_columns_and_rows():
    table = position_table(3, 5, 12)
    for row, column in np.ndindex(3, 5):
        frequencies = [1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)]
        waves = [f(p * w) for p in (column, row) for f in (np.sin, np.cos) for w in frequencies]
        assert jnp.allclose(table[row, column], jnp.array(waves), atol=1e-12)


CONTEXTS = {
    "itself": (None, None),
    "context": ((5, 6), None),
    "masked": ((5, 6), jnp.array([True, False, True, True, False])),
}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("context", CONTEXTS)
def test_attention_is_a_softmax_written_by_hand(context, use_bias):
    shape, mask = CONTEXTS[context]
    width = 8 if shape is None else shape[1]
    attention = perturbed(Attention(8, 2, context_width=width, use_bias=use_bias, key=jr.key(0)), 1)
    x = jr.normal(jr.key(2), (12, 8))
    others = None if shape is None else jr.normal(jr.key(3), shape)
    found = applied(attention, x, others, mask)
    # The softmax is in single precision: a dozen roundings of 6e-8.
    assert jnp.allclose(found, attention_by_hand(attention, x, x if others is None else others, mask), atol=2e-6)


@eqx.filter_jit
def attention_by_hand(attention, x, context, mask):
    q = attention.query(x)
    k, v = jnp.split(attention.key_value(context), 2, axis=1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = jnp.exp(q[:, head] @ k[:, head].T / 2) * (1.0 if mask is None else mask.astype(x.dtype))
        heads.append(weights / weights.sum(1, keepdims=True) @ v[:, head])
    return attention.out(jnp.concatenate(heads, axis=1))


def test_attention_to_nothing_is_finite():
    attention = perturbed(Attention(8, 2, context_width=6, key=jr.key(0)), 1)
    x, context, mask = jnp.ones((3, 8)), jnp.ones((5, 6)), jnp.zeros(5, bool)
    assert jnp.isfinite(applied(attention, x, context, mask)).all()
    gradient = eqx.filter_jit(eqx.filter_grad(lambda context: attention(x, context, mask).sum()))(context)
    assert jnp.isfinite(gradient).all()


def test_the_softmax_of_half_precision_is_in_single_precision():
    attention = Attention(8, 2, key=jr.key(0))
    program = str(jax.make_jaxpr(attention)(jnp.ones((3, 8), jnp.bfloat16)))
    assert set(re.findall(r":(\w+)\[[\d,]*\] = exp ", program)) == {"f32"}
    assert set(re.findall(r":(\w+)\[[\d,]*\] = add ", program)) == {"bf16"}


@pytest.mark.parametrize("null", [True, False])
def test_an_embedding_adds_the_row_of_its_class(null):
    embedding = perturbed(Embedding(8, 3, null=null, key=jr.key(0)), 1)
    t = jnp.array(0.3)
    assert embedding.classes.shape == (3 + null, 8)
    h = embedding.outer(jax.nn.silu(embedding.inner(embedding.features(t))))
    for cond in range(3 + null):
        oracle = jax.nn.silu(h + embedding.classes[cond])
        assert jnp.allclose(embedding(t, jnp.array(cond)), oracle, atol=1e-12)
    if null:
        assert jnp.array_equal(embedding(t), embedding(t, jnp.array(3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Attention(8, 3, key=jr.key(0)), r"divide 8 channels; got 3"),
        (lambda: GroupNorm(8, 3), r"divide 8 channels; got 3"),
        (lambda: position_table(2, 2, 6), r"divisible by 4 for its positions; got 6"),
        (lambda: check_image("UViT", jnp.ones((2, 8, 7)), 2, 2), r"UViT needs h and w divisible by 2; got \(8, 7\)"),
        (lambda: check_image("UViT", jnp.ones((3, 8, 8)), 2, 2), r"shape \(2, h, w\); got \(3, 8, 8\)"),
        (lambda: check_image("UViT", jnp.ones((4, 2, 8, 8)), 2, 2), r"use jax.vmap"),
        (lambda: Embedding(8, 3, null=False, key=jr.key(0))(jnp.array(0.3)), r"needs cond, a class"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
