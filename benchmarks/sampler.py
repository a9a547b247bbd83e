"""What does sampling cost beside the network's evaluations?

    python benchmarks/sampler.py docs/results/sampler.json [NETWORK ...]

The time of 8 steps over that of 8 bare evaluations of the same batch, each of the last one's output, in one compiled
loop; and of 256 steps over 8. Medians over the rounds of the ratios, all runs in turn. "draw" is what of the first
ratio eight draws of normal numbers take by themselves, over the bare evaluations.
"""

import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from _measure import alternated, ratio, record
from _networks import SHAPE, selected
from jax import lax

import momentax as mm

BATCH, FEW, MANY, ROUNDS = 32, 8, 256, 10


def sampling(net, steps):
    """A batch of samples, of a batch of keys."""
    sample = mm.ancestral_sampler(mm.Denoiser(net), steps)
    return jax.jit(jax.vmap(lambda key: sample(key, SHAPE)))


def bare(net, steps):
    """As many evaluations of the network, one after the other."""

    def evaluated(z):
        def step(z, t):
            return jax.vmap(net, (0, None))(z, t), None

        return lax.scan(step, z, jnp.arange(steps, 0, -1, z.dtype))[0]

    return jax.jit(evaluated)


def drawing(keys, steps):
    """As many draws of normal numbers, one after the other, each added to the last."""

    def step(z, i):
        return z + jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), SHAPE))(keys), None

    return lax.scan(step, jnp.zeros((len(keys), *SHAPE)), jnp.arange(steps, dtype=jnp.int32))[0]


def compared(make, rounds, many) -> dict[str, Any]:
    """A row: what the library adds, and what few steps save."""
    net = eqx.filter_jit(make)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), BATCH)
    z = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
    few, all_, alone = sampling(net, FEW), sampling(net, many), bare(net, FEW)
    draws = jax.jit(lambda keys: drawing(keys, FEW))
    runs = {"few": lambda: few(keys), "bare": lambda: alone(z), "draws": lambda: draws(keys)}
    times = alternated(runs, rounds)
    longer = alternated({"many": lambda: all_(keys), "few": lambda: few(keys)}, max(1, rounds // 3))
    return {
        "steps / evaluations": ratio(times["few"], times["bare"]),
        "draws / evaluations": ratio(times["draws"], times["bare"]),
        "many / few": ratio(longer["many"], longer["few"]),
        "samples/s": BATCH / min(times["few"]),
    }


def main(target: str, *names: str, rounds: int = ROUNDS, many: int = MANY) -> None:
    """Prints the table row by row and writes it, with what made it."""
    rows, kinds = [], ("steps / evaluations", "draws / evaluations", "many / few")
    print(f"{'network':<10}" + "".join(f"{kind:>22}" for kind in kinds) + f"{'samples/s':>12}")
    for network, make in selected(names).items():
        row = compared(make, rounds, many)
        rows.append({"network": network} | row)
        figures = "".join(f"{row[kind]['median']:>22.3f}" for kind in kinds)
        print(f"{network:<10}{figures}{row['samples/s']:>12.1f}", flush=True)
        told = {"batch": BATCH, "steps": [FEW, many], "rounds": rounds, "rows": rows}
        record(target, " ".join(["sampler.py", target, *names]), **told)


if __name__ == "__main__":
    main(*sys.argv[1:])
