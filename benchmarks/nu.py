"""Where shall the instant loss take its nu from, at equal compute?

    python benchmarks/nu.py runs/digits docs/results/nu.json [VARIANT ...]

takes the teacher of a finished run (`make distill`), distils it by Algorithm 3 for 500 updates at what 512
examples cost, in halves, with an estimated Lambda and a first moment (the best of `instant.py`), and prints one table:
the Frechet distance of 5,000 samples in 8 steps to the data, on pixels. An example costs 4 forward passes for nu (the
student's, the teacher's gradient), 6 for what it is used on (the student's gradient, the teacher's value and tangent),
and 3 more for equation (10).

    halves          as `momentax.instant` does
    more for nu     448 examples for nu, 128 for the rest;  `less for nu` 128 and 341
    averaged        nu is the moving mean of the last 10 or 100 updates'
    equation (10)   the teacher's gradient on data, noised likewise, is subtracted
    own weight      nu under the weight that the teacher was trained with, the rest flat
    own Lambda      Lambda estimated from the loss that the teacher was trained with
    Adam's          Lambda of the optimiser's state after three hundred more updates on that loss, at rate 0
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from _measure import record

import momentax as mm
from momentax._judge import dot, predictions, weights
from momentax.recipes._batches import batches
from momentax.recipes._data import load
from momentax.recipes._evaluation import distances, draw
from momentax.recipes._folder import Folder
from momentax.recipes._teacher import network

UPDATES, RATE = 500, 2e-4


@dataclasses.dataclass(frozen=True)
class Variant:
    """How many examples are for nu and for the rest, how long nu is averaged, and what it is the gradient of."""

    of_nu: int = 256
    of_rest: int = 256
    memory: float = 0.0
    minus_data: bool = False
    weight: Any = mm.flat_weight
    precond: str = "estimated"


VARIANTS = {
    "halves": Variant(),
    "more for nu": Variant(448, 128),
    "less for nu": Variant(128, 341),
    "averaged, 10": Variant(memory=0.9),
    "averaged, 100": Variant(memory=0.99),
    "equation (10)": Variant(197, 197, minus_data=True),
    "own weight": Variant(weight=mm.v_weight),
    "own Lambda": Variant(precond="own"),
    "Adam's": Variant(precond="adam"),
    "identity": Variant(precond="identity"),
}
SCHEDULE = mm.CosineSchedule()
ROLLOUT = mm.Rollout(SCHEDULE)


def error(teacher, drawn, weight):
    """The teacher's loss on a draw, and how it is weighed."""
    x_hat = predictions(teacher, drawn)
    return jnp.mean(weights(weight, drawn, x_hat) * jnp.sum((drawn.x - x_hat) ** 2, axis=(1, 2, 3)))


def nu_of(teacher, student, variant, x, key, cond):
    """The teacher's gradient on what the student makes of the examples, less that on the examples."""
    drawn = jax.lax.stop_gradient(ROLLOUT(student, x, key, cond))
    gradient = eqx.filter_grad(error)(teacher, drawn, variant.weight)
    if not variant.minus_data:
        return gradient
    real = mm.Forward(SCHEDULE)(x, jax.random.fold_in(key, 1), cond)
    return jax.tree.map(jnp.subtract, gradient, eqx.filter_grad(error)(teacher, real, variant.weight))


def value_of(student, teacher, nu, x, key, cond):
    """Algorithm 3's value with its sign restored, for a given nu."""
    drawn = ROLLOUT(student, x, key, cond)
    moving, fixed = eqx.partition(teacher, eqx.is_inexact_array)
    target, tangent = jax.jvp(lambda moving: predictions(eqx.combine(moving, fixed), drawn), (moving,), (nu,))
    target, tangent = jax.lax.stop_gradient((target, tangent))
    return jnp.mean(dot(target - drawn.x, tangent))


@eqx.filter_jit
def update(teacher, precond, student, state, mean, optimizer, variant, x, key, cond):
    """Moves the student; `mean` is the moving one of nu, without the bias of its start."""
    keys, n = jax.random.split(key), variant.of_nu
    first, second = (jax.tree.map(lambda leaf, own=own: leaf[own], (x, cond)) for own in (slice(n), slice(n, None)))
    total, count = mean
    nu = precond(nu_of(teacher, student, variant, first[0], keys[0], first[1]))
    total = jax.tree.map(lambda old, new: variant.memory * old + (1 - variant.memory) * new, total, nu)
    count = variant.memory * count + (1 - variant.memory)
    nu = jax.tree.map(lambda leaf: leaf / count, total)
    grads = eqx.filter_grad(value_of)(student, teacher, nu, second[0], keys[1], second[1])
    changes, state = optimizer.update(grads, state)
    return eqx.apply_updates(student, changes), state, (total, count)


def preconditioner(kind, teacher, examples, key):
    """Lambda, of the teacher's loss on data."""
    if kind == "identity":
        return mm.identity
    loss = mm.denoising_loss(schedule=SCHEDULE, weight=mm.flat_weight if kind == "estimated" else mm.v_weight)
    if kind != "adam":
        return mm.estimate_preconditioner(loss, teacher, (next(examples) for _ in range(100)), key)
    adam = optax.scale_by_adam()
    state = adam.init(eqx.filter(teacher, eqx.is_inexact_array))
    step = eqx.filter_jit(
        lambda state, x, key, cond: adam.update(mm.value_and_grad(loss)(teacher, x, key, cond)[1], state)
    )
    for n in range(300):
        x, cond = next(examples)
        _, state = step(state, x, jax.random.fold_in(key, n), cond)
    return mm.adam_preconditioner(state)


def distilled(dataset, teacher, variant):
    """A student after the updates."""
    key = jax.random.key(0)
    examples = batches(dataset, variant.of_nu + variant.of_rest, 1, hidden=0.0)
    precond = preconditioner(variant.precond, teacher, examples, key)
    optimizer = mm.paper_optimizer(RATE, UPDATES, warmup=100, b1=0.9)
    student, moving = teacher, eqx.filter(teacher, eqx.is_inexact_array)
    state, mean = optimizer.init(moving), (jax.tree.map(jnp.zeros_like, moving), jnp.zeros(()))
    for n in range(UPDATES):
        x, cond = next(examples)
        told = (optimizer, variant, x, jax.random.fold_in(key, n), cond)
        student, state, mean = update(teacher, precond, student, state, mean, *told)
    examples.close()
    return student


def main(source: str, target: str, *names: str) -> None:
    """Prints the table row by row and writes it, with what made it."""
    dataset, rows = load("digits"), {}
    teacher = Folder(Path(source)).read_weights("teacher.eqx", network(dataset, jax.random.key(0)))
    for name in names or VARIANTS:
        student = distilled(dataset, teacher, VARIANTS[name])
        samples = draw(student, 8, "cosine", mm.conditional_posterior, dataset, 5000, 0)
        rows[name] = round(distances(samples, dataset)["frechet_distance"], 4)
        print(f"{name:<16}{rows[name]:>8.3f}", flush=True)
        record(target, " ".join(["nu.py", source, target, *names]), seed=0, updates=UPDATES, frechet_distance=rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
