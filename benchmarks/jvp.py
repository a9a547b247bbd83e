"""How many examples a second do a forward pass, a gradient and a parameter JVP take, by network, batch and dtype?

    python benchmarks/jvp.py docs/results/jvp.json [NETWORK ...]

The gradient and the JVP come with the value, as the losses use them. Examples per second and FLOP/s are of the best
round; JVP / forward and JVP / gradient are medians over the rounds of the ratios of times, and exact ratios of counts.
"""

import sys
from itertools import product

import equinox as eqx
import jax
import jax.numpy as jnp
from _measure import alternated, counts, lowered, ratio, record
from _networks import SHAPE, selected

import momentax as mm

BATCHES, DTYPES, ROUNDS = (1, 16, 64), ("float32", "bfloat16"), 10


def forward(net, nu, z, t):
    return jax.vmap(net)(z, t)


def gradient(net, nu, z, t):
    return jax.value_and_grad(lambda net: jnp.sum(jax.vmap(net)(z, t) ** 2))(net)


def jvp(net, nu, z, t):
    return mm.forward_mode(lambda net: jax.vmap(net)(z, t), net, nu)


def compared(make, batch, dtype, rounds):
    """A row: rates of the three, and what the JVP costs next to the other two."""
    cast = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[dtype]
    made = eqx.filter_jit(make)(jax.random.key(0))
    net = jax.tree.map(lambda leaf: leaf.astype(cast) if eqx.is_inexact_array(leaf) else leaf, made)
    args = net, net, jax.random.normal(jax.random.key(1), (batch, *SHAPE), jnp.float32), jnp.zeros(batch, jnp.float32)
    compiled = {program.__name__: lowered(program, *args).compile() for program in (forward, gradient, jvp)}
    flops = {name: counts(program)["flops"] for name, program in compiled.items()}
    arrays = eqx.filter(args, eqx.is_array)
    times = alternated({name: lambda p=program: p(arrays) for name, program in compiled.items()}, rounds)
    row = {"examples/s": {name: batch / min(seconds) for name, seconds in times.items()}}
    row["FLOP/s"] = {name: flops[name] / min(seconds) for name, seconds in times.items()}
    for other in ("forward", "gradient"):
        row[f"jvp / {other}"] = ratio(times["jvp"], times[other]) | {"flops": flops["jvp"] / flops[other]}
    return row


def main(target: str, *names: str, batches=BATCHES, dtypes=DTYPES, rounds: int = ROUNDS) -> None:
    """Prints the table row by row and writes it, with what made it."""
    rows, columns = [], ("forward", "gradient", "jvp")
    print(f"{'network':<8}{'batch':>5} {'dtype':<10}" + "".join(f"{name + '/s':>12}" for name in columns), end="")
    print(f"{'GFLOP/s':>10}{'/ forward':>11}{'/ gradient':>11}")
    for (network, make), batch, dtype in product(selected(names).items(), batches, dtypes):
        row = {"network": network, "batch": batch, "dtype": dtype} | compared(make, batch, dtype, rounds)
        rows.append(row)
        print(f"{network:<8}{batch:>5} {dtype:<10}", end="")
        print("".join(f"{row['examples/s'][name]:>12.1f}" for name in columns), end="")
        print(f"{row['FLOP/s']['jvp'] / 1e9:>10.2f}", end="")
        print("".join(f"{row[f'jvp / {name}']['median']:>11.2f}" for name in columns[:2]), flush=True)
        record(target, " ".join(["jvp.py", target, *names]), rounds=rounds, rows=rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
