"""Numbers that no training changes: no optimiser takes them, and every file has them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import momentax
from momentax import checkpoint
from momentax._fixed import Fixed, fix, values
from momentax.interop import load_safetensors, save_safetensors
from momentax.interop._reader import Reader
from momentax.interop._tensors import Tensors
from momentax.interop._unet_weights import _UNetReader
from momentax.nn import FourierFeatures, Text
from momentax.nn._embedding import Embedding

OPTIMIZER = optax.adamw(1e-2, weight_decay=0.1)


class Net(eqx.Module):
    """Text, image and time in a few products, with the time in Fourier features."""

    embedding: Embedding

    def __call__(self, z, t, cond):
        tokens = self.embedding.outer.weight @ cond.embeddings.T
        return z * self.embedding(jnp.exp(-t)).sum() + jnp.tanh(tokens.sum())


def net(seed=0):
    features_key, key = jr.split(jr.key(seed))
    return Net(Embedding(4, features=FourierFeatures(6, key=features_key), key=key))


def frequencies(embedding):
    features = embedding.features
    assert isinstance(features, FourierFeatures)
    return np.asarray(features.weight.value)


def null():
    return Text(jnp.asarray([[0.1, -0.3, 2.0, 1.0]]), jnp.asarray([True]))


def updated(model, count):
    """After so many updates of AdamW, whose decay moves whatever it is given."""

    @eqx.filter_jit
    def update(model, state):
        grads = eqx.filter_grad(lambda model: (model(jnp.ones(2), jnp.asarray(1.0), null()) ** 2).sum())(model)
        changes, state = OPTIMIZER.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, changes), state

    state = OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(count):
        model, state = update(model, state)
    return model


@pytest.fixture(scope="module")
def moved():
    """A guided network before and after 20 updates."""
    before = momentax.guided(momentax.Denoiser(net(), momentax.predict_x), 1.5, null())
    # Optax itself adds an integer to a number of its own, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        return before, updated(before, 20)


def test_decay_moves_a_network_and_not_its_fourier_frequencies(moved):
    before, after = (model.denoiser.net.embedding for model in moved)
    assert frequencies(after).tobytes() == frequencies(before).tobytes()
    assert not jnp.allclose(after.inner.weight, before.inner.weight, rtol=1e-2)


def test_decay_does_not_move_the_text_of_guidance(moved):
    for model in moved:
        assert eqx.tree_equal(values(model.null), null())


def test_fourier_frequencies_are_stored_with_the_network(tmp_path):
    """Another key's network becomes the one that was stored, its frequencies included."""
    first, other = net(0), net(1)
    assert not np.array_equal(frequencies(first.embedding), frequencies(other.embedding))
    save_safetensors(tmp_path / "net.safetensors", first)
    eqx.tree_serialise_leaves(tmp_path / "net.eqx", first)
    checkpoint.save(tmp_path / "saved", 1, first).wait()
    restored = [
        load_safetensors(tmp_path / "net.safetensors", eqx.filter_eval_shape(net)),
        load_safetensors(tmp_path / "net.safetensors", other),
        eqx.tree_deserialise_leaves(tmp_path / "net.eqx", other),
        checkpoint.restore(tmp_path / "saved", other).tree,
    ]
    assert all(eqx.tree_equal(back, first) for back in restored)


def test_trained_frequencies_of_a_former_file_are_refused(tmp_path):
    """They were floating-point numbers there, which decay may have changed."""
    former = eqx.tree_at(lambda net: net.embedding.features.weight.bits, net(), jnp.ones(3))
    eqx.tree_serialise_leaves(tmp_path / "net.eqx", former)
    with pytest.raises(RuntimeError, match="dtype"):
        eqx.tree_deserialise_leaves(tmp_path / "net.eqx", net())


def test_imported_fourier_frequencies_are_those_of_the_file():
    stored = np.asarray([16.25, -3.0e-4, 40.125], np.float16)
    weight, bias = np.ones((4, 6), np.float32), np.zeros(4, np.float32)
    arrays = {"time_proj.weight": stored, "time_embedding.linear_1.weight": weight}
    arrays |= {"time_embedding.linear_2.weight": weight[:, :4]}
    arrays |= {f"time_embedding.linear_{i}.bias": bias for i in (1, 2)}
    for like in (net().embedding, eqx.filter_eval_shape(net).embedding):
        reader = _UNetReader(Reader(Tensors(arrays, "a file")), False)
        found = frequencies(reader.embedding(like))
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, stored)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_what_is_fixed_keeps_every_bit(dtype):
    numbers = jnp.asarray([0.0, -0.0, jnp.nan, -jnp.inf, 1e-7, 3.0], dtype)
    tree = {"text": numbers, "label": jnp.asarray(3), "size": 2}
    fixed = fix(tree)
    assert isinstance(fixed["text"], Fixed)
    assert not jax.tree.leaves(eqx.filter(fixed, eqx.is_inexact_array))
    back = values(fixed)
    assert back["text"].dtype == dtype
    assert np.asarray(back["text"]).tobytes() == np.asarray(numbers).tobytes()
    assert (back["label"], back["size"]) == (3, 2)
