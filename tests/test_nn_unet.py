"""The U-Net is that of its sources, and each of its options does what it says."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from nets import cast, perturbed

from momentax.nn import Text, UNet
from momentax.nn._embedding import FourierFeatures, StepFeatures
from momentax.nn._image import depth_to_space, grow, shrink, space_to_depth
from momentax.nn._image_attention import ImageAttention, TextAttention
from momentax.nn._norm import GroupNorm
from momentax.nn._residual import FAN_IN_UNIFORM, Resample, Residual, ResidualStyle
from momentax.nn._unet_level import rematted
from momentax.nn._unet_style import UNetStyle

ONE = jnp.array(1.0)


def tiny(channels=2, *, seed=0, **options):
    """A U-Net of one level with noise on all its arrays."""
    options = {"width": 8, "multipliers": (1,)} | options
    return perturbed(eqx.filter_eval_shape(lambda: UNet(channels, **options, key=jr.key(0))), seed)


@eqx.filter_jit
def applied(module, *args, **options):
    return module(*args, **options)


def image(channels=2, side=4):
    return jr.normal(jr.key(5), (channels, side, side))


def count(net):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(net) if hasattr(leaf, "shape"))


def shapes(channels, **options) -> Any:
    return eqx.filter_eval_shape(lambda: UNet(channels, **options, key=jr.key(0)))


ADM_64 = {
    "out_channels": 6,
    "width": 192,
    "multipliers": (1, 2, 3, 4),
    "blocks": 3,
    "attention": (False, True, True, True),
    "num_classes": 1000,
}


def test_the_parameters_are_as_many_as_the_docstring_says():
    counts = [
        count(shapes(1, num_classes=10)),
        count(shapes(1, multipliers=(1, 2), patch=2, num_classes=10)),
        count(shapes(3, **ADM_64)),
    ]
    for number in counts:
        assert f"{number:,}" in str(UNet.__doc__)


def test_the_parameters_are_as_many_as_those_of_the_published_network():
    """The checkpoint `64x64_diffusion.pt` of Dhariwal & Nichol (2021), "296M" in their table 4."""
    style = UNetStyle(features=StepFeatures(192), null=False)
    assert count(shapes(3, **ADM_64, style=style)) == 295_904_454


def test_heads_are_of_64_channels():
    net = shapes(3, **ADM_64)
    assert {step.attention.attention.heads for step in net.down[3].steps} == {12}
    assert net.middle.first.attention.attention.heads == 12
    assert shapes(1).middle.first.attention.attention.heads == 1


@jax.jit
def last_layers(key: Any) -> Any:
    """The layers of an untrained network that are to start at zero."""
    net: Any = UNet(2, width=8, multipliers=(1, 2), key=key)
    blocks = [net.down[0].steps[0].block, net.down[0].resample, net.middle.last.block, net.up[1].steps[1].block]
    texts: Any = UNet(2, width=8, multipliers=(1,), text_width=3, key=key)
    layers = [net.last, *(block.outer for block in blocks), net.middle.first.attention.attention.out]
    return [(layer.weight, layer.bias) for layer in [*layers, texts.middle.first.attention.last]]


def test_the_last_layers_start_at_zero():
    assert not any(leaf.any() for leaf in jax.tree.leaves(last_layers(jr.key(0))))


def test_weights_start_as_those_of_pytorch():
    """Uniform within one over the root of the fan-in, 27 here and 5."""
    for shape, fan in [((3, 3, 3, 400), 27), ((5, 2000), 5)]:
        weight = np.asarray(FAN_IN_UNIFORM(jr.key(0), shape)) * math.sqrt(fan)
        assert 0.99 < np.abs(weight).max() <= 1
        # Ten thousand draws of variance 1/3.
        assert abs(weight.var() - 1 / 3) < 0.02


def test_a_patched_unet_is_a_unet_of_tiles():
    def in_tiles(net, z, t):
        tiles = jnp.moveaxis(space_to_depth(jnp.moveaxis(z, 0, -1), 2), -1, 0)
        return jnp.moveaxis(depth_to_space(jnp.moveaxis(net(tiles, t), 0, -1), 2), -1, 0)

    options = {"width": 4, "multipliers": (1,), "blocks": 2}
    patched, plain = tiny(2, patch=2, **options), tiny(8, **options)
    assert jnp.allclose(applied(patched, image(), ONE), jax.jit(lambda z, t: in_tiles(plain, z, t))(image(), ONE))


def test_only_as_many_channels_come_out_as_go_in():
    wide = tiny(out_channels=5)
    narrow = eqx.tree_at(lambda n: (n.last.weight, n.last.bias), wide, (wide.last.weight[..., :2], wide.last.bias[:2]))
    assert wide.last.weight.shape[-1] == 5
    assert jnp.array_equal(applied(wide, image(), ONE), applied(narrow, image(), ONE))


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("resample", [None, shrink, grow])
def test_a_residual_block_is_one_of_equinoxs_layers(scale_shift, resample):
    style = ResidualStyle(2, 1e-3, scale_shift)
    block = Residual(4, 6, 3, style=style, divisor=1.5, resample=resample, key=jr.key(0))
    block = perturbed(block, 1)
    h, emb = jr.normal(jr.key(2), (4, 4, 4)), jr.normal(jr.key(3), (3,))
    assert jnp.allclose(applied(block, h, emb), jax.jit(residual_by_hand)(block, h, emb), atol=1e-11)


def residual_by_hand(block, h, emb):
    def norm(ours, x):
        oracle = eqx.nn.GroupNorm(2, x.shape[-1], eps=1e-3)
        return channels_last(eqx.tree_at(lambda n: (n.weight, n.bias), oracle, (ours.weight, ours.bias)), x)

    def conv(ours, x):
        oracle = eqx.nn.Conv2d(ours.weight.shape[2], ours.weight.shape[3], 3, padding=1, key=jr.key(0))
        new = ours.weight.transpose(3, 2, 0, 1), ours.bias[:, None, None]
        return channels_last(eqx.tree_at(lambda c: (c.weight, c.bias), oracle, new), x)

    def sized(x):
        if block.resample is None:
            return x
        small = (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4
        return small if block.resample is shrink else jnp.kron(x, jnp.ones((2, 2, 1)))

    r = conv(block.inner, sized(jax.nn.silu(norm(block.norm, h))))
    told = emb @ block.modulation.weight + block.modulation.bias
    scale, shift, added = (told[:6], told[6:], 0) if block.scale_shift else (0, 0, told)
    r = norm(block.middle, r + added) * (1 + scale) + shift
    r = conv(block.outer, jax.nn.silu(r))
    return (sized(h) @ block.shortcut.weight + block.shortcut.bias + r) / 1.5


def channels_last(module, x):
    return jnp.moveaxis(module(jnp.moveaxis(x, -1, 0)), 0, -1)


@pytest.mark.parametrize("padding", [(1, 1), (0, 1)])
def test_a_convolution_may_halve_the_size(padding):
    half = perturbed(Resample(3, stride=2, padding=padding, key=jr.key(0)), 1)
    x = jr.normal(jr.key(2), (6, 4, 3))
    padded = np.pad(x, (padding, padding, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))[::2, ::2]
    oracle = np.einsum("hwcij,ijcd->hwd", windows, half.conv.weight) + half.conv.bias
    assert jnp.allclose(applied(half, x, ONE[None]), oracle, atol=1e-11)


def test_a_convolution_may_double_the_size():
    double = perturbed(Resample(3, grows=True, key=jr.key(0)), 1)
    x = jr.normal(jr.key(2), (2, 3, 3))
    oracle = applied(double.conv, jnp.kron(x, jnp.ones((2, 2, 1))))
    assert jnp.allclose(applied(double, x, ONE[None]), oracle, atol=1e-11)


@pytest.mark.parametrize("size", [(4, 6), (3, 6), (5, 7), (4, 5)])
def test_a_size_that_did_not_halve_is_grown_to_by_the_nearest_pixel(size):
    """Pixel i of H is pixel floor(i h / H), with a convolution after it."""
    double = perturbed(Resample(3, grows=True, key=jr.key(0)), 1)
    x = jr.normal(jr.key(2), (2, 3, 3))
    oracle = np.array([[x[i * 2 // size[0], j * 3 // size[1]] for j in range(size[1])] for i in range(size[0])])
    assert jnp.allclose(double(x, ONE[None], size=size), applied(double.conv, jnp.asarray(oracle)), atol=1e-11)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("padding", [(1, 1), (0, 1)])
def test_a_unet_whose_sizes_change_by_convolutions_takes_sides_that_do_not_halve(padding, remat):
    style = UNetStyle(residual_down=False, residual_up=False, down_padding=padding)
    net = tiny(multipliers=(1, 2, 2), style=style, remat=remat)
    for h, w in ((4, 5), (7, 6), (9, 11)):
        assert eqx.filter_eval_shape(net, jnp.ones((2, h, w)), ONE).shape == (2, h, w)
    squares = eqx.filter_jit(eqx.filter_grad(lambda net: jnp.sum(net(image(side=5), ONE) ** 2)))
    grads = squares(perturbed(net, 1))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    if padding == (0, 1):
        with pytest.raises(ValueError, match=r"needs h and w of at least 4; got \(3, 3\); choose fewer levels"):
            net(image(side=3), ONE)
    else:
        assert eqx.filter_eval_shape(net, image(side=1), ONE).shape == (2, 1, 1)


def softmax_attention(attention, x, context):
    """One head, written out."""
    k, v = jnp.split(attention.key_value(context), 2, axis=-1)
    weights = jnp.exp(attention.query(x) @ k.T / math.sqrt(k.shape[-1]))
    return attention.out(weights / weights.sum(1, keepdims=True) @ v)


def layer_norm(norm, x):
    return jax.vmap(lambda row: jax.nn.standardize(row, epsilon=1e-5))(x) * norm.weight + norm.bias


def test_attention_of_pixels_has_a_residual():
    h = jr.normal(jr.key(2), (2, 3, 4))
    for norm in (None, GroupNorm(4, 2)):
        module = perturbed(ImageAttention(4, 1, norm=norm, divisor=1.5, key=jr.key(0)), 1)

        def by_hand(module, h):
            x = (h if module.norm is None else module.norm(h)).reshape(6, 4)
            return (h + softmax_attention(module.attention, x, x).reshape(h.shape)) / 1.5

        # The softmax is in float32.
        assert jnp.allclose(applied(module, h), jax.jit(by_hand)(module, h), atol=1e-5)


def test_attention_to_a_text_is_a_transformer_block():
    module = perturbed(TextAttention(4, 1, text_width=5, groups=2, key=jr.key(0)), 1)
    h, text = jr.normal(jr.key(2), (2, 3, 4)), jr.normal(jr.key(3), (3, 5))

    def by_hand(module, h, text):
        x = module.first(eqx.tree_at(lambda n: n.weight, module.norm, module.norm.weight)(h)).reshape(6, 4)
        own = layer_norm(module.pixel_norm, x)
        x = x + softmax_attention(module.pixels, own, own)
        x = x + softmax_attention(module.text, layer_norm(module.text_norm, x), text)
        value, gate = jnp.split(module.gated(layer_norm(module.hidden_norm, x)), 2, axis=-1)
        x = x + module.hidden(value * gate * (1 + jax.scipy.special.erf(gate / math.sqrt(2))) / 2)
        return h + module.last(x).reshape(h.shape)

    assert jnp.allclose(applied(module, h, Text(text)), jax.jit(by_hand)(module, h, text), atol=1e-5)
    mask = jnp.array([True, True, False])
    masked = applied(module, h, Text(text, mask))
    assert jnp.allclose(masked, applied(module, h, Text(text[:2])), atol=1e-6)


def test_a_text_matters_and_none_is_a_learned_token():
    net = tiny(text_width=5)
    first, second, none = Text(jnp.ones((3, 5))), Text(-jnp.ones((3, 5))), Text(net.context.no_text)
    outputs = [applied(net, image(), ONE, cond) for cond in (first, second, none, None)]
    assert jnp.abs(outputs[0] - outputs[1]).max() > 1e-3
    assert jnp.array_equal(outputs[2], outputs[3])


def test_attention_is_where_it_was_chosen():
    style = UNetStyle(attention_up=(False, True), residual_down=(False, True), residual_up=False)
    net = shapes(1, width=8, multipliers=(1, 2), attention=(True, False), blocks=2, style=style)
    assert [[step.attention is not None for step in level.steps] for level in net.down] == [[True] * 2, [False] * 2]
    assert [[step.attention is not None for step in level.steps] for level in net.up] == [[True] * 3, [False] * 3]
    assert isinstance(net.down[0].resample, Resample)
    assert isinstance(net.up[0].resample, Resample)
    assert net.down[1].resample is None
    assert net.up[1].resample is None
    assert isinstance(shapes(1).down[0].resample, Residual)


def test_the_latest_skip_is_taken_first():
    net = tiny(multipliers=(1, 2), attention=(True, False), style=UNetStyle(middle=False))
    emb = jr.normal(jr.key(2), (32,))

    def by_hand(net, h):
        high, low = (level.steps[0] for level in net.down)
        a = high(h, None, emb, None, None)
        b = net.down[0].resample(a, emb)
        c = low(b, None, emb, None, None)
        for level, skips in zip(net.up, [(c, b), (a, h)], strict=True):
            for step, skip in zip(level.steps, skips, strict=True):
                c = step(jnp.concatenate([c, skip], -1), None, emb, None, None)
            c = c if level.resample is None else level.resample(c, emb)
        return c

    h = jr.normal(jr.key(3), (4, 4, 8))
    found = eqx.filter_jit(lambda net, h: net._down_and_up(h, emb, None, None))(net, h)
    assert jnp.allclose(found, eqx.filter_jit(by_hand)(net, h), atol=1e-9)


def test_without_a_middle_the_ways_meet():
    assert shapes(1, style=UNetStyle(middle=False)).middle is None
    assert shapes(1, style=UNetStyle(middle_attention=False)).middle.first.attention is None
    assert shapes(1, style=UNetStyle(middle_norm=False)).middle.first.attention.norm is None
    assert shapes(1, style=UNetStyle(middle_groups=8)).middle.first.attention.norm.groups == 8


def test_images_may_be_centred_and_outputs_divided_by_the_time():
    plain, other = tiny(), tiny(style=UNetStyle(centred=True, divided=True))
    t = jnp.array(4.0)
    assert jnp.allclose(applied(other, image(), t), applied(plain, 2 * image() - 1, t) / 4, atol=1e-12)


def test_fourier_features_are_of_the_logarithm_and_are_not_trained():
    features = FourierFeatures(6, scale=2.0, key=jr.key(0))
    angles = 2 * np.pi * np.asarray(features.weight.value) * np.log(3.0)
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    assert jnp.allclose(features(jnp.array(3.0)), expected, atol=1e-12)
    assert features.size == 6
    assert not jax.tree.leaves(eqx.filter(features, eqx.is_inexact_array))


def test_norms_have_at_most_32_groups_of_at_least_four_channels():
    groups = {channels: ResidualStyle().norm(channels).groups for channels in (2, 8, 24, 40, 128, 192, 320, 7 * 31)}
    assert groups == {2: 1, 8: 2, 24: 6, 40: 10, 128: 32, 192: 32, 320: 32, 217: 31}
    assert ResidualStyle(4, 1e-3).norm(8).groups == 4


@eqx.filter_jit
def output_and_gradient(block, remat):
    """The output of a block that drops, and the gradient of its squared norm."""

    def loss(block):
        y = rematted(block, remat)(jnp.ones((4, 4, 4)), jnp.ones(3), key=jr.key(1))
        return jnp.sum(y**2), y

    (_, y), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(block)
    return y, gradient


def test_a_recomputed_block_drops_what_it_has_dropped():
    block = perturbed(Residual(4, 4, 3, dropout=0.5, key=jr.key(0)), 1)
    found, expected = (output_and_gradient(block, remat) for remat in (True, False))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_every_block_is_recomputed():
    net = tiny(remat=True, multipliers=(1, 2))
    program = str(jax.make_jaxpr(lambda z: net(z, ONE))(image()))
    # Two blocks and a map on the way down, two in the middle, four and a map on the way up.
    assert program.count("remat2[") == 10


def test_dropout_needs_a_key_and_ends_with_training():
    net, plain = tiny(dropout=0.5), tiny()
    outputs = [applied(net, image(), ONE, key=jr.key(i)) for i in (0, 0, 1)]
    assert jnp.array_equal(outputs[0], outputs[1])
    assert jnp.abs(outputs[0] - outputs[2]).max() > 1e-3
    assert jnp.array_equal(applied(eqx.nn.inference_mode(net), image(), ONE), applied(plain, image(), ONE))
    with pytest.raises(RuntimeError, match="key"):
        net(image(), ONE)


def test_every_block_drops_by_its_own_key():
    keys = []

    def noted(dropout, x, *, key):
        keys.append(jr.key_data(key).tolist())
        return x

    net = tiny(dropout=0.5, multipliers=(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eqx.nn.Dropout, "__call__", noted)
        net(image(), ONE, key=jr.key(0))
    assert len(keys) == 10
    assert len({tuple(key) for key in keys}) == 10


@pytest.mark.parametrize("options", [{}, {"text_width": 3, "attention": (True,)}], ids=["adm", "text"])
def test_half_precision_is_inside_only(options):
    full = cast(tiny(**options), jnp.float32)
    half = cast(tiny(dtype=jnp.bfloat16, **options), jnp.float32)
    cond = Text(jnp.ones((2, 3), jnp.float32)) if options else None
    z, t = image().astype(jnp.float32), jnp.array(1.0, jnp.float32)
    exact, rough = applied(full, z, t, cond), applied(half, z, t, cond)
    assert rough.dtype == jnp.float32
    error = jnp.abs(exact - rough).max() / jnp.abs(exact).max()
    # Twenty layers, each good to 2^-9.
    assert 1e-5 < error < 0.1
    insides = str(jax.make_jaxpr(lambda z, t: half(z, t, cond))(z, t))
    convolutions = [line for line in insides.splitlines() if "conv_general_dilated[" in line]
    assert sum("bf16" in line for line in convolutions) == len(convolutions) - 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiny()(image(3), ONE), r"shape \(2, h, w\); got \(3, 4, 4\)"),
        (lambda: tiny(multipliers=(1, 2))(image(side=5), ONE), r"divisible by 2; got \(5, 5\)"),
        (lambda: tiny()(image(), ONE, jnp.array(0)), "with num_classes=n"),
        (lambda: tiny()(image(), ONE, Text(jnp.ones((1, 3)))), "got text_width=None"),
        (lambda: tiny(text_width=3)(image(), ONE, Text(jnp.ones((1, 2)))), r"\(tokens, 3\); got \(1, 2\)"),
        (lambda: tiny(text_width=3)(image(), ONE, jnp.array(0)), r"\(tokens, 3\)"),
        (lambda: tiny(text_width=3, num_classes=2), "classes or text"),
        (lambda: tiny(text_width=3, num_classes=2, style=UNetStyle(null=False)), "classes or text"),
        (lambda: tiny(out_channels=1), "out_channels as a whole number >= 2; got 1"),
        (lambda: shapes(2, heads=5), "divide 64 channels; got 5"),
        (lambda: shapes(2, heads=(1, 2)), r"heads needs one value for each of 3 levels; got \(1, 2\)"),
        (lambda: shapes(2, attention=(True,)), "attention needs one value for each of 3"),
        (lambda: shapes(2, style=UNetStyle(attention_up=(True,))), "attention_up needs one value for each of 3"),
        (lambda: shapes(2, style=UNetStyle(residual_down=(True,))), "residual_down needs one value for each of 3"),
        (lambda: shapes(2, style=UNetStyle(residual_up=(True,))), "residual_up needs one value for each of 3"),
        (lambda: tiny(style=UNetStyle(ResidualStyle(groups=3))), "groups that divide 8 channels; got 3"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
