"""A UViT is a transformer between convolutions, in the sizes of its source."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from nets import perturbed

from momentax.nn import UVIT_64, UVIT_128, UViT
from momentax.nn._image import depth_to_space, space_to_depth
from momentax.nn._wavelet import haar, inverse_haar

T = jnp.array(0.3)


def shapes(*args, **options):
    return eqx.filter_eval_shape(lambda: UViT(*args, **options, key=jr.key(0)))


@eqx.filter_jit
def applied(net, z, t, cond=None):
    return net(z, t, cond)


def size(net):
    return sum(leaf.size for leaf in jax.tree.leaves(net) if hasattr(leaf, "size"))


@pytest.mark.parametrize(("preset", "pixels", "parameters"), [(UVIT_64, 64, 390_471_939), (UVIT_128, 128, 391_253_251)])
def test_a_preset_has_about_400_million_parameters(preset, pixels, parameters):
    net = shapes(3, num_classes=1000, **preset)
    assert size(net) == parameters
    assert eqx.filter_eval_shape(net, jnp.ones((3, pixels, pixels)), T, jnp.array(1)).shape == (3, pixels, pixels)


@pytest.mark.parametrize("preset", [UVIT_64, UVIT_128])
def test_the_transformer_of_a_preset_has_256_tokens(preset):
    pixels = 64 if preset is UVIT_64 else 128
    assert (pixels // 2 ** (len(preset["multipliers"]) - 1)) ** 2 == 256


def test_the_parameters_are_those_of_its_blocks():
    """Counted by hand for one level of two blocks above one transformer block."""
    c, d, e = 8, 16, 32
    embedding = 32 * e + e + e * e + e + 4 * e
    residual = 4 * c + 2 * (9 * c * c + c) + (e + 1) * 2 * c
    level = 2 * residual + (c + 1) * d + (d + 1) * c
    transformer = (d + 1) * d + (d + 1) * 2 * d + (d + 1) * d + (d + 1) * 4 * d + (4 * d + 1) * d + (e + 1) * 6 * d
    ends = 9 * 2 * c + c + 2 * c + 9 * c * 2 + 2
    assert size(shapes(2, width=8, depth=1, num_classes=3)) == embedding + level + transformer + ends


def test_an_untrained_uvit_is_zero():
    net = eqx.filter_jit(lambda key: UViT(2, width=8, depth=1, heads=2, key=key))(jr.key(0, impl="rbg"))
    assert not applied(net, jnp.ones((2, 4, 8)), T).any()


@pytest.mark.parametrize(
    ("options", "fold", "unfold"),
    [({"patch": 2}, space_to_depth, depth_to_space), ({"wavelet": 2}, haar, inverse_haar)],
    ids=["patch", "wavelet"],
)
def test_a_folded_input_is_that_of_a_network_of_more_channels(options, fold, unfold):
    z = jr.normal(jr.key(2), (2, 8, 8))
    channels = 2 * 4 ** options.get("wavelet", 1)
    folded = perturbed(shapes(2, width=4, multipliers=(1,), depth=1, **options), 1)
    plain = perturbed(shapes(channels, width=4, multipliers=(1,), depth=1), 1)

    @eqx.filter_jit
    def around(net):
        tiles = jnp.moveaxis(fold(jnp.moveaxis(z, 0, -1), *options.values()), -1, 0)
        return jnp.moveaxis(unfold(jnp.moveaxis(net(tiles, T), 0, -1), *options.values()), -1, 0)

    assert jnp.allclose(applied(folded, z, T), around(plain), atol=1e-6)


def test_it_takes_images_of_any_size_that_halves():
    net = shapes(2, width=8, multipliers=(1, 2, 2), depth=1)
    for shape in [(2, 4, 4), (2, 8, 20)]:
        assert eqx.filter_eval_shape(net, jnp.ones(shape), T).shape == shape


def test_a_level_is_written_by_hand():
    """The skips of the way down are added on the way up, the last first, and the sum keeps its variance."""
    level = perturbed(shapes(2, width=8, blocks=2, depth=0).levels[0], 1)
    h, below, emb = jr.normal(jr.key(2), (4, 4, 8)), jr.normal(jr.key(3), (2, 2, 16)), jr.normal(jr.key(4), (32,))

    @eqx.filter_jit
    def both_ways(level):
        down, skips = level.descend(h, emb, None)
        return down, level.ascend(below, skips, emb, None)

    @eqx.filter_jit
    def by_hand(level):
        (a, b), (c, d) = ([block.residual for block in blocks] for blocks in (level.down, level.up))
        first = a(h, emb)
        second = b(first, emb)
        up = c((jnp.kron(level.narrow(below), jnp.ones((2, 2, 1))) + second) / 2**0.5, emb)
        return level.widen(second.reshape(2, 2, 2, 2, 8).mean((1, 3))), d((up + first) / 2**0.5, emb)

    for found, expected in zip(both_ways(level), by_hand(level), strict=True):
        assert jnp.allclose(found, expected, atol=1e-10)


def test_it_knows_where_a_pixel_is_by_the_positions_of_the_transformer():
    """With convolutions of one pixel, and pixels that are all the same, nothing else could tell."""
    net = perturbed(shapes(2, width=8, multipliers=(1,), depth=1), 1)
    point = jnp.zeros((3, 3)).at[1, 1].set(1.0)[..., None, None]
    net = eqx.tree_at(
        lambda n: (n.first.weight, n.last.weight), net, (net.first.weight * point, net.last.weight * point)
    )
    output = applied(net, jnp.ones((2, 2, 4)), T).reshape(2, -1)
    assert (jnp.abs(output[:, 1:] - output[:, :-1]).max(0) > 1e-4).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shapes(2, width=8)(jnp.ones((2, 8, 7)), T), r"UViT needs h and w divisible by 2; got \(8, 7\)"),
        (lambda: shapes(2, width=8, patch=2, wavelet=1)(jnp.ones((2, 4, 4)), T), r"divisible by 8; got \(4, 4\)"),
        (lambda: shapes(2, width=8)(jnp.ones((3, 8, 8)), T), r"shape \(2, h, w\); got \(3, 8, 8\)"),
        (lambda: shapes(2, width=8)(jnp.ones((4, 2, 8, 8)), T), r"use jax.vmap"),
        (lambda: shapes(2, width=6, heads=5), r"divide 12 channels; got 5"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
