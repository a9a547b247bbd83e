"""A small classifier of the data's own classes: what it sees of an image, and which class it takes it for."""

import contextlib
import dataclasses
import hashlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float32, Int, PRNGKeyArray

from ._data import Dataset
from ._folder import Folder
from ._key import key_of
from ._progress import parts
from ._state import player, updating
from ._teacher import identity

WIDTH = 128
_UPDATES, _BATCH, _RATE, _SEED = 1500, 128, 1e-3, 0


class Classifier(eqx.Module):
    """Three convolutions, `WIDTH` numbers of mean zero and variance one, and the classes' logits, linear in these."""

    convolutions: tuple[eqx.nn.Conv2d, ...]
    hidden: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self, shape: tuple[int, ...], num_classes: int, key: PRNGKeyArray):
        keys, widths = jax.random.split(key, 5), (shape[0], 16, 32, 64)
        self.convolutions = tuple(
            eqx.nn.Conv2d(widths[i], widths[i + 1], 3, max(1, 2 * (i > 0)), 1, dtype=jnp.float32, key=keys[i])
            for i in range(3)
        )
        seen = 64 * -(-shape[1] // 4) * -(-shape[2] // 4)
        self.hidden = eqx.nn.Linear(seen, WIDTH, dtype=jnp.float32, key=keys[3])
        self.norm = eqx.nn.LayerNorm(WIDTH, use_weight=False, use_bias=False)
        self.last = eqx.nn.Linear(WIDTH, num_classes, dtype=jnp.float32, key=keys[4])

    def features(self, x: Float32[Array, "c h w"]) -> Float32[Array, "d"]:
        """What the logits are made of."""
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        return self.norm(self.hidden(x.reshape(-1)))

    def __call__(self, x: Float32[Array, "c h w"]) -> Float32[Array, "classes"]:
        return self.last(self.features(x))


def taught(dataset: Dataset, test: Dataset | None, folder: Folder) -> tuple[Classifier, dict[str, Any]]:
    """The data's classifier and what there is to tell of it; trained at the first time, afterwards the folder's.

    It depends on the data alone: runs of several seeds have the same. Its accuracy is that on the test split; of data
    without one a fifth is held back.

    Raises:
        ValueError: for data without labels.
    """
    if dataset.y is None:
        raise ValueError(f"needs labels for --features classifier; got {dataset.name} without; do take other features")
    train, test = _held_back(dataset) if test is None else (dataset, test)
    recipe = f"{identity(train)} {_UPDATES} {_BATCH} {_RATE} {_SEED}"
    name = f"classifier-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.eqx"
    model = Classifier(train.x.shape[1:], train.num_classes, key_of(_SEED))
    if folder.has(name):
        model = folder.read_weights(name, model)
    else:
        model = _trained(model, train)
        folder.write_weights(name, model)
    told = {"file": name, "trained_on": len(train.x), "tested_on": len(test.x)}
    return model, told | {"accuracy": accuracy(model, test)}


def accuracy(model: Classifier, test: Dataset) -> float:
    """The share of the images that it takes for what they are."""
    logits = [_logits(model, jnp.asarray(test.x[start : start + 500])) for start in range(0, len(test.x), 500)]
    return float(np.mean(np.concatenate(logits).argmax(1) == test.y))


def _held_back(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Four fifths to train on and one to test."""
    order = np.random.default_rng(_SEED).permutation(len(dataset.x))
    fifth = len(order) // 5
    return _part(dataset, order[fifth:]), _part(dataset, order[:fifth])


def _part(dataset: Dataset, rows: Int[np.ndarray, " n"]) -> Dataset:
    labels = None if dataset.y is None else dataset.y[rows]
    return dataclasses.replace(dataset, x=dataset.x[rows], y=labels)


def _trained(model: Classifier, dataset: Dataset) -> Classifier:
    from ._batches import batches  # Grain, which the help of the command can do without.

    optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, _UPDATES))
    state, update, key = player(model, optimizer), updating(optimizer), key_of(_SEED)
    with contextlib.closing(batches(dataset, _BATCH, _SEED, hidden=0.0)) as examples:
        for _ in parts(range(_UPDATES), f"a classifier of {dataset.name}"):
            x, labels = next(examples)
            state, _ = update(_cross_entropy, state, x, key, labels)
    return state.model


def _cross_entropy(
    model: Classifier, x: Float32[Array, "n c h w"], key: PRNGKeyArray, labels: Int[Array, " n"]
) -> Float32[Array, ""]:
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), labels).mean()


@eqx.filter_jit
def _logits(model: Classifier, x: Float32[Array, "n c h w"]) -> Float32[Array, "n classes"]:
    return jax.vmap(model)(x)
