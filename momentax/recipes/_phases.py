"""What is trained: the teacher, then the student; each phase's players, losses, optimiser and data."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

import momentax as mm

from ._batches import batches
from ._data import Dataset
from ._presets import preset_of
from ._progress import parts
from ._settings import KERNELS, SCHEDULES, TANGENTS, WEIGHTS, Run
from ._state import State, player
from ._teacher import guide

Losses = Callable[[Any, State, str | None], dict[str, Any]]


class Phase(NamedTuple):
    """Players that move in turns, each under its loss and by its optimiser.

    `losses` are made for every update, of the guided teacher that stays, the state, and a mesh axis or none. `state` is
    before the first update; what `prepare` makes of it takes examples, and is not done again by a run that goes on.
    """

    name: str
    title: str
    updates: int
    batch: int
    turns: tuple[str, ...]
    losses: Losses
    optimizers: dict[str, optax.GradientTransformation]
    state: State
    examples: Any
    guided: Any = None
    micro_batches: int = 1
    prepare: Callable[[State, Iterator[Any]], State] | None = None

    def turn(self, n: int) -> str:
        """Whose update the nth is."""
        return self.turns[n % len(self.turns)]


def teaching(config: Run, dataset: Dataset, network: mm.Denoiser, key: PRNGKeyArray) -> Phase:
    """A teacher: unweighted loss on v under the cosine schedule, Adam, cosine decay, moving average of its weights.

    A tenth of the labels is hidden, for guidance.
    """
    preset, updates = preset_of(config, dataset), config.teacher_updates
    rate = optax.warmup_cosine_decay_schedule(0, preset.teacher_learning_rate, min(200, updates // 10), updates)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def losses(guided: Any, state: State, axis_name: str | None) -> dict[str, Any]:
        loss = mm.denoising_loss(schedule=mm.CosineSchedule(), weight=mm.v_weight, axis_name=axis_name)
        return {"teacher": loss}

    return Phase(
        "teacher",
        "teacher",
        updates,
        preset.teacher_batch,
        ("teacher",),
        losses,
        {"teacher": optimizer},
        State({"teacher": player(network, optimizer)}, key, average=network),
        batches(dataset, preset.teacher_batch, config.seed, hidden=0.1),
    )


def distillation(config: Run, dataset: Dataset, teacher: mm.Denoiser, key: PRNGKeyArray) -> Phase:
    """A student of the teacher, by the configured algorithm, from the teacher's own weights."""
    guided = guide(config, teacher)
    algorithm = {"alternating": _alternating, "joint": _joint, "instant": _instant}[config.algorithm]
    turns, losses, optimizers, state, prepare = algorithm(config, guided, teacher, key)
    return Phase(
        "distillation",
        config.algorithm,
        config.updates,
        config.batch,
        turns,
        losses,
        optimizers,
        state,
        batches(dataset, config.batch, config.seed + 1, hidden=0.0),
        guided,
        config.micro_batches,
        prepare,
    )


def _alternating(config: Run, guided: Any, teacher: mm.Denoiser, key: PRNGKeyArray) -> Any:
    optimizers = _of_both(config, -(-config.updates // 2))

    def losses(guided: Any, state: State, axis_name: str | None) -> dict[str, Any]:
        student, aux = (state.players[name].model for name in ("student", "auxiliary"))
        both = mm.moment_match(guided, student, aux, **_settings(config), axis_name=axis_name)
        return {"auxiliary": both.aux, "student": both.student}

    players = {name: player(teacher, optimizer) for name, optimizer in optimizers.items()}
    return ("auxiliary", "student"), losses, optimizers, State(players, key), None


def _joint(config: Run, guided: Any, teacher: mm.Denoiser, key: PRNGKeyArray) -> Any:
    optimizer = optax.partition(_of_both(config, config.updates), ("student", "auxiliary"))

    def losses(guided: Any, state: State, axis_name: str | None) -> dict[str, Any]:
        return {"student": mm.joint_loss(guided, **_settings(config), axis_name=axis_name)}

    state = State({"student": player((teacher, teacher), optimizer)}, key)
    return ("student",), losses, {"student": optimizer}, state, None


def _instant(config: Run, guided: Any, teacher: mm.Denoiser, key: PRNGKeyArray) -> Any:
    optimizer = _optimizer(config, config.learning_rate, config.updates)
    tangent = TANGENTS[config.tangent]

    def losses(guided: Any, state: State, axis_name: str | None) -> dict[str, Any]:
        loss = mm.instant(guided, state.precond, tangent=tangent, **_settings(config), axis_name=axis_name)
        return {"student": loss}

    def prepare(state: State, examples: Iterator[Any]) -> State:
        loss = mm.denoising_loss(schedule=SCHEDULES[config.schedule](), weight=WEIGHTS[config.weight])
        hundred = (jax.tree.map(jnp.asarray, next(examples)) for _ in parts(range(100), "the teacher's Lambda"))
        return state._replace(precond=mm.estimate_preconditioner(loss, guided, hundred, state.key))

    unknown = mm.Diagonal(eqx.filter(guided, eqx.is_inexact_array))
    state = State({"student": player(teacher, optimizer)}, key, precond=unknown)
    return ("student",), losses, {"student": optimizer}, state, prepare


def _settings(config: Run) -> dict[str, Any]:
    rollout = mm.Rollout(SCHEDULES[config.schedule](), config.k, KERNELS[config.kernel])
    return {"rollout": rollout, "weight": WEIGHTS[config.weight]}


def _of_both(config: Run, updates: int) -> dict[Any, optax.GradientTransformation]:
    rates = {"auxiliary": config.auxiliary_rate * config.learning_rate, "student": config.learning_rate}
    return {name: _optimizer(config, rate, updates) for name, rate in rates.items()}


def _optimizer(config: Run, learning_rate: float, updates: int) -> optax.GradientTransformation:
    return mm.paper_optimizer(learning_rate, updates, warmup=min(1000, updates // 10), b1=config.b1)
