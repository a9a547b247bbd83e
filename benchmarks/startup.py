"""How long until the first update: imports, traces, compilation?

    python benchmarks/startup.py docs/results/startup.json [NETWORK ...]

Imports are processes of their own: the library's over those of what it is made of (JAX, Equinox, optax), the median
over rounds. Compilations are cold, tracing included, and the median of two rounds; each update's is over that of the
network's value and gradient alone. "traces" is how often a step was traced for three updates, each with losses made
anew of players that have moved.
"""

import os
import subprocess
import sys
from functools import partial

os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import equinox as eqx
import jax
import jax.numpy as jnp
from _measure import building, lowered, ratio, record
from _networks import SHAPE, losses, players, selected, step_over

BATCH, ROUNDS, BUILDS = 16, 5, 2
IMPORTS = {
    "momentax": "import momentax",
    "its parts": "import equinox, jax, jax.numpy, jaxtyping, numpy, optax",
}
HEAVY = ("grain", "matplotlib", "orbax", "safetensors", "sklearn", "tqdm", "tyro")


def imported(statement):
    """Seconds of an import in a process of its own, and which heavy modules came with it."""
    code = f"import sys, time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    code += f"; print(*(name for name in {HEAVY} if name in sys.modules))"
    seconds, modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split("\n")[:2]
    return float(seconds), modules.split()


def imports(rounds):
    """The library's import over that of its parts."""
    turns = [{name: imported(statement) for name, statement in IMPORTS.items()} for _ in range(rounds)]
    ours, parts = ([turn[name][0] for turn in turns] for name in IMPORTS)
    return {"seconds": min(ours), "over its parts": ratio(ours, parts), "heavy": turns[0]["momentax"][1]}


def gradient(net, z, t):
    return jax.value_and_grad(lambda net: jnp.sum(jax.vmap(net)(z, t) ** 2))(net)


def traces(make, name):
    """How often three updates trace their step."""
    seen = []

    def step(*args):
        seen.append(args)
        return step_over()(*args)

    taken, x = eqx.filter_jit(step), jnp.zeros((2, *SHAPE))
    model, state, precond = eqx.filter_jit(players)(make, jax.random.key(0))
    teacher = model
    for n in range(3):
        loss = losses(teacher, model, model, precond)[name]
        model, state, _ = taken(loss, model, state, x, jax.random.key(n))
    return len(seen)


def rows_of(network, make):
    """A row for each update."""
    model, state, precond = eqx.filter_eval_shape(players, make, jax.random.key(0))
    x, t = jax.ShapeDtypeStruct((BATCH, *SHAPE), jnp.float32), jax.ShapeDtypeStruct((BATCH,), jnp.float32)
    key, step = jax.random.key(0), step_over()
    programs = {"gradient": partial(lowered, gradient, model.net, x, t)}
    for name, loss in losses(model, model, model, precond).items():
        programs[name] = partial(lowered, step, loss, model, state, x, key)
    builds = building(programs, BUILDS)
    for name in tuple(programs)[1:]:
        over = ratio(builds[name], builds["gradient"])["median"]
        yield {
            "network": network,
            "update": name,
            "seconds": min(builds[name]),
            "over its gradient": over,
            "traces": traces(make, name),
        }


def main(target: str, *names: str, rounds: int = ROUNDS) -> None:
    """Prints the table row by row and writes it, with what made it."""
    found, rows = imports(rounds), []
    print(f"import {found['seconds']:.2f} s, {found['over its parts']['median']:.3f} of its parts', {found['heavy']}")
    print(f"{'network':<10}{'update':<12}{'compile, s':>12}{'/ gradient':>12}{'traces':>8}")
    for network, make in selected(names).items():
        for row in rows_of(network, make):
            rows.append(row)
            print(f"{network:<10}{row['update']:<12}{row['seconds']:>12.2f}", end="")
            print(f"{row['over its gradient']:>12.2f}{row['traces']:>8}", flush=True)
            told = {"batch": BATCH, "rounds": rounds, "import": found, "rows": rows}
            record(target, " ".join(["startup.py", target, *names]), **told)


if __name__ == "__main__":
    main(*sys.argv[1:])
