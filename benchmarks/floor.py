"""How far is an update from its floor: what its networks cost by themselves?

    python benchmarks/floor.py docs/results/floor.json [NETWORK ...]

Counts of compiled programs, no times. The floor of n examples is the sum of programs compiled alone, with F, G and J a
network's forward pass, its value and gradient for a given cotangent, its value and tangent in a given direction:

    denoising   G(n)
    student     G(n) of the student, F(n) of the teacher, F(n) of the auxiliary
    aux         F(n) of the student, F(n) of the teacher, G(n) of the auxiliary
    joint       G(n) of the student, F(n) of the teacher, G(n) of the auxiliary, and the optimiser of both
    instant     F(n/2) of the student, G(n/2) of the teacher, G(n/2) of the student, J(n/2) of the teacher, and Lambda

and of what every implementation does besides: one normal number per pixel of every noisy image, and the optimiser.
"flops", which shall not be above 1.02, is over all of it; "networks" leaves these two out of the floor. Memory is
arguments, results and temporaries; the floor's temporaries are those of the gradient, whose activations are kept while
other networks judge, of one of these, and for instant nu. On a CPU the scheduler is that which looks after memory, as
other backends have it.
"""

import os
import sys

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    " --xla_disable_hlo_passes=cse_barrier_expander"
)

import equinox as eqx
import jax
import jax.numpy as jnp
from _measure import counted, record, size
from _networks import OPTIMIZER, SHAPE, losses, players, selected, step_over

import momentax as mm

BATCH = 32
FLOORS = {
    "denoising": {"gradient": 1, "noise": 1},
    "student": {"gradient": 1, "forward": 2, "noise": 2},
    "aux": {"gradient": 1, "forward": 2, "noise": 2},
    "joint": {"gradient": 2, "forward": 1, "noise": 2, "optimiser": 2},
    "instant": {"half gradient": 2, "half forward": 1, "half tangent": 1, "Lambda": 1, "noise": 2},
}
HELD = {
    "denoising": ("gradient",),
    "student": ("gradient", "forward"),
    "aux": ("gradient",),
    "joint": ("gradient", "gradient"),
    "instant": ("half gradient", "half tangent"),
}


def forward(net, z, t, nu, u):
    return jax.vmap(net)(z, t)


def gradient(net, z, t, nu, u):
    """Value and gradient of the parameters, for a cotangent that is there already."""
    value, pull = jax.vjp(lambda net: jax.vmap(net)(z, t), net)
    return value, pull(u)


def tangent(net, z, t, nu, u):
    """Value and tangent, in a direction that is there already."""
    return jax.jvp(lambda net: jax.vmap(net)(z, t), (net,), (nu,))


def update(model, opt_state):
    """The optimiser alone, for a gradient that is there already."""
    changes, opt_state = OPTIMIZER.update(eqx.filter(model, eqx.is_inexact_array), opt_state)
    return eqx.apply_updates(model, changes), opt_state


def noise(key):
    return jax.random.normal(key, (BATCH, *SHAPE))


def parts(model, opt_state, precond):
    """Counts of each program by itself, of the bare network at the batch and at half of it."""
    found = {"noise": counted(noise, jax.random.key(0)), "optimiser": counted(update, model, opt_state)}
    found["Lambda"] = counted(lambda precond, grads: precond(grads), precond, precond.scale)
    for half, count in (("", BATCH), ("half ", BATCH // 2)):
        z, t = jax.ShapeDtypeStruct((count, *SHAPE), jnp.float32), jax.ShapeDtypeStruct((count,), jnp.float32)
        for program in (forward, gradient, tangent):
            found[half + program.__name__] = counted(program, model.net, z, t, model.net, z)
    return found


def compared(name, update, found, model):
    """An update's counts over the floor's."""
    wanted = {"optimiser": 1} | FLOORS[name]
    of_networks = {part: times for part, times in wanted.items() if part not in ("noise", "optimiser")}

    def floor(kind, wanted):
        return sum(times * found[part][kind] for part, times in wanted.items())

    kept = update["held"] + sum(found[part]["temporary"] for part in HELD[name])
    kept += size(model) if name == "instant" else 0
    return {
        "flops": update["flops"] / floor("flops", wanted),
        "networks": update["flops"] / floor("flops", of_networks),
        "bytes": update["bytes"] / floor("bytes", wanted),
        "memory": (update["held"] + update["temporary"]) / kept,
        "forwards": update["flops"] / found["forward"]["flops"],
    }


def main(target: str, *names: str) -> None:
    """Prints the table row by row and writes it, with what made it."""
    rows, x = [], jax.ShapeDtypeStruct((BATCH, *SHAPE), jnp.float32)
    columns = ("flops", "networks", "bytes", "memory", "forwards")
    print(f"{'network':<10}{'update':<12}" + "".join(f"{column:>10}" for column in columns))
    for network, make in selected(names).items():
        model, state, precond = eqx.filter_eval_shape(players, make, jax.random.key(0))
        found = parts(model, state, precond)
        for name, loss in (losses(model, model, model, precond) | {"joint": mm.joint_loss(model)}).items():
            moved = (model, model) if name == "joint" else model
            state = eqx.filter_eval_shape(lambda moved: OPTIMIZER.init(eqx.filter(moved, eqx.is_inexact_array)), moved)
            ours = counted(step_over(), loss, moved, state, x, jax.random.key(0))
            rows.append({"network": network, "update": name} | compared(name, ours, found, model))
            print(f"{network:<10}{name:<12}" + "".join(f"{rows[-1][column]:>10.3f}" for column in columns), flush=True)
            record(target, " ".join(["floor.py", target, *names]), batch=BATCH, rows=rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
