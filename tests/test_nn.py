"""The networks are smooth functions of one example, of the log-SNR and of the class, at any precision."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import cast, perturbed

from momentax.nn import MLP, DiT, UNet, UViT
from momentax.nn._embedding import Embedding

SHAPE = (2, 4, 8)
FIVE = jnp.zeros(5, int)
BUILDERS = {
    "mlp": lambda key: MLP(SHAPE, width=16, num_classes=3, key=key),
    "unet": lambda key: UNet(2, width=8, multipliers=(1, 2), blocks=1, num_classes=3, key=key),
    "uvit": lambda key: UViT(2, width=8, depth=1, heads=2, num_classes=3, key=key),
    "dit": lambda key: DiT(SHAPE, width=8, depth=1, heads=2, num_classes=3, key=key),
}


@pytest.fixture(scope="module", params=BUILDERS)
def untrained(request):
    # Programs that draw with this generator compile in a fifth of the time.
    return eqx.filter_jit(BUILDERS[request.param])(jr.key(0, impl="rbg"))


@pytest.fixture(scope="module")
def net(untrained):
    return perturbed(untrained, 1)


@pytest.fixture(scope="module")
def z():
    return jr.normal(jr.key(2), (5, *SHAPE))


@eqx.filter_jit
def batched(net, z, t, cond):
    return jax.vmap(net)(z, t, cond)


@eqx.filter_jit
def single(net, z, t, cond=None):
    return net(z, t, cond)


def test_a_batch_is_its_examples(net, z):
    t, cond = jnp.array([-9.0, 0.5, 7.0, 0.0, 2.0]), jnp.array([0, 2, 3, 1, 0])
    together = batched(net, z, t, cond)
    apart = jnp.stack([single(net, *example) for example in zip(z, t, cond, strict=True)])
    assert together.shape == z.shape
    # Sums of some hundred terms of order one, in another order.
    assert jnp.allclose(together, apart, rtol=1e-11, atol=1e-11)


def test_forward_and_reverse_mode_agree_in_the_parameters(net, z):
    r"""$\langle u, J v \rangle = \langle J^\top u, v \rangle$, whether the batch is taken before or after."""
    params, rest = eqx.partition(net, eqx.is_array)

    @jax.jit
    def products(net, v, u, t):
        def batch(net):
            return jax.vmap(eqx.combine(net, rest))(z, t, FIVE)

        def tangent(*example):
            return jax.jvp(lambda net: eqx.combine(net, rest)(*example), (net,), (v,))[1]

        before, after = jax.jvp(batch, (net,), (v,))[1], jax.vmap(tangent)(z, t, FIVE)
        reverse = jax.grad(lambda net: jnp.vdot(u, batch(net)))(net)
        return jnp.array([jnp.vdot(u, before), jnp.vdot(u, after), optax.tree.vdot(reverse, v)])

    found = products(params, perturbed(params, 3), jr.normal(jr.key(4), z.shape), jnp.linspace(-9.0, 9.0, 5))
    assert jnp.abs(found).min() > 1e-3
    # The attention's softmax is in float32: some hundred roundings of 6e-8.
    assert jnp.allclose(found, found[0], rtol=1e-5)


@given(t=st.floats(-20.0, 20.0))
def test_the_derivative_in_logsnr_is_that_of_a_central_difference(net, t):
    slope, difference = slopes(net, jnp.ones(SHAPE), jnp.array(t), 1e-3)
    assert jnp.isfinite(slope).all()
    # The truncation is h^2 / 6 = 2e-7 of a third derivative, the rounding of a float32 softmax 6e-8 / h = 6e-5.
    assert jnp.allclose(slope, difference, rtol=1e-3, atol=3e-4)


@eqx.filter_jit
def slopes(net, z, t, h):
    slope = jax.jvp(lambda t: net(z, t), (t,), (jnp.ones_like(t),))[1]
    return slope, (net(z, t + h) - net(z, t - h)) / (2 * h)


def test_the_class_matters_and_no_class_is_the_last_row(net, z):
    t = jnp.ones(5)
    outputs = batched(net, jnp.broadcast_to(z[0], z.shape), t, jnp.array([0, 1, 2, 3, 0]))
    assert (jnp.abs(jnp.diff(outputs, axis=0)).max((1, 2, 3)) > 1e-3).all()
    # One example may be summed in another order than five.
    assert jnp.allclose(single(net, z[0], t[0]), outputs[3], rtol=1e-11, atol=1e-11)


def test_the_logsnr_matters_over_the_whole_range(net, z):
    outputs = batched(net, jnp.broadcast_to(z[0], z.shape), jnp.array([-20.0, -15.0, 0.0, 15.0, 20.0]), FIVE)
    assert jnp.isfinite(outputs).all()
    assert (jnp.abs(jnp.diff(outputs, axis=0)).max((1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize("z_dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_parameters_decide_the_precision(net, dtype, z_dtype):
    net = cast(net, dtype)
    z, t, cond = jnp.ones(SHAPE, z_dtype), jnp.ones((), z_dtype), jnp.array(1, jnp.int32)
    assert eqx.filter_eval_shape(net, z, t, cond).dtype == dtype


def test_single_precision_is_close_to_double(net, z):
    t = jnp.linspace(-20.0, 20.0, 5)
    low = batched(cast(net, jnp.float32), cast(z, jnp.float32), cast(t, jnp.float32), FIVE)
    # Some twenty layers with roundings of 1e-7, and angles of 40 radians.
    assert jnp.allclose(low.astype(jnp.float64), batched(net, z, t, FIVE), rtol=1e-3, atol=1e-3)


def test_an_mlp_takes_examples_of_any_rank():
    for shape in [(), (2,), (1, 2, 3, 4)]:
        net = eqx.filter_eval_shape(lambda shape=shape: MLP(shape, width=4, key=jr.key(0)))
        assert eqx.filter_eval_shape(net, jnp.ones(shape), jnp.array(0.0)).shape == shape


def test_every_array_is_of_floating_point(net):
    assert all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(eqx.filter(net, eqx.is_array)))


def test_a_few_steps_fit_a_few_examples(untrained, z):
    t = jnp.linspace(-5.0, 5.0, 5)
    target = jnp.roll(z, 1, axis=-1) * jnp.tanh(t)[:, None, None, None]
    optimiser = optax.adam(1e-2)
    params, rest = eqx.partition(untrained, eqx.is_array)

    def loss(net):
        return jnp.mean(jnp.square(jax.vmap(eqx.combine(net, rest))(z, t, FIVE) - target))

    def step(carry, _):
        net, state = carry
        value, grads = jax.value_and_grad(loss)(net)
        updates, state = optimiser.update(grads, state)
        return (optax.apply_updates(net, updates), state), value

    with jax.numpy_dtype_promotion("standard"):  # optax.adam raises a float to an integer power
        losses = jax.jit(lambda net: jax.lax.scan(step, (net, optimiser.init(net)), length=100)[1])(params)
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MLP(SHAPE, key=jr.key(0))(jnp.ones(2), jnp.array(0.0)), r"shape \(2, 4, 8\); got \(2,\)"),
        (lambda: MLP((2,), key=jr.key(0))(jnp.ones(2), jnp.array(0.0), jnp.array(1)), r"with num_classes=n"),
        (lambda: MLP((2,), num_classes=0, key=jr.key(0)), r"num_classes as a whole number >= 1; got 0"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def unchecked(monkeypatch):
    """Types are not checked as the library runs, as users have it."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


ONE = r"^cond needs one integer label for each example, of shape \(\); got "
RANGE = r"^cond needs a label of 0\.\.3; got "
WRONG_LABELS = {
    "a column": (jnp.array([1]), ONE + r"int64 of shape \(1,\); pass y\[:, 0\]"),
    "one hot": (jnp.array([0, 1, 0]), ONE + r"int64 of shape \(3,\); pass y\.argmax\(-1\)"),
    "a float": (jnp.array(1.0), ONE + r"float64 of shape \(\); pass y\.astype\(int\)"),
    "a bool": (jnp.array(True), ONE + "bool of shape"),
    "a python float": (1.0, "^cond needs an integer label; got a float; pass"),
    "past the last": (jnp.array(4), RANGE + "4; number classes from 0"),
    "negative": (-1, RANGE + "-1; number"),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_what_is_no_label_is_told_with_its_shape_its_dtype_or_its_range(net, z, unchecked, name):
    """Before anything is computed; under a trace, too, all that a trace can know."""
    label, message = WRONG_LABELS[name]
    with pytest.raises(ValueError, match=message):
        net(z[0], jnp.array(1.0), label)
    if message.startswith(ONE):
        with pytest.raises(ValueError, match=message):
            eqx.filter_eval_shape(net, z[0], jnp.array(1.0), label)


@pytest.mark.parametrize("label", [4, -1, 10**6])
def test_a_label_of_no_row_that_only_the_program_sees_gives_no_number(net, z, label):
    """And does not pass for no class, which is the last row."""
    assert jnp.isnan(single(net, z[0], jnp.array(1.0), jnp.array(label))).all()


def test_a_label_may_be_a_byte_where_a_byte_does_not_hold_all_rows(unchecked):
    """Nor does their number wrap around to a row."""
    table = Embedding(4, 300, key=jr.key(0))
    for label in (jnp.array(200, jnp.uint8), jnp.array(100, jnp.int8), jnp.array(299, jnp.uint32)):
        expected = table(jnp.array(1.0), jnp.array(int(label)))
        assert jnp.array_equal(eqx.filter_jit(table)(jnp.array(1.0), label), expected)
    assert jnp.isnan(eqx.filter_jit(table)(jnp.array(1.0), jnp.array(2**32))).all()


def test_whole_numbers_of_any_kind_are_labels(net, z, unchecked):
    expected = net(z[0], jnp.array(1.0), jnp.array(2))
    for label in (2, np.int64(2), np.array(2, np.uint8), jnp.array(2, jnp.int16)):
        assert jnp.allclose(net(z[0], jnp.array(1.0), label), expected, rtol=1e-11, atol=1e-11)
