"""A run of a few parameters that saves after every update: `python run.py folder updates`."""

import sys

import jax
import jax.numpy as jnp

from momentax import checkpoint


@jax.jit
def update(state):
    """One noisy step towards zero, and the loss before it."""
    key, now = jax.random.split(state["key"])
    grads = state["weight"] + jax.random.normal(now, (5,), jnp.float32)
    weight = state["weight"] - jnp.float32(0.1) * grads
    return {"weight": weight, "count": state["count"] + 1, "key": key}, jnp.sum(state["weight"] ** 2)


def initial():
    """The state before the first update."""
    return {"weight": jnp.ones(5, jnp.float32), "count": jnp.zeros((), jnp.int32), "key": jax.random.key(3)}


def train(folder, updates):
    """Goes on from what is in the folder, to a number of updates."""
    state, start = initial(), 0
    if checkpoint.latest(folder) is not None:
        state, start, _, _ = checkpoint.restore(folder, state)
    checkpoint.cut_losses(folder, start)
    saving = None
    for n in range(start, updates):
        state, loss = update(state)
        checkpoint.append_losses(folder, n, {"student": float(loss)})
        saving = checkpoint.save(folder, n + 1, state, notes={"losses": n + 1})
    if saving is not None:
        saving.wait()


if __name__ == "__main__":
    print("ready", flush=True)
    train(sys.argv[1], int(sys.argv[2]))
