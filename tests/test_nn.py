"""The networks are smooth functions of one example, of the log-SNR and of the class, at any precision."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentax.nn import MLP, UNet
from momentax.nn._attention import Attention
from momentax.nn._image import (
    Conv,
    Pointwise,
    depth_to_space,
    group_standardize,
    space_to_depth,
)

SHAPE = (2, 4, 8)
FIVE = jnp.zeros(5, int)


def perturbed(module, seed):
    """The module, or its shapes, with noise on every leaf, so that nothing hides behind a zero."""
    rng = np.random.default_rng(seed)

    def noisy(leaf):
        start = 0 if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
        return jnp.asarray(start + 0.2 * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(noisy, module)


MLP_NET = jax.jit(lambda key: MLP(SHAPE, width=16, num_classes=3, key=key))(jr.key(0))
UNET = jax.jit(lambda key: UNet(2, width=8, multipliers=(1, 2), num_classes=3, key=key))(jr.key(0))
every_net = pytest.mark.parametrize("net", [MLP_NET, perturbed(UNET, 1)], ids=["mlp", "unet"])


@pytest.fixture(scope="module")
def z():
    return jr.normal(jr.key(2), (5, *SHAPE))


@jax.jit
def batched(net, z, t, cond):
    return jax.vmap(net)(z, t, cond)


@jax.jit
def single(net, z, t, cond=None):
    return net(z, t, cond)


@every_net
def test_a_batch_is_its_examples(net, z):
    t, cond = jnp.array([-9.0, 0.5, 7.0, 0.0, 2.0]), jnp.array([0, 2, 3, 1, 0])
    together = batched(net, z, t, cond)
    apart = jnp.stack([single(net, *example) for example in zip(z, t, cond, strict=True)])
    assert together.shape == z.shape
    # Sums of some hundred terms of order one, in another order.
    assert jnp.allclose(together, apart, rtol=1e-11, atol=1e-11)


@every_net
def test_forward_and_reverse_mode_agree_in_the_parameters(net, z):
    r"""$\langle u, J v \rangle = \langle J^\top u, v \rangle$, whether the batch is taken before or after."""

    @jax.jit
    def products(net, v, u, t):
        before = jax.jvp(lambda net: batched(net, z, t, FIVE), (net,), (v,))[1]
        after = jax.vmap(lambda *example: jax.jvp(lambda net: net(*example), (net,), (v,))[1])(z, t, FIVE)
        reverse = jax.grad(lambda net: jnp.vdot(u, batched(net, z, t, FIVE)))(net)
        return jnp.array([jnp.vdot(u, before), jnp.vdot(u, after), optax.tree.vdot(reverse, v)])

    found = products(net, perturbed(net, 3), jr.normal(jr.key(4), z.shape), jnp.linspace(-9.0, 9.0, 5))
    assert jnp.abs(found).min() > 1e-3
    # The attention's softmax is in float32: some hundred roundings of 6e-8.
    assert jnp.allclose(found, found[0], rtol=1e-5)


@every_net
@given(t=st.floats(-20.0, 20.0))
def test_the_derivative_in_logsnr_is_that_of_a_central_difference(net, t):
    slope, difference = slopes(net, jnp.ones(SHAPE), jnp.array(t), 1e-3)
    assert jnp.isfinite(slope).all()
    # The truncation is h^2 / 6 = 2e-7 of a third derivative, the rounding of a float32 softmax 6e-8 / h = 6e-5.
    assert jnp.allclose(slope, difference, rtol=1e-3, atol=3e-4)


@jax.jit
def slopes(net, z, t, h):
    slope = jax.jvp(lambda t: net(z, t), (t,), (jnp.ones_like(t),))[1]
    return slope, (net(z, t + h) - net(z, t - h)) / (2 * h)


@every_net
def test_the_class_matters_and_no_class_is_the_last_row(net, z):
    t = jnp.ones(5)
    outputs = batched(net, jnp.broadcast_to(z[0], z.shape), t, jnp.array([0, 1, 2, 3, 0]))
    assert (jnp.abs(jnp.diff(outputs, axis=0)).max((1, 2, 3)) > 1e-3).all()
    # One example may be summed in another order than five.
    assert jnp.allclose(single(net, z[0], t[0]), outputs[3], rtol=1e-11, atol=1e-11)


@every_net
def test_the_logsnr_matters_over_the_whole_range(net, z):
    outputs = batched(net, jnp.broadcast_to(z[0], z.shape), jnp.array([-20.0, -15.0, 0.0, 15.0, 20.0]), FIVE)
    assert jnp.isfinite(outputs).all()
    assert (jnp.abs(jnp.diff(outputs, axis=0)).max((1, 2, 3)) > 1e-3).all()


@every_net
@pytest.mark.parametrize("z_dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_parameters_decide_the_precision(net, dtype, z_dtype):
    net = jax.tree.map(lambda leaf: leaf.astype(dtype), net)
    z, t, cond = jnp.ones(SHAPE, z_dtype), jnp.ones((), z_dtype), jnp.array(1, jnp.int32)
    assert jax.eval_shape(net, z, t, cond).dtype == dtype


@every_net
def test_single_precision_is_close_to_double(net, z):
    args = net, z, jnp.linspace(-20.0, 20.0, 5)
    low = batched(*jax.tree.map(lambda leaf: leaf.astype(jnp.float32), args), FIVE)
    # Some twenty layers with roundings of 1e-7, and angles of 40 radians.
    assert jnp.allclose(low.astype(jnp.float64), batched(*args, FIVE), rtol=1e-3, atol=1e-3)


def test_a_patched_unet_is_a_unet_of_tiles(z):
    def build(channels, patch):
        return UNet(channels, width=4, multipliers=(1,), blocks=2, patch=patch, key=jr.key(0))

    def in_tiles(net, z, t):
        tiles = jnp.moveaxis(space_to_depth(jnp.moveaxis(z, 0, -1), 2), -1, 0)
        return jnp.moveaxis(depth_to_space(jnp.moveaxis(net(tiles, t), 0, -1), 2), -1, 0)

    patched, plain = (perturbed(eqx.filter_eval_shape(build, *args), 1) for args in [(2, 2), (8, 1)])
    assert jnp.allclose(single(patched, z[0], jnp.ones(())), jax.jit(in_tiles)(plain, z[0], jnp.ones(())))


def test_an_untrained_unet_is_zero():
    assert not single(UNET, jnp.ones(SHAPE), jnp.array(0.0)).any()


def test_an_mlp_takes_examples_of_any_rank():
    for shape in [(), (2,), (1, 2, 3, 4)]:
        net = eqx.filter_eval_shape(lambda shape=shape: MLP(shape, width=4, key=jr.key(0)))
        assert eqx.filter_eval_shape(net, jnp.ones(shape), jnp.array(0.0)).shape == shape


@every_net
def test_every_leaf_is_a_floating_point_array(net):
    assert all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(net))


def test_a_convolution_is_that_of_equinox():
    conv = perturbed(Conv(3, 5, key=jr.key(0)), 1)
    oracle = eqx.nn.Conv2d(3, 5, 3, padding=1, key=jr.key(0))
    new = conv.weight.transpose(3, 2, 0, 1), conv.bias[:, None, None]
    oracle = eqx.tree_at(lambda c: (c.weight, c.bias), oracle, new)
    x = jr.normal(jr.key(2), (6, 4, 3))
    assert jnp.allclose(applied(conv, x), channels_last(oracle, x), atol=1e-12)


@jax.jit
def applied(module, x):
    return module(x)


@eqx.filter_jit
def channels_last(module, x):
    return jnp.moveaxis(module(jnp.moveaxis(x, -1, 0)), 0, -1)


def test_a_pointwise_map_is_a_convolution_with_a_point():
    point = perturbed(Pointwise(3, 5, key=jr.key(0)), 1)
    kernel = jnp.zeros((3, 3, 3, 5)).at[1, 1].set(point.weight)
    conv = eqx.tree_at(lambda c: (c.weight, c.bias), Conv(3, 5, key=None), (kernel, point.bias))
    x = jr.normal(jr.key(2), (6, 4, 3))
    assert jnp.allclose(applied(point, x), applied(conv, x), atol=1e-12)


@pytest.mark.parametrize(("channels", "groups"), [(32, 8), (24, 2), (2, 1)])
def test_group_normalisation_is_that_of_equinox(channels, groups):
    x = 3 + jr.normal(jr.key(0), (6, 4, channels))
    oracle = eqx.nn.GroupNorm(groups, channels, channelwise_affine=False)
    assert jnp.allclose(jax.jit(group_standardize)(x), channels_last(oracle, x), atol=1e-10)


def test_depth_to_space_inverts_space_to_depth():
    x = jr.normal(jr.key(0), (4, 6, 3))
    tiles = space_to_depth(x, 2)
    assert jnp.array_equal(tiles[1, 2], x[2:4, 4:6].ravel())
    assert jnp.array_equal(depth_to_space(tiles, 2), x)


def test_attention_is_a_softmax_written_by_hand():
    attention = perturbed(Attention(8, 2, key=jr.key(0)), 1)
    x = jr.normal(jr.key(2), (3, 4, 8))
    assert jnp.allclose(applied(attention, x), attention_by_hand(attention, x), atol=1e-12)


@jax.jit
def attention_by_hand(attention, x):
    q, k, v = jnp.split(attention.qkv(attention.norm(x)).reshape(12, 24), 3, axis=1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = jnp.exp(q[:, head] @ k[:, head].T / 2)
        heads.append(weights / weights.sum(1, keepdims=True) @ v[:, head])
    return x + attention.out(jnp.concatenate(heads, axis=1).reshape(x.shape))


@pytest.mark.parametrize("net", [MLP_NET, UNET], ids=["mlp", "unet"])
def test_a_few_steps_fit_a_few_examples(net, z):
    t = jnp.linspace(-5.0, 5.0, 5)
    target = jnp.roll(z, 1, axis=-1) * jnp.tanh(t)[:, None, None, None]
    optimiser = optax.adam(1e-2)

    def loss(net):
        return jnp.mean(jnp.square(batched(net, z, t, FIVE) - target))

    def step(carry, _):
        net, state = carry
        value, grads = jax.value_and_grad(loss)(net)
        updates, state = optimiser.update(grads, state)
        return (optax.apply_updates(net, updates), state), value

    with jax.numpy_dtype_promotion("standard"):  # optax.adam raises a float to an integer power
        losses = jax.jit(lambda net: jax.lax.scan(step, (net, optimiser.init(net)), length=100)[1])(net)
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UNET(jnp.ones((2, 8, 7)), jnp.array(0.0)), r"divisible by 2; got \(8, 7\)"),
        (lambda: UNET(jnp.ones((3, 8, 8)), jnp.array(0.0)), r"shape \(2, h, w\); got \(3, 8, 8\)"),
        (lambda: UNET(jnp.ones((4, 2, 8, 8)), jnp.array(0.0)), r"do jax.vmap"),
        (lambda: MLP_NET(jnp.ones(2), jnp.array(0.0)), r"shape \(2, 4, 8\); got \(2,\)"),
        (lambda: MLP((2,), key=jr.key(0))(jnp.ones(2), jnp.array(0.0), jnp.array(1)), r"do num_classes=n"),
        (lambda: MLP((2,), num_classes=0, key=jr.key(0)), r"at least 1; got 0"),
        (
            lambda: eqx.filter_eval_shape(lambda: UNet(1, width=6, heads=5, key=jr.key(0))),
            r"divide 12 channels; got 5",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
