"""A DiT has the sizes, the initial values and the blocks of its source."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from nets import perturbed

from momentax.nn import DIT_B, DIT_L, DIT_S, DIT_XL, DiT
from momentax.nn._embedding import StepFeatures
from momentax.nn._position import position_table

T = jnp.array(0.3)


def shapes(*args, **options):
    return eqx.filter_eval_shape(lambda: DiT(*args, **options, key=jr.key(0)))


@eqx.filter_jit
def applied(net, z, t, cond=None):
    return net(z, t, cond)


def size(net):
    return sum(leaf.size for leaf in jax.tree.leaves(net) if hasattr(leaf, "size"))


@pytest.mark.parametrize(
    ("preset", "millions"), [(DIT_S, 33), (DIT_B, 130), (DIT_L, 458), (DIT_XL, 675)], ids=["S", "B", "L", "XL"]
)
def test_a_preset_has_the_parameters_of_the_table(preset, millions):
    """Of Peebles & Xie (2022), table 1, with 1000 classes and a learned variance at patches of 2."""
    net = shapes((4, 32, 32), num_classes=1000, out_channels=8, features=StepFeatures(256), **preset)
    d, depth = preset["width"], preset["depth"]
    embedding = (256 + 1) * d + (d + 1) * d + 1001 * d
    block = (d + 1) * 6 * d + (d + 1) * 3 * d + (d + 1) * d + (d + 1) * 4 * d + (4 * d + 1) * d
    ends = (16 + 1) * d + (d + 1) * 2 * d + (d + 1) * 32
    assert size(net) == embedding + depth * block + ends
    assert round(size(net) / 1e6) == millions


def test_the_largest_preset_takes_latents():
    net = shapes((4, 32, 32), num_classes=1000, **DIT_XL)
    assert eqx.filter_eval_shape(net, jnp.ones((4, 32, 32)), T, jnp.array(1)).shape == (4, 32, 32)


def test_the_initial_values_are_those_of_the_source():
    net = eqx.filter_jit(lambda key: DiT((4, 4, 4), width=64, depth=1, num_classes=50, key=key))(jr.key(0, impl="rbg"))
    embedding, block = net.embeddings[0], net.blocks[0]
    assert embedding.classes is not None
    for normal in (embedding.inner.weight, embedding.outer.weight, embedding.classes):
        # Of 2048 numbers the standard deviation is known to 1.6 %.
        assert abs(normal.std() / 0.02 - 1) < 0.08
    linears = net.first, block.attention.query, block.attention.key_value, block.attention.out, block.inner, block.outer
    for linear in linears:
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.98 * bound < jnp.abs(linear.weight).max() <= bound
        assert abs(linear.weight.std() / bound * 3**0.5 - 1) < 0.08
    zeros = [net.modulation, net.last, block.modulation, *(linear.bias for linear in linears)]
    zeros += [embedding.inner.bias, embedding.outer.bias]
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))
    assert not applied(net, jnp.ones((4, 4, 4)), T, jnp.array(3)).any()


def test_a_dit_without_blocks_is_written_by_hand():
    """Patches, positions, the last norm and modulation, and the first two of three channels of each patch."""
    net = perturbed(shapes((2, 4, 6), width=8, depth=0, out_channels=3), 1)
    z = np.asarray(jr.normal(jr.key(2), (2, 4, 6)))
    shift, scale = np.split(np.asarray(net.modulation(net.embeddings[0](T))), 2)
    expected = np.zeros((2, 4, 6))
    for row, column in np.ndindex(2, 3):
        pixels = np.s_[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        h = z[pixels].transpose(1, 2, 0).ravel() @ net.first.weight + net.first.bias
        h = h + position_table(2, 3, 8)[row, column]
        h = (h - h.mean()) / np.sqrt(h.var() + 1e-6) * (1 + scale) + shift
        values = (h @ net.last.weight + net.last.bias).reshape(2, 2, 3)
        expected[pixels] = values.transpose(2, 0, 1)[:2]
    assert jnp.allclose(applied(net, jnp.asarray(z), T), expected, atol=1e-10)


def test_a_block_is_written_by_hand():
    """Shift, scale and gate of the attention, then of the MLP, each after its own norm."""
    net = perturbed(shapes((2, 4, 4), width=8, depth=1, heads=2, mlp_epsilon=1e-2), 1)
    block, h, emb = net.blocks[0], jr.normal(jr.key(2), (3, 8)), jr.normal(jr.key(3), (8,))
    a, b, c, d, e, f = np.split(np.asarray(block.modulation(emb)), 6)

    def norm(x, epsilon):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + epsilon)

    half = h + c * block.attention(norm(h, 1e-6) * (1 + b) + a)
    hidden = jax.nn.gelu(block.inner(norm(half, 1e-2) * (1 + e) + d), approximate=True)
    # The attention's softmax is in single precision.
    assert jnp.allclose(applied(block, h, emb), half + f * block.outer(hidden), atol=1e-5)


def test_each_block_may_have_its_own_embedding_and_the_output_has_the_first():
    z, options = jr.normal(jr.key(2), (2, 4, 4)), {"width": 8, "depth": 2, "heads": 2, "num_classes": 3}
    shared = perturbed(shapes((2, 4, 4), **options), 1)
    own = perturbed(shapes((2, 4, 4), **options, embedding_per_block=True), 2)
    parts = lambda net: (net.first, net.blocks, net.modulation, net.last)  # noqa: E731
    own = eqx.tree_at(parts, own, parts(shared))
    same = eqx.tree_at(lambda net: net.embeddings, own, (shared.embeddings[0],) * 2)
    plain = applied(shared, z, T, jnp.array(1))
    assert jnp.array_equal(applied(same, z, T, jnp.array(1)), plain)
    still = eqx.tree_at(
        lambda net: net.blocks[1].modulation, own, jax.tree.map(jnp.zeros_like, own.blocks[1].modulation)
    )
    for i, net, matters in [(0, own, True), (1, own, True), (0, still, True), (1, still, False)]:
        changed = eqx.tree_at(lambda net, i=i: net.embeddings[i], net, shared.embeddings[0])
        difference = applied(changed, z, T, jnp.array(1)) - applied(net, z, T, jnp.array(1))
        assert (jnp.abs(difference).max() > 1e-4) == matters


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shapes((2, 4, 5)), r"h and w divisible by 2; got \(2, 4, 5\)"),
        (lambda: shapes((4, 4)), r"needs \(channels, h, w\)"),
        (lambda: shapes((4, 4, 4), out_channels=3), r"out_channels as a whole number >= 4; got 3"),
        (lambda: shapes((4, 4, 4), width=8, heads=3), r"divide 8 channels; got 3"),
        (lambda: shapes((2, 4, 4))(jnp.ones((3, 2, 4, 4)), T), r"shape \(2, 4, 4\); got \(3, 2, 4, 4\)"),
        (
            lambda: eqx.filter_eval_shape(shapes((2, 4, 4), width=6, heads=1), jnp.ones((2, 4, 4)), T),
            r"divisible by 4 for its positions; got 6",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
