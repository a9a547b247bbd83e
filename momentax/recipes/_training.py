"""The one loop that trains: every phase, on all devices, from where it was left."""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import momentax as mm

from ._batches import Batch
from ._devices import AXIS, mesh_for, on_each, on_one, spread
from ._interrupt import asked, raise_if_asked, saving_late
from ._journal import Journal
from ._phases import Phase
from ._progress import Progress
from ._state import State, averaged, updating

PATIENCE = 10
_LOOK, _LONG = 10, 0.5


class Trial(NamedTuple):
    """How the student is judged on the way: after every so many updates, by a distance."""

    every: int
    distance: Callable[[Any], float]


def train(phase: Phase, journal: Journal, checkpoint_every: int, trial: Trial | None = None) -> State:
    """The state after the phase's last update, however often it was interrupted on the way.

    The device is waited for every ten updates, when their losses are written, and where an update takes half a second.

    Raises:
        KeyboardInterrupt: after a signal, with the state saved.
        FloatingPointError: where a player skipped ten updates in a row, with the state saved.
    """
    mesh, attempts, stop = mesh_for(phase.batch), {}, False
    state, first = _begun(phase, journal, mesh)
    update, progress = _Paced(_updater(phase, mesh)), Progress(phase.title, first, phase.updates)
    with contextlib.closing(journal), saving_late(journal.close):
        for n in progress:
            position = phase.examples.get_state()
            batch, last = next(phase.examples), n + 1 == phase.updates
            with saving_late(partial(journal.save_late, n, state, position)):
                state, value = update(state, n, batch)
            attempts[phase.turn(n)] = n, batch
            journal.record(n, **{phase.turn(n): value})
            figure, stuck, stop = _judged(trial, journal, state, n, mesh), None, asked()
            due = figure is not None or (n + 1) % checkpoint_every == 0
            if due or stop or last or (n + 1) % _LOOK == 0:
                progress.show(journal.flush(), sum(state.skipped.values()))
                stuck = _stuck(state)
            if stuck or stop or (due and not last):
                journal.save(n + 1, state, phase.examples.get_state(), figure)
            if stuck:
                raise FloatingPointError(_told(phase, on_one(state, mesh), stuck, *attempts[stuck]))
            if stop:
                break
    if stop:
        raise_if_asked()
    return on_one(state, mesh)


def _begun(phase: Phase, journal: Journal, mesh: Mesh | None) -> tuple[State, int]:
    restored = journal.restored(on_each(phase.state, mesh))
    if restored is None:
        state = phase.state if phase.prepare is None else phase.prepare(phase.state, phase.examples)
        return on_each(state, mesh), 0
    state, done, position = restored
    phase.examples.set_state(position)
    print(f"going on with the {phase.name} after {done} of {phase.updates} updates", flush=True)
    return state, done


class _Paced:
    """Updates of which those that take long are waited for: a signal then has one to wait for, and never ten."""

    def __init__(self, update: Callable[[State, int, Batch], tuple[State, Any]]):
        self._update, self._slow = update, True

    def __call__(self, state: State, n: int, batch: Batch) -> tuple[State, Any]:
        started = time.monotonic()
        state, value = self._update(state, n, batch)
        if self._slow or n % _LOOK == 0:
            jax.block_until_ready(value)
            self._slow = time.monotonic() - started > _LONG
        return state, value


def _updater(phase: Phase, mesh: Mesh | None) -> Callable[[State, int, Batch], tuple[State, Any]]:
    guided = on_each(phase.guided, mesh)
    steps = {name: updating(own, mesh, phase.micro_batches) for name, own in phase.optimizers.items()}
    axis_name = None if mesh is None else AXIS

    def update(state: State, n: int, batch: Batch) -> tuple[State, Any]:
        name, (x, cond) = phase.turn(n), spread(batch, mesh)
        loss = phase.losses(guided, state, axis_name)[name]
        player, value = steps[name](loss, state.players[name], x, jax.random.fold_in(state.key, n), cond)
        state = state._replace(players=state.players | {name: player})
        if state.average is not None:
            decay = jnp.float32(min(0.999, (1 + n) / (10 + n)))
            state = state._replace(average=averaged(state.average, player, decay))
        return state, value

    return update


def _judged(trial: Trial | None, journal: Journal, state: State, n: int, mesh: Mesh | None) -> float | None:
    if trial is None or (n + 1) % trial.every:
        return None
    student = on_one(state.student, mesh)
    figure = trial.distance(student)
    if figure < min(journal.distances.values(), default=float("inf")):
        journal.folder.write_weights("student-best.eqx", student)
    journal.record(n, frechet_distance=figure)
    return figure


def _stuck(state: State) -> str | None:
    return next((name for name, player in state.players.items() if int(player.skips.in_a_row) >= PATIENCE), None)


def _told(phase: Phase, state: State, name: str, n: int, batch: Batch) -> str:
    """What stopped a player whose nth update, the last in a row that were skipped, was on this batch."""
    (x, cond), player = spread(batch, None), state.players[name]
    loss, key = phase.losses(phase.guided, state, None)[name], jax.random.fold_in(state.key, n)
    logsnrs = mm.nonfinite_logsnr(loss, player.model, x, key, cond)
    where = "with every example finite alone" if logsnrs is None else "at log-SNRs {:.3g} to {:.3g}".format(*logsnrs)
    return (
        f"needs finite losses and gradients; got {int(player.skips.in_a_row)} updates of the {name} in a row that were"
        f" not, up to update {n + 1} of the {phase.name}, {where}; do lower --learning-rate, or look for bad values in"
        " the data and the teacher's predictions there: the last good state is saved"
    )
