"""What does each tangent of the instant loss cost, next to the network's forward pass and gradient?

    python benchmarks/tangents.py docs/results/tangents.json

Counts of the compiled program, no times: floating-point operations, and the memory for what is neither argument nor
result, of 16 examples, over those of one forward pass.
"""

import json
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from _measure import versions
from _networks import NETWORKS, SHAPE
from jax import lax

import momentax as mm

BATCH = 16


def programs(z, t):
    """What is counted, each of parameters and a direction."""

    def outputs(net):
        return jax.vmap(net)(z, t)

    def gradient(net, nu):
        return jax.grad(lambda net: jnp.sum(outputs(net) ** 2))(net)

    def taken(tangent):
        return lambda net, nu: lax.stop_gradient(tangent(outputs, net, nu))

    return {
        "forward": lambda net, nu: outputs(net),
        "gradient": gradient,
        "forward_mode": taken(mm.forward_mode),
        "reverse_mode": taken(mm.reverse_mode),
        "central_difference": taken(mm.central_difference),
    }


def counted(program, net):
    """Operations and temporary bytes, of the program compiled for this device."""
    compiled: Any = jax.jit(program).lower(net, net).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


def main(target: str) -> None:
    """Prints the table row by row and writes it, with what made it."""
    z, t = jnp.ones((BATCH, *SHAPE)), jnp.zeros(BATCH)
    rows = []
    print(f"{'network':<8}{'program':<20}{'FLOPs':>8}{'memory':>8}")
    for name, make in NETWORKS.items():
        net = eqx.filter_eval_shape(make, jax.random.key(0))
        counts = {program: counted(function, net) for program, function in programs(z, t).items()}
        flops, memory = counts["forward"]
        for program, (ours, bytes_) in counts.items():
            rows.append({"network": name, "program": program, "flops": ours / flops, "memory": bytes_ / memory})
            print(f"{name:<8}{program:<20}{ours / flops:>8.2f}{bytes_ / memory:>8.2f}", flush=True)
    told = {"command": f"python benchmarks/tangents.py {target}", "batch": BATCH, "versions": versions()}
    Path(target).write_text(json.dumps(told | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
