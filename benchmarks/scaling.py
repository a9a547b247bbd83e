"""What crosses the mesh in an update, and what does each device hold, on 1, 2, 4 and 8 devices?

    python benchmarks/scaling.py docs/results/scaling.json [NETWORK ...]

Read off programs, nothing runs. Collectives are those of the lowered program, and in brackets how many of them the
compiler leaves, which merges them. A collective's bytes are those that each device sends, by rings: of an array of S
bytes on n devices (n - 1) S / n for gathering and for scattering, twice that for reducing. The compiler adds, for
`fully_sharded`, one number for the norm that clips. "held" are a device's arguments, all players, the state of the one
that moves and its batch; with "results" and "temporary", the compiled program's, they are its memory. A U-ViT of 390
million parameters ("UVIT_64") is compiled for eight devices only.

Host devices, with the scheduler that looks after memory and the second gathering kept apart from the first, as other
backends have it.
"""

import math
import os
import re
import sys
from itertools import product
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_cpu_enable_concurrency_optimized_scheduler=false"
    " --xla_disable_hlo_passes=cse_barrier_expander"
)

import equinox as eqx
import jax
import jax.numpy as jnp
from _measure import record
from _networks import losses, players, selected, step_over

import momentax as mm

DEVICES, BATCH = (1, 2, 4, 8), 64
SPREADS = {"data_parallel": mm.data_parallel, "fully_sharded": mm.fully_sharded}
NETWORKS = {
    "UVIT_64": ((3, 64, 64), lambda key: mm.nn.UViT(3, num_classes=1000, **mm.nn.UVIT_64, key=key)),
    "UViT": ((3, 32, 32), lambda key: mm.nn.UViT(3, width=64, multipliers=(1, 2, 8), depth=4, heads=8, key=key)),
    "MLP": ((64,), lambda key: mm.nn.MLP((64,), width=512, depth=8, key=key)),
}
COMPILED_FOR = {"UVIT_64": (8,)}
UPDATES = ("student", "aux", "instant")
SENT = {
    "all_gather": lambda result, n: (n - 1) * result / n,
    "reduce_scatter": lambda result, n: (n - 1) * result,
    "all_reduce": lambda result, n: 2 * (n - 1) * result / n,
}
COLLECTIVE = re.compile(rf'"stablehlo\.({"|".join(SENT)})"\(.*?\) -> tensor<([0-9x]*)[a-z]+([0-9]+)>', re.DOTALL)


MERGED = re.compile(rf" ({'|'.join(SENT).replace('_', '-')})(?:-start)?\(")


def left(text):
    """How many collectives of each kind a compiled program has."""
    found = MERGED.findall(text)
    return {kind: found.count(kind.replace("_", "-")) for kind in SENT}


def crossing(text, devices):
    """How many collectives of each kind, and the bytes that each device sends."""
    found = COLLECTIVE.findall(text)
    if len(found) != len(re.findall("|".join(rf'"stablehlo\.{kind}"' for kind in SENT), text)):
        raise ValueError("needs collectives of one array each; got others; do teach COLLECTIVE to read them")
    sent = dict.fromkeys(SENT, 0.0)
    for kind, shape, bits in found:
        size = math.prod(map(int, shape.split("x")[:-1])) * int(bits) / 8
        sent[kind] += SENT[kind](size, devices)
    return {kind: sum(kind == other for other, *_ in found) for kind in SENT}, sent


def held(placed):
    """Bytes of a device's own arrays."""
    arrays = [leaf for leaf in jax.tree.leaves(placed) if isinstance(leaf, jax.ShapeDtypeStruct)]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in arrays)


def compared(network, spread, count, update):
    """A row: what crosses, what is held, and what is needed besides."""
    shape, make = NETWORKS[network]
    mesh = jax.make_mesh((count,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])
    model, state, precond = eqx.filter_eval_shape(players, make, jax.random.key(0))
    loss = losses(model, model, model, precond, "data")[update]
    x = jax.ShapeDtypeStruct((BATCH, *shape), jnp.float32)
    step = SPREADS[spread](step_over("data"), mesh)
    program = step.lower(loss, model, state, x, jax.random.key(0))
    numbers, sent = crossing(program.as_text(), count)
    row = {"collectives": numbers, "sent": sent}
    row["held"] = held(step.place((loss, model, state))) + BATCH // count * math.prod(shape) * 4
    if count in COMPILED_FOR.get(network, DEVICES):
        compiled = program.compile()
        memory = compiled.memory_analysis()
        row |= {"results": memory.output_size_in_bytes, "temporary": memory.temp_size_in_bytes}
        row["compiled"] = left(compiled.as_text())
    return row


def line(row):
    """What is printed of a row."""
    compiled = row.get("compiled", dict.fromkeys(SENT, "-"))
    sizes = [sum(row["sent"].values()), row["held"], row.get("results", math.nan), row.get("temporary", math.nan)]
    counts = [f"{number} ({compiled[kind]})" for kind, number in row["collectives"].items()]
    return "".join(f"{cell:>15}" for cell in counts) + "".join(f"{size / 2**20:>15.1f}" for size in sizes)


def main(target: str, *names: str, devices=DEVICES) -> None:
    """Prints the table row by row and writes it, with what made it."""
    rows: list[dict[str, Any]] = []
    print(f"{'network':<10}{'spread':<15}{'update':<10}{'devices':>8}", end="")
    print("".join(f"{kind:>15}" for kind in (*SENT, "sent, MiB", "held, MiB", "results, MiB", "temp, MiB")))
    for network, spread, update, count in product(selected(names, NETWORKS), SPREADS, UPDATES, devices):
        row = compared(network, spread, count, update)
        rows.append({"network": network, "spread": spread, "update": update, "devices": count} | row)
        print(f"{network:<10}{spread:<15}{update:<10}{count:>8}{line(row)}", flush=True)
        record(target, " ".join(["scaling.py", target, *names]), batch=BATCH, rows=rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
