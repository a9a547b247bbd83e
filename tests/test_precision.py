"""Half precision and recomputation: what they change in a loss's gradient on a trained network, and what not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import cast
from sklearn.datasets import load_digits

import momentax as mm

SCHEDULE = mm.CosineSchedule()
OPTIMIZER = optax.adam(2e-3)
KEYS = [jax.random.key(seed) for seed in range(5, 9)]


def build(dtype, remat=False):
    net = mm.nn.DiT(
        (1, 8, 8), width=32, depth=2, heads=2, num_classes=10, dtype=dtype, remat=remat, key=jax.random.key(0)
    )
    return mm.Denoiser(net)


def rebuilt(model, dtype, remat=False):
    """The same weights in a network that computes otherwise."""
    shapes = eqx.filter_eval_shape(lambda: build(dtype, remat))
    like, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    return eqx.combine(
        jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(eqx.filter(model, eqx.is_array))), static
    )


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return jnp.asarray(images.reshape(-1, 1, 8, 8) / 8 - 1, jnp.float32), jnp.asarray(labels, jnp.int32)


@pytest.fixture(scope="module")
def players(digits):
    """A teacher, and an auxiliary and a student that have moved on from it; all in float32."""
    x, label = digits

    @eqx.filter_jit
    def update(model, state, key):
        chosen = jax.random.randint(key, (64,), 0, len(x))
        loss = mm.denoising_loss(weight=mm.v_weight, schedule=SCHEDULE)
        grads = eqx.filter_grad(loss)(model, x[chosen], key, label[chosen])
        changes, state = OPTIMIZER.update(grads, state)
        return eqx.apply_updates(model, changes), state

    def trained(model, key, updates):
        state = OPTIMIZER.init(eqx.filter(model, eqx.is_array))
        for n in range(updates):
            model, state = update(model, state, jax.random.fold_in(key, n))
        return model

    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        teacher = trained(cast(build(None), jnp.float32), jax.random.key(1), 300)
        return teacher, *(trained(teacher, jax.random.key(n), 20) for n in (2, 3))


@eqx.filter_jit
def gradients(players, x, label, key, wrap=lambda loss: loss):
    """Of every loss, in values and gradients."""
    teacher, aux, student = players
    settings = {"rollout": mm.Rollout(SCHEDULE), "weight": mm.flat_weight}
    losses = [
        (mm.denoising_loss(schedule=SCHEDULE, weight=mm.flat_weight), teacher),
        (mm.student_loss(teacher, aux, **settings), student),
        (mm.aux_loss(teacher, student, **settings), aux),
        (mm.instant(teacher, **settings), student),
    ]
    return [eqx.filter_value_and_grad(wrap(loss))(model, x, key, label) for loss, model in losses]


def distances(ours, theirs):
    """Of gradients, relative to theirs."""
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
        yield float(optax.tree.norm([p - q for p, q in pairs]) / optax.tree.norm([q for _, q in pairs]))


@pytest.fixture(scope="module")
def whole(players, digits):
    x, label = digits
    return [gradients(players, x[:256], label[:256], key) for key in KEYS]


@pytest.mark.slow
def test_half_precision_layers_give_the_gradient_to_two_per_cent(players, digits, whole):
    """On average over batches: activations of eight bits, 0.4% each, in some ten layers one after the other."""
    x, label = digits
    # JAX itself multiplies float32 by bfloat16 in the gradient of its attention, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        models = [rebuilt(model, jnp.bfloat16) for model in players]
        halved = [gradients(models, x[:256], label[:256], key) for key in KEYS]
    found = np.mean([list(distances(*pair)) for pair in zip(halved, whole, strict=True)], axis=0)
    assert np.all(found < 0.02), found
    assert np.all(found > 1e-4)  # not the same program
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(halved))


@pytest.mark.slow
def test_recomputation_gives_the_same_gradient(players, digits, whole):
    """Of each block, and of each whole loss: forward mode inside, too; some roundings of float32 differ."""
    x, label = digits
    models = [rebuilt(model, None, True) for model in players]
    again = gradients(models, x[:256], label[:256], KEYS[0], wrap=eqx.filter_checkpoint)
    assert max(distances(again, whole[0])) < 1e-4
