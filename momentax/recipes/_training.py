"""Training: one update for every player, batches, and the loops of the two algorithms."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

import momentax as mm

from ._data import Dataset
from ._progress import Progress
from ._settings import KERNELS, SCHEDULES, TANGENTS, WEIGHTS, Run

Curves = dict[str, list[float]]


def distill(config: Run, dataset: Dataset, teacher: Any, key: PRNGKeyArray) -> tuple[mm.Denoiser, Curves]:
    """A student of the teacher, by the configured algorithm, from the teacher's own weights."""
    rollout = mm.Rollout(SCHEDULES[config.schedule](), config.k, KERNELS[config.kernel])
    settings = {"rollout": rollout, "weight": WEIGHTS[config.weight]}
    examples = batches(dataset, config.batch, config.seed + 1, hidden=0.0)
    run = _alternating if config.algorithm == "alternating" else _instant
    return run(config, settings, guide(config, dataset, teacher), teacher, examples, key)


def guide(config: Run, dataset: Dataset, teacher: Any) -> Any:
    """The teacher as it is matched and sampled: with guidance, where there is any; no class is the one after all."""
    return mm.guided(teacher, config.guidance, jnp.asarray(dataset.num_classes)) if config.guidance else teacher


def _alternating(config: Run, settings: Any, guided: Any, teacher: mm.Denoiser, examples, key):
    turns = -(-config.updates // 2)
    optimizer = mm.paper_optimizer(config.learning_rate, turns, warmup=_warmup(turns))
    student = aux = teacher
    student_state = aux_state = initial_state(optimizer, teacher)
    update, progress = updating(optimizer), Progress("alternating", config.updates)
    for n in progress:
        (x, cond), key_n = next(examples), jax.random.fold_in(key, n)
        losses = mm.moment_match(guided, student, aux, **settings)
        if n % 2 == 0:
            aux, aux_state, value = update(losses.aux, aux, aux_state, x, key_n, cond)
            progress.record(auxiliary=value)
        else:
            student, student_state, value = update(losses.student, student, student_state, x, key_n, cond)
            progress.record(student=value)
    return student, progress.losses


def _instant(config: Run, settings: Any, guided: Any, teacher: mm.Denoiser, examples, key):
    optimizer = mm.paper_optimizer(config.learning_rate, config.updates, warmup=_warmup(config.updates), b1=0.9)
    precond, student = _precond(config, guided, examples, key), teacher
    loss = mm.instant(guided, precond, tangent=TANGENTS[config.tangent], **settings)
    state, update, progress = (
        initial_state(optimizer, teacher),
        updating(optimizer),
        Progress("instant", config.updates),
    )
    for n in progress:
        x, cond = next(examples)
        student, state, value = update(loss, student, state, x, jax.random.fold_in(key, n), cond)
        progress.record(student=value)
    return student, progress.losses


def _precond(config: Run, guided: Any, examples: Any, key: PRNGKeyArray) -> mm.Diagonal:
    loss = mm.denoising_loss(schedule=SCHEDULES[config.schedule](), weight=WEIGHTS[config.weight])
    return mm.estimate_preconditioner(loss, guided, (next(examples) for _ in range(100)), key)


def _warmup(updates: int) -> int:
    return min(1000, updates // 10)


def initial_state(optimizer: optax.GradientTransformation, model: Any) -> optax.OptState:
    """The optimiser's state for the model's floating-point arrays."""
    return optimizer.init(eqx.filter(model, eqx.is_inexact_array))


def updating(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """One update of any player under any loss, `(loss, model, opt_state, x, key, cond)`, to its next and the value."""

    @eqx.filter_jit
    def update(loss, model, opt_state, x, key, cond):
        value, grads = mm.value_and_grad(loss)(model, x, key, cond)
        changes, opt_state = optimizer.update(grads, opt_state)
        return eqx.apply_updates(model, changes), opt_state, value

    return update


def batches(
    dataset: Dataset, size: int, seed: int, *, hidden: float
) -> Iterator[tuple[Float[Array, "n *x"], Int[Array, " n"] | None]]:
    """Examples drawn with replacement, for ever; a share `hidden` of their labels is the one of no class."""
    rng = np.random.default_rng(seed)
    while True:
        chosen = rng.integers(0, len(dataset.x), size)
        if dataset.y is None:
            yield jnp.asarray(dataset.x[chosen]), None
        else:
            labels = np.where(rng.random(size) < hidden, dataset.num_classes, dataset.y[chosen])
            yield jnp.asarray(dataset.x[chosen]), jnp.asarray(labels)
