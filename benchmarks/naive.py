"""What does it cost to write the losses by hand, as closures over the teacher?

    python benchmarks/naive.py docs/results/naive.json [NETWORK ...]

By hand is `_formulas.py` under `jax.jit`, with one difference to what the library does: the teacher is closed over,
and so a constant of the program. Both make the same update with the same optimiser, and both draw their own noise. For
noise that is handed in, both give the same value and gradient, which is checked before anything is timed.

Ratios are by hand over momentax, above one where momentax is the faster or the smaller: compile time (once, cold),
bytes of the program, operations, and the median over rounds of the time of one update.
"""

import sys
import time
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _formulas import Given, aux_loss, drawn, instant_loss, student_loss
from _measure import alternated, counts, lowered, ratio, record
from _networks import OPTIMIZER, SHAPE, players, selected

import momentax as mm

BATCH, ROUNDS = 32, 20
WITHIN = 1e-4


def ours(teacher, other, **settings):
    """momentax's losses, of what moves, a batch, a key and noise."""
    losses = mm.moment_match(teacher, other, other, **settings)
    return {"student": losses.student, "aux": losses.aux, "instant": mm.instant(teacher, **settings)}


def theirs(teacher):
    """The losses by hand: the teacher is bound, the other player is an argument."""
    return {
        "student": lambda other, model, x, noise: student_loss(teacher, other, model, x, noise),
        "aux": lambda other, model, x, noise: aux_loss(teacher, other, model, x, noise),
        "instant": lambda other, model, x, noise: instant_loss(teacher, model, x, noise),
    }


def check(name, teacher, other, model, x, key):
    """Demands the same value and gradient of both sides, in float32."""
    noise = drawn(key, x)
    mine = eqx.filter_jit(eqx.filter_value_and_grad(ours(teacher, other, rollout=Given())[name]))(model, x, key, noise)

    def by_hand(net):
        return theirs(teacher.net)[name](other.net, net, x, noise)

    value, grads = eqx.filter_jit(eqx.filter_value_and_grad(by_hand))(model.net)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves((value, grads)), strict=True):
        np.testing.assert_allclose(a, b, rtol=WITHIN, atol=WITHIN * float(jnp.max(jnp.abs(b))))


def library_step(loss, model, opt_state, x, key):
    value, grads = eqx.filter_value_and_grad(loss)(model, x, key)
    changes, opt_state = OPTIMIZER.update(grads, opt_state)
    return eqx.apply_updates(model, changes), opt_state, value


def hand_step(loss, other, net, opt_state, x, key):
    value, grads = eqx.filter_value_and_grad(lambda net: loss(other, net, x, drawn(key, x)))(net)
    changes, opt_state = OPTIMIZER.update(grads, opt_state)
    return eqx.apply_updates(net, changes), opt_state, value


def built(step, *args):
    """The compiled step, its text's length, and the seconds that lowering and compiling took."""
    start = time.perf_counter()
    program = lowered(step, *args)
    compiled = program.compile()
    seconds = time.perf_counter() - start
    arrays = eqx.filter(args, eqx.is_array)
    return lambda: compiled(arrays), {"compile": seconds, "program": len(program.as_text())} | counts(compiled)


def compared(name, make, rounds):
    """A row: by hand over momentax."""
    keys = jax.random.split(jax.random.key(0), 5)
    model, state, _ = eqx.filter_jit(players)(make, keys[0])
    teacher, other = (moved(model, key) for key in keys[1:3])
    x = jax.random.normal(keys[3], (BATCH, *SHAPE))
    check(name, teacher, other, moved(model, keys[4]), x, keys[3])
    library, mine = built(library_step, ours(teacher, other)[name], model, state, x, keys[4])
    net_state = OPTIMIZER.init(eqx.filter(model.net, eqx.is_inexact_array))
    hand = partial(hand_step, theirs(teacher.net)[name])
    by_hand, hands = built(hand, other.net, model.net, net_state, x, keys[4])
    times = alternated({"by hand": by_hand, "momentax": library}, rounds)
    row: dict[str, Any] = {kind: hands[kind] / mine[kind] for kind in ("compile", "program", "flops")}
    return row | {"step": ratio(times["by hand"], times["momentax"]), "seconds": min(times["momentax"])}


@eqx.filter_jit
def moved(model, key):
    """The model with noise on its arrays, so that nothing is zero and no two players are one."""
    arrays, rest = eqx.partition(model, eqx.is_array)
    leaves, tree = jax.tree.flatten(arrays)
    keys = jax.random.split(key, len(leaves))
    noisy = [leaf + 0.02 * jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(tree, noisy), rest)


def main(target: str, *names: str, rounds: int = ROUNDS) -> None:
    """Prints the table row by row and writes it, with what made it."""
    rows = []
    print(f"{'network':<10}{'update':<10}{'compile':>10}{'program':>10}{'flops':>10}{'step':>10}{'best':>10}")
    for network, make in selected(names).items():
        for name in ("student", "aux", "instant"):
            row = compared(name, make, rounds)
            rows.append({"network": network, "update": name} | row)
            figures = [row[kind] for kind in ("compile", "program", "flops")] + list(row["step"].values())
            print(f"{network:<10}{name:<10}" + "".join(f"{figure:>10.3f}" for figure in figures), flush=True)
            told = {"batch": BATCH, "rounds": rounds, "rows": rows}
            record(target, " ".join(["naive.py", target, *names]), **told)


if __name__ == "__main__":
    main(*sys.argv[1:])
