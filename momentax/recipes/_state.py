"""What training changes: everything that the next update needs of the last one, and all that a checkpoint holds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

import momentax as mm

from ._devices import AXIS


class Skips(NamedTuple):
    """Updates that were not taken, because something in them was not finite."""

    in_a_row: Int[Array, ""]
    total: Int[Array, ""]


class Player(NamedTuple):
    """A network that moves, with its optimiser's state."""

    model: Any
    opt_state: Any
    skips: Skips


class State(NamedTuple):
    """The players by name, the key that every update folds its number into, and what some phases have besides.

    `average` is the moving one of the only player's weights, `precond` the instant loss's Lambda.
    """

    players: dict[str, Player]
    key: PRNGKeyArray
    average: Any = None
    precond: Any = None

    @property
    def student(self) -> Any:
        """The student, which may share its turns with the auxiliary: a pair that moves at once."""
        model = self.players["student"].model
        return model[0] if isinstance(model, tuple) else model

    @property
    def skipped(self) -> dict[str, int]:
        """How many updates of each player were skipped: waits for the device."""
        return {name: int(player.skips.total) for name, player in self.players.items()}


def player(model: Any, optimizer: optax.GradientTransformation) -> Player:
    """A network before its first update; what moves are its floating-point arrays."""
    nothing = jnp.zeros((), jnp.int32)
    return Player(model, optimizer.init(eqx.filter(model, eqx.is_inexact_array)), Skips(nothing, nothing))


def updating(optimizer: optax.GradientTransformation, mesh: Mesh | None = None, micro_batches: int = 1) -> Callable:
    """One update of any player under any loss, `(loss, player, x, key, cond)`, to its next and the loss's value."""
    axis_name = None if mesh is None else AXIS

    def step(loss, model, rest, x, key, cond=None):
        value, grads = mm.value_and_grad(loss, axis_name, micro_batches=micro_batches)(model, x, key, cond)
        opt_state, skips = rest
        model, opt_state, finite = mm.update_if_finite(optimizer, model, opt_state, value, grads)
        return Player(model, opt_state, _counted(skips, finite)), value

    spread = eqx.filter_jit(step) if mesh is None else mm.data_parallel(step, mesh, AXIS)

    def update(loss: Any, player: Player, x: Any, key: Any, cond: Any = None) -> tuple[Player, Float[Array, ""]]:
        return spread(loss, player.model, (player.opt_state, player.skips), x, key, cond)

    return update


@eqx.filter_jit
def averaged(average: Any, player: Player, decay: Float[Array, ""]) -> Any:
    """The moving average of a player's weights after its update; where that was skipped, the one before."""
    moving, fixed = eqx.partition(average, eqx.is_inexact_array)
    moved = optax.incremental_update(eqx.filter(player.model, eqx.is_inexact_array), moving, 1 - decay)
    taken = player.skips.in_a_row == 0
    return eqx.combine(jax.tree.map(lambda new, old: jnp.where(taken, new, old), moved, moving), fixed)


def _counted(skips: Skips, finite: Any) -> Skips:
    missed = 1 - finite.astype(jnp.int32)
    return Skips((skips.in_a_row + missed) * missed, skips.total + missed)
