"""Does compiling take time with the number of arrays, or with its square?

    python benchmarks/compile.py docs/results/compile.json [STEP ...]

A network of 20 to 320 small arrays, and every step that the command and the library have of it. The command's are its
own: gradient, `update_if_finite`, whose flag stays in the program, and the count of what was skipped; on one device and
on two. Then `fully_sharded` with the flag inside, the moving average, an update of Lambda's estimate, the search for
what was not finite, eight steps of sampling.

Instructions are those of the compiled program, exact for a version of JAX. CPU seconds are the compiler's, of one cold
compilation. Twice the arrays are twice the instructions where a program is linear, and four times where it is not.
"""

import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from _measure import lowered, record
from _networks import OPTIMIZER, losses, selected

import momentax as mm
from momentax._diagnosis import _verdicts
from momentax.recipes._devices import AXIS
from momentax.recipes._state import averaged, player, updating

LEAVES, WIDTH, BATCH = (20, 40, 80, 160, 320), 8, 4
BOTH = optax.partition({"student": OPTIMIZER, "auxiliary": OPTIMIZER}, ("student", "auxiliary"))
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = ", re.MULTILINE)


class Chain(eqx.Module):
    """As many square matrices as are asked for, one after the other."""

    weights: list[Any]

    def __call__(self, z, logsnr, cond=None):
        for weight in self.weights:
            z = jnp.tanh(weight @ z + logsnr)
        return z


def chain(leaves: int) -> mm.Denoiser:
    """The network."""
    return mm.Denoiser(Chain([jnp.eye(WIDTH, dtype=jnp.float32) for _ in range(leaves)]))


def loss_of(name: str, model: mm.Denoiser, axis_name: Any = None) -> Any:
    """A loss, by what it moves."""
    if name == "joint":
        return mm.joint_loss(model, axis_name=axis_name)
    return losses(model, model, model, mm.Diagonal(eqx.filter(model, eqx.is_array)), axis_name)[name]


def updated(name: str, model: mm.Denoiser, devices: int = 1, micro_batches: int = 1) -> Any:
    """The command's update."""
    mesh, axis_name = (over_two(), AXIS) if devices > 1 else (None, None)
    moving, optimizer = ((model, model), BOTH) if name == "joint" else (model, OPTIMIZER)
    update = updating(optimizer, mesh, micro_batches)
    return lowered(update, loss_of(name, model, axis_name), player(moving, optimizer), *drawn())


def in_pieces(model: mm.Denoiser) -> Any:
    """A student's step in pieces, the flag inside."""

    def step(loss, model, opt_state, x, key):
        value, grads = mm.value_and_grad(loss, AXIS)(model, x, key)
        return *mm.update_if_finite(OPTIMIZER, model, opt_state, value, grads)[:2], value

    state = player(model, OPTIMIZER).opt_state
    return mm.fully_sharded(step, over_two()).lower(loss_of("student", model, AXIS), model, state, *drawn())


def average(model: mm.Denoiser) -> Any:
    """The teacher's moving average after an update."""
    return lowered(averaged, model, player(model, OPTIMIZER), jnp.float32(0.9))


def estimated(model: mm.Denoiser) -> Any:
    """Lambda, of one batch."""
    loss, (x, key) = mm.denoising_loss(), drawn()
    return lowered(lambda model, x, key: mm.estimate_preconditioner(loss, model, [x], key), model, x, key)


def searched(model: mm.Denoiser) -> Any:
    """Which examples of a student's update were not finite."""
    return lowered(_verdicts, loss_of("student", model), model, *drawn(), None, eqx.is_inexact_array)


def sampled(model: mm.Denoiser) -> Any:
    """A sample in eight steps."""
    return lowered(lambda model, key: mm.ancestral_sampler(model)(key, (WIDTH,)), model, jax.random.key(0))


def over_two() -> jax.sharding.Mesh:
    """A mesh of two devices."""
    return jax.make_mesh((2,), (AXIS,), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])


def drawn() -> tuple[Any, Any]:
    """A batch and a key."""
    return jnp.ones((BATCH, WIDTH), jnp.float32), jax.random.key(0)


STEPS: dict[str, Callable[[mm.Denoiser], Any]] = {
    "teacher": partial(updated, "denoising"),
    "average": average,
    "student": partial(updated, "student"),
    "auxiliary": partial(updated, "aux"),
    "joint": partial(updated, "joint"),
    "instant": partial(updated, "instant"),
    "Lambda": estimated,
    "nonfinite_logsnr": searched,
    "sampler": sampled,
    "data_parallel": partial(updated, "student", devices=2),
    "fully_sharded": in_pieces,
    "micro_batches": partial(updated, "instant", micro_batches=2),
}


def measured(lowering: Callable[[mm.Denoiser], Any], leaves: int) -> dict[str, float]:
    """What the compiler takes, and what it makes."""
    program = lowering(chain(leaves))
    started = time.process_time()
    compiled = program.compile()
    seconds = time.process_time() - started
    return {"leaves": leaves, "instructions": len(INSTRUCTION.findall(compiled.as_text())), "CPU seconds": seconds}


def main(target: str, *names: str, leaves: tuple[int, ...] = LEAVES) -> None:
    """Prints the table row by row and writes it, with what made it."""
    rows: list[dict[str, Any]] = []
    print(f"{'step':<26}{'arrays':>8}{'instructions':>14}{'CPU s':>8}")
    for name, lowering in selected(names, STEPS).items():
        for count in leaves:
            row = measured(lowering, count)
            rows.append({"step": name} | row)
            print(f"{name:<26}{count:>8}{row['instructions']:>14,}{row['CPU seconds']:>8.1f}", flush=True)
        record(target, " ".join(["compile.py", target, *names]), batch=BATCH, rows=rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
