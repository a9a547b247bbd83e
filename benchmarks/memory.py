"""How much memory do the networks of a distillation and their optimisers hold, in full and with low-rank factors?

    python benchmarks/memory.py docs/results/memory.json

Counts of bytes of distinct arrays, from shapes alone: nothing is allocated.
"""

import json
import sys
from pathlib import Path

import equinox as eqx
import jax
from _measure import size, versions

import momentax as mm

RANK = 16
NETWORKS = {
    "UViT, UVIT_64": lambda key: mm.nn.UViT(3, num_classes=1000, **mm.nn.UVIT_64, key=key),
    "DiT-XL/2": lambda key: mm.nn.DiT((4, 32, 32), patch=2, num_classes=1000, **mm.nn.DIT_XL, key=key),
}


def held(make):
    """Bytes by algorithm: networks, optimiser states, gradients of one update; for instant Lambda and nu."""
    teacher = eqx.filter_eval_shape(make, jax.random.key(0))
    adapted = eqx.filter_eval_shape(lambda key: mm.lora(make(key), RANK, key=key), jax.random.key(0))
    factors = eqx.filter(adapted, mm.adapters(adapted))
    state = mm.paper_optimizer(1e-5, 10_000).init
    full, low = ((size(part), size(jax.eval_shape(state, part))) for part in (teacher, factors))
    frozen = size(teacher)
    return {
        "teacher": frozen,
        "alternating": frozen + 2 * sum(full) + full[0],
        "alternating, low rank": frozen + 2 * sum(low) + low[0],
        "instant": 3 * frozen + sum(full) + full[0],
        "instant, low rank": 3 * frozen + sum(low) + low[0],
    }


def main(target: str) -> None:
    """Prints the table row by row and writes it, with what made it."""
    rows = {}
    print(f"{'network':<16}{'algorithm':<24}{'GiB':>8}{'teachers':>10}")
    for name, make in NETWORKS.items():
        rows[name] = held(make)
        for algorithm, count in rows[name].items():
            print(f"{name:<16}{algorithm:<24}{count / 2**30:>8.2f}{count / rows[name]['teacher']:>10.2f}", flush=True)
    told = {"command": f"python benchmarks/memory.py {target}", "rank": RANK, "versions": versions()}
    Path(target).write_text(json.dumps(told | {"bytes": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
