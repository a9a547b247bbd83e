"""The networks that benchmarks compare, and one update of any of their players."""

from collections.abc import Callable
from typing import Any

import equinox as eqx

import momentax as mm

SHAPE = (3, 32, 32)
NETWORKS: dict[str, Callable[..., Any]] = {
    "MLP": lambda key: mm.nn.MLP(SHAPE, width=512, depth=6, key=key),
    "UNet": lambda key: mm.nn.UNet(3, width=32, multipliers=(1, 2), key=key),
    "UViT": lambda key: mm.nn.UViT(3, width=32, multipliers=(1, 2, 4), depth=2, key=key),
    "DiT": lambda key: mm.nn.DiT(SHAPE, width=128, depth=4, heads=4, key=key),
}
OPTIMIZER = mm.paper_optimizer(1e-5, 10_000)


def players(make: Callable[..., Any], key: Any) -> tuple[Any, Any, Any]:
    """A denoiser, its optimiser's state, and a Lambda for it."""
    model = mm.Denoiser(make(key))
    moving = eqx.filter(model, eqx.is_inexact_array)
    return model, OPTIMIZER.init(moving), mm.Diagonal(moving)


def losses(teacher: Any, student: Any, aux: Any, precond: Any, axis_name: Any = None) -> dict[str, Any]:
    """All four, each of the first argument that moves."""
    match = mm.moment_match(teacher, student, aux, axis_name=axis_name)
    instant = mm.instant(teacher, precond, axis_name=axis_name)
    denoising = mm.denoising_loss(axis_name=axis_name)
    return {"denoising": denoising, "student": match.student, "aux": match.aux, "instant": instant}


def step_over(axis_name: Any = None) -> Callable[..., Any]:
    """One update: gradient, optimiser, new parameters."""

    def step(loss, model, opt_state, x, key):
        value, grads = mm.value_and_grad(loss, axis_name)(model, x, key)
        changes, opt_state = OPTIMIZER.update(grads, opt_state)
        return eqx.apply_updates(model, changes), opt_state, value

    return step


def selected(names: tuple[str, ...], among: dict[str, Any] | None = None) -> dict[str, Any]:
    """The networks of these names; all, where none is named. Those of this file, or others."""
    among = among or NETWORKS
    if unknown := [name for name in names if name not in among]:
        raise SystemExit(f"needs names out of {', '.join(among)}; got {', '.join(unknown)}")
    return {name: among[name] for name in names or among}
