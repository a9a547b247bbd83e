"""Moment matching: the losses of both players, or of the one."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import PyTree

from ._divergence import Divergence, squared_error
from ._instant import instant
from ._judge import Draws, Loss, Model
from ._losses import aux_loss, student_loss
from ._precondition import identity
from ._rollout import Rollout, over
from ._shard import Axes


class Losses(NamedTuple):
    """Both players' losses; `aux` is None where there is one player."""

    student: Loss
    aux: Loss | None


def moment_match(
    teacher: Model,
    student: Model,
    aux: Model | None = None,
    *,
    precond: Callable[[PyTree[Any]], PyTree[Any]] = identity,
    rollout: Draws = Rollout(),
    weight: Callable[..., Any] | None = None,
    divergence: Divergence = squared_error,
    axis_name: Axes | None = None,
) -> Losses:
    """The losses of moment matching: alternating with an auxiliary (Algorithm 2), instant without (Algorithm 3).

    Rebinding the players is free: make the losses anew with every new student and auxiliary. `instant` itself has
    more to choose.

    Raises:
        ValueError: for an auxiliary together with a preconditioner, which is the auxiliary's replacement.
    """
    rollout = over(rollout, axis_name)
    if aux is None:
        return Losses(instant(teacher, precond, rollout=rollout, weight=weight, divergence=divergence), None)
    if precond is not identity:
        raise ValueError("needs aux or precond; got both; do drop precond (alternating) or aux (instant)")
    settings = {"rollout": rollout, "weight": weight, "divergence": divergence}
    return Losses(student_loss(teacher, aux, **settings), aux_loss(teacher, student, **settings))
