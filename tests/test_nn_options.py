"""Text, dropout, recomputation and half precision in the networks with a transformer."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from nets import cast, perturbed

from momentax.nn import DiT, Text, UViT
from momentax.nn._transformer import TransformerBlock, transform

Z, T = jr.normal(jr.key(2), (2, 4, 8)), jnp.array(0.3)


def uvit(depth=1, **options):
    """Attends to a text at every resolution."""

    def build():
        return UViT(2, width=8, depth=depth, heads=2, multiscale=True, **options, key=jr.key(0))

    return perturbed(eqx.filter_eval_shape(build), 1)


def dit(depth=1, **options):
    def build():
        return DiT((2, 4, 8), width=8, depth=depth, heads=2, **options, key=jr.key(0))

    return perturbed(eqx.filter_eval_shape(build), 1)


def drawn(seed):
    """A key of the generator whose programs compile in a fifth of the time."""
    return jr.key(seed, impl="rbg")


@eqx.filter_jit
def applied(net, z, t, cond=None, key=None):
    return net(z, t, cond, key=key)


both = pytest.mark.parametrize("build", [uvit, dit])
TEXT = jr.normal(jr.key(4), (5, 6))
MASK = jnp.array([True, True, False, True, False])


@both
def test_masked_tokens_do_not_matter_and_the_others_do(build):
    net = build(text_width=6)
    plain = applied(net, Z, T, Text(TEXT, MASK))
    assert jnp.array_equal(applied(net, Z, T, Text(TEXT.at[2].set(9.0), MASK)), plain)
    assert jnp.abs(applied(net, Z, T, Text(TEXT.at[1].set(9.0), MASK)) - plain).max() > 1e-3
    # The softmax is in single precision, over three tokens or over five.
    assert jnp.allclose(applied(net, Z, T, Text(TEXT[MASK])), plain, rtol=1e-5, atol=1e-5)


@both
def test_the_order_of_tokens_does_not_matter(build):
    net, order = build(text_width=6), jnp.array([3, 1, 4, 0, 2])
    turned = applied(net, Z, T, Text(TEXT[order], MASK[order]))
    assert jnp.allclose(turned, applied(net, Z, T, Text(TEXT, MASK)), rtol=1e-5, atol=1e-5)


@both
def test_no_text_is_the_learned_token(build):
    net = build(text_width=6)
    nothing = applied(net, Z, T)
    assert jnp.array_equal(nothing, applied(net, Z, T, Text(net.context.no_text)))
    assert jnp.abs(nothing - applied(net, Z, T, Text(TEXT, MASK))).max() > 1e-3


@both
def test_a_batch_of_texts_is_its_texts(build):
    net, texts = build(text_width=6), Text(jnp.stack([TEXT, -TEXT]), jnp.stack([MASK, ~MASK]))
    together = eqx.filter_jit(lambda net, texts: jax.vmap(lambda text: net(Z, T, text))(texts))(net, texts)
    apart = jnp.stack([applied(net, Z, T, Text(TEXT, MASK)), applied(net, Z, T, Text(-TEXT, ~MASK))])
    assert jnp.allclose(together, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "options"), [(uvit, {"text_width": 6}), (uvit, {"num_classes": 3}), (dit, {"text_width": 6})]
)
def test_no_parameter_is_without_effect(build, options):
    net = build(**options)
    cond = Text(TEXT, MASK) if "text_width" in options else jnp.array(1)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(net):
        return jnp.sum(Z * net(Z, T, cond)) + jnp.sum(Z * net(Z, T))

    for leaf in jax.tree.leaves(gradient(net)):
        assert jnp.abs(leaf).max() > 1e-6


@pytest.mark.parametrize("half", [0, 1], ids=["attention", "mlp"])
def test_dropout_changes_no_expectation(half):
    """With the other half's gate shut a block is linear in what is dropped."""
    block = perturbed(eqx.filter_eval_shape(lambda: TransformerBlock(8, 2, 4, dropout=0.25, key=jr.key(0))), 1)
    other = slice(8 * (2 + 3 * (1 - half)), 8 * (3 + 3 * (1 - half)))
    block = eqx.tree_at(lambda b: b.modulation.weight, block, block.modulation.weight.at[:, other].set(0))
    block = eqx.tree_at(lambda b: b.modulation.bias, block, block.modulation.bias.at[other].set(0))
    h, emb, keys = jr.normal(jr.key(2), (3, 8)), jnp.ones(4), jr.split(drawn(3), 4000)
    outputs = eqx.filter_jit(jax.vmap(lambda key: block(h, emb, key=key)))(keys)
    errors = outputs.mean(0) - eqx.nn.inference_mode(block)(h, emb)
    assert outputs.std(0).max() > 1e-3
    # Six standard errors.
    assert (jnp.abs(errors) < 6 * outputs.std(0) / 4000**0.5 + 1e-6).all()


@both
def test_dropout_is_decided_by_its_key(build):
    net = build(dropout=0.5)
    one, same, other = (applied(net, Z, T, key=drawn(seed)) for seed in (1, 1, 2))
    assert jnp.array_equal(one, same)
    assert jnp.abs(one - other).max() > 1e-3


def test_each_block_drops_by_a_key_of_its_own():
    block = perturbed(eqx.filter_eval_shape(lambda: TransformerBlock(8, 2, 4, dropout=0.5, key=jr.key(0))), 1)
    h, emb = jr.normal(jr.key(2), (3, 8)), jnp.ones(4)
    first, second = jr.split(drawn(1))
    found = transform((block, block), h, [emb, emb], None, remat=False, key=drawn(1))
    assert jnp.allclose(found, block(block(h, emb, key=first), emb, key=second), atol=1e-6)


@both
def test_dropout_is_off_in_inference_mode(build):
    net = eqx.nn.inference_mode(build(dropout=0.5))
    plain = applied(build(), Z, T)
    assert jnp.array_equal(applied(net, Z, T), plain)
    assert jnp.array_equal(applied(net, Z, T, key=drawn(1)), plain)


@both
def test_dropout_needs_a_key_and_no_dropout_none(build):
    with pytest.raises(RuntimeError, match="requires a key"):
        applied(build(dropout=0.5), Z, T)
    assert jnp.array_equal(applied(build(), Z, T, key=drawn(1)), applied(build(), Z, T))


@both
def test_recomputation_changes_neither_value_nor_gradient(build):
    @eqx.filter_jit
    def value_and_grad(net):
        loss = eqx.filter_value_and_grad(lambda net: jnp.sum(Z * net(Z, T, key=drawn(1))))
        value, grads = loss(net)
        return [value, *jax.tree.leaves(grads)]

    plain, again = (value_and_grad(build(dropout=0.5, remat=remat)) for remat in (False, True))
    for x, y in zip(plain, again, strict=True):
        assert jnp.allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("build", "blocks"), [(uvit, 4), (dit, 2)])
def test_every_block_is_recomputed(build, blocks):
    for remat in (False, True):
        program = str(jax.make_jaxpr(build(depth=2, remat=remat))(Z, T))
        assert len(re.findall(r"= (?:checkpoint|remat2?)\[", program)) == blocks * remat


@both
def test_half_precision_is_close_to_single_precision(build):
    args = Z.astype(jnp.float32), T.astype(jnp.float32), Text(TEXT.astype(jnp.float32), MASK)
    single, half = (applied(cast(build(text_width=6, dtype=dtype), jnp.float32), *args) for dtype in (None, "bfloat16"))
    assert single.dtype == half.dtype == jnp.float32
    miss = jnp.linalg.norm(half - single) / jnp.linalg.norm(single)
    # Some thirty roundings of up to 2^-9 that add up like noise are 1e-2; none at all would be a network without them.
    assert 1e-5 < miss < 3e-2


@pytest.mark.parametrize(("build", "single"), [(uvit, 2 + 4 + 1), (dit, 2 + 2 + 2)])
def test_half_precision_leaves_norms_softmax_embedding_and_output_in_single_precision(build, single):
    """Of the products the embedding's two, queries by keys of each attention, and the output's."""
    net = cast(build(text_width=6, dtype=jnp.bfloat16), jnp.float32)
    args = Z.astype(jnp.float32), T.astype(jnp.float32), Text(TEXT.astype(jnp.float32), MASK)
    program = str(jax.make_jaxpr(net)(*args))
    assert types(program, "exp") == types(program, "rsqrt") == ["f32"]
    products = re.findall(r":(\w+)\[[\d,]*\] = (?:dot_general|conv_general_dilated)", program)
    assert products.count("f32") == single
    assert set(products) == {"bf16", "f32"}
    assert products[-1] == "f32"


def types(program, name):
    return sorted(set(re.findall(rf":(\w+)\[[\d,]*\] = {name} ", program)))


@both
def test_half_precision_keeps_gradients_in_the_dtype_of_the_parameters(build):
    net = cast(build(num_classes=3, dtype=jnp.bfloat16), jnp.float32)
    z, t = Z.astype(jnp.float32), T.astype(jnp.float32)
    grads = eqx.filter_eval_shape(eqx.filter_grad(lambda net: jnp.sum(net(z, t))), net)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


@both
@pytest.mark.parametrize(
    ("options", "cond", "message"),
    [
        ({"num_classes": 3, "text_width": 6}, None, r"classes or text; got num_classes=3 and text_width=6"),
        ({"num_classes": 3}, Text(TEXT), r"network with text; got text_width=None"),
        ({}, jnp.array(1), r"network with classes; got num_classes=None"),
        ({"text_width": 6}, jnp.array(1), r"shape \(tokens, 6\); got"),
        ({"text_width": 7}, Text(TEXT), r"shape \(tokens, 7\); got \(5, 6\)"),
    ],
)
def test_mistakes_are_named(build, options, cond, message):
    with pytest.raises(ValueError, match=message):
        build(**options)(Z, T, cond)


@both
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (Text(TEXT[None]), r"embeddings of shape \(tokens, 6\); got \(1, 5, 6\); pass a momentax.nn.Text"),
        (Text(TEXT[:, :5]), r"embeddings of shape \(tokens, 6\); got \(5, 5\)"),
        (Text(TEXT, MASK[:4]), r"a mask of 5 bools; got bool of shape \(4,\)"),
        (Text(TEXT, MASK.astype(int)), r"a mask of 5 bools; got int64 of shape \(5,\); pass mask\.astype\(bool\)"),
    ],
)
def test_what_is_no_text_is_told_with_its_shape_or_its_dtype(build, text, message):
    with pytest.raises(ValueError, match=f"^cond needs {message}"):
        eqx.filter_eval_shape(build(text_width=6), Z, T, text)
