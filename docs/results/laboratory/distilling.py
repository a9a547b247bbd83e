"""Students of an exact denoiser, by both algorithms, with fresh data for every update."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from mixture import Mixture
from quadrature import SCHEDULE

import momentax as mm

BATCH = 512
RATE, AUX_RATE = 5e-4, 2e-3
CHUNK = 100


class Player(NamedTuple):
    """A network that moves, with its optimiser's state."""

    model: Any
    opt_state: Any


class Players(NamedTuple):
    """Who moves: `aux` is None for the instant loss."""

    student: Player
    aux: Player | None


class Algorithm(NamedTuple):
    """A round: how the losses are made from the players, and their updates, `turns` of the auxiliary's to one."""

    losses: Callable[[Players], mm.Losses]
    optimizer: optax.GradientTransformation
    aux_optimizer: optax.GradientTransformation | None
    turns: int
    batch: int


def alternating(teacher: Any, k: int, count: int, *, turns: int = 1, weight=mm.flat_weight) -> Algorithm:
    """Algorithm 2; of one turn, a round is two updates."""
    rollout = mm.Rollout(SCHEDULE, k)

    def losses(players: Players) -> mm.Losses:
        assert players.aux is not None
        return mm.moment_match(teacher, players.student.model, players.aux.model, rollout=rollout, weight=weight)

    return Algorithm(losses, _optimizer(RATE, count), _optimizer(AUX_RATE, turns * count), turns, BATCH)


def instant(teacher: Any, precond: Any, k: int, count: int) -> Algorithm:
    """Algorithm 3: a round is one update, of twice the batch, half of it for nu."""
    rollout = mm.Rollout(SCHEDULE, k)

    def losses(players: Players) -> mm.Losses:
        return mm.moment_match(teacher, players.student.model, precond=precond, rollout=rollout, weight=mm.flat_weight)

    return Algorithm(losses, _optimizer(RATE, count), None, 0, 2 * BATCH)


def estimated(teacher: Any, data: Mixture, key: PRNGKeyArray, batches: int = 100) -> mm.Diagonal:
    """Lambda, from batches of the data."""
    loss = mm.denoising_loss(schedule=SCHEDULE, weight=mm.flat_weight)
    drawn = (examples(data, jax.random.fold_in(key, i), BATCH) for i in range(batches))
    return mm.estimate_preconditioner(loss, teacher, drawn, key)


def players(student: Any, algorithm: Algorithm) -> Players:
    """Before the first round: both are the same network."""
    aux = None if algorithm.aux_optimizer is None else Player(student, algorithm.aux_optimizer.init(student))
    return Players(Player(student, algorithm.optimizer.init(student)), aux)


def rounds(
    algorithm: Algorithm, start: Players, data: Mixture, key: PRNGKeyArray, count: int
) -> Iterator[tuple[int, Players, float]]:
    """After every 100 rounds: how many there were, the players, the mean of the student's losses."""

    @eqx.filter_jit
    def chunk(players, data, key, first):
        def one(players, n):
            return _round(algorithm, players, data, jax.random.fold_in(key, n))

        players, values = jax.lax.scan(one, players, first + jnp.arange(CHUNK, dtype=jnp.int32))
        return players, jnp.mean(values)

    current = start
    for first in range(0, count, CHUNK):
        current, value = chunk(current, data, key, jnp.asarray(first, jnp.int32))
        yield first + CHUNK, current, float(value)


def readings(algorithm: Algorithm, players: Players, data: Mixture, key: PRNGKeyArray, count: int = 400):
    """The student's loss for players that rest: its mean over fresh batches, and that mean's standard error."""

    @eqx.filter_jit
    def values(players, data, key):
        loss = algorithm.losses(players).student
        keys = jax.random.split(key, count)
        return jax.lax.map(lambda key: loss(players.student.model, *_batch(data, key, algorithm.batch)), keys)

    found = values(players, data, key)
    return float(jnp.mean(found)), float(jnp.std(found, ddof=1) / count**0.5)


@eqx.filter_jit
def examples(data: Mixture, key: PRNGKeyArray, count: int) -> Float[Array, "n d"]:
    """So many samples of the data."""
    return jax.vmap(data.sample)(jax.random.split(key, count))


@eqx.filter_jit
def samples(model: Any, k: int, key: PRNGKeyArray, count: int) -> Float[Array, "n d"]:
    """So many samples of a two-dimensional model in k steps."""
    sample = mm.ancestral_sampler(model, k, schedule=SCHEDULE)
    return jax.vmap(lambda key: sample(key, (2,)))(jax.random.split(key, count))


def _round(algorithm: Algorithm, players: Players, data: Mixture, key: PRNGKeyArray):
    for_student, *for_aux = jax.random.split(key, 1 + algorithm.turns)
    for own in for_aux:
        draw = _batch(data, own, algorithm.batch)
        aux, _ = _updated(algorithm.aux_optimizer, algorithm.losses(players).aux, players.aux, draw)
        players = players._replace(aux=aux)
    draw = _batch(data, for_student, algorithm.batch)
    student, value = _updated(algorithm.optimizer, algorithm.losses(players).student, players.student, draw)
    return players._replace(student=student), value


def _updated(optimizer: Any, loss: Any, player: Any, draw: tuple[Any, Any]) -> tuple[Player, Float[Array, ""]]:
    value, grads = mm.value_and_grad(loss)(player.model, *draw)
    updates, opt_state = optimizer.update(grads, player.opt_state)
    return Player(eqx.apply_updates(player.model, updates), opt_state), value


def _optimizer(rate: float, count: int) -> optax.GradientTransformation:
    return mm.paper_optimizer(rate, count, warmup=count // 20, b1=0.9)


def _batch(data: Mixture, key: PRNGKeyArray, count: int):
    """Fresh data, and a key for its loss."""
    for_data, for_loss = jax.random.split(key)
    return examples(data, for_data, count), for_loss
