"""What does it cost to write the losses by hand, as closures over the teacher?

    python benchmarks/naive.py docs/results/naive.json [NETWORK ...]

    by hand   `_formulas.py` under `jax.jit`, the teacher closed over and so a constant of the program; noise drawn for
              the batch as a whole, where the library has a key for each example and times that are spread evenly
    closure   the library's own losses, closed over in the same way: what that alone does

All make the same update with the same optimiser. For noise that is handed in, hand and library give the same value and
gradient, which is checked before anything is timed.

Ratios are over momentax's, above one where momentax is the faster or the smaller: compile time (cold, the median over
two rounds), bytes of the lowered program, operations, and the median over rounds of the time of one update.
"""

import io
import os
import sys
from functools import partial
from itertools import product
from typing import Any

os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _formulas import Given, aux_loss, drawn, instant_loss, student_loss
from _measure import alternated, building, counts, lowered, ratio, record
from _networks import OPTIMIZER, SHAPE, players, selected

import momentax as mm

BATCH, ROUNDS, BUILDS = 32, 20, 2
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


def size(program):
    """Bytes of a lowered program, its constants among them."""
    code = io.BytesIO()
    program.compiler_ir().operation.write_bytecode(code)
    return len(code.getvalue())


def steps(name, teacher, other, model, state):
    """A step of each kind with its arguments but a batch and a key; what is closed over is bound already."""
    loss, net_state = ours(teacher, other)[name], OPTIMIZER.init(eqx.filter(model.net, eqx.is_inexact_array))
    return {
        "momentax": (library_step, loss, model, state),
        "closure": (partial(library_step, loss), model, state),
        "by hand": (partial(hand_step, theirs(teacher.net)[name]), other.net, model.net, net_state),
    }


def compared(name, make, rounds):
    """The row of each kind: that over momentax."""
    keys = jax.random.split(jax.random.key(0), 5)
    model, state, _ = eqx.filter_jit(players)(make, keys[0])
    teacher, other = (moved(model, key) for key in keys[1:3])
    x = jax.random.normal(keys[3], (BATCH, *SHAPE))
    check(name, teacher, other, moved(model, keys[4]), x, keys[3])
    taken = {kind: (*step, x, keys[4]) for kind, step in steps(name, teacher, other, model, state).items()}
    programs = {kind: partial(lowered, *step) for kind, step in taken.items()}
    builds, low = building(programs, BUILDS), {kind: program() for kind, program in programs.items()}
    compiled = {kind: program.compile() for kind, program in low.items()}
    arrays = {kind: eqx.filter(step[1:], eqx.is_array) for kind, step in taken.items()}
    times = alternated({kind: partial(program, arrays[kind]) for kind, program in compiled.items()}, rounds)
    exact = {kind: {"program": size(low[kind]), "flops": counts(compiled[kind])["flops"]} for kind in taken}
    for kind in ("by hand", "closure"):
        row: dict[str, Any] = {"kind": kind, "compile": ratio(builds[kind], builds["momentax"])["median"]}
        row |= {count: number / exact["momentax"][count] for count, number in exact[kind].items()}
        yield row | {"step": ratio(times[kind], times["momentax"]), "seconds": min(times["momentax"])}


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
    rows, columns = [], ("compile", "program", "flops")
    print(f"{'network':<10}{'update':<10}{'':<10}" + "".join(f"{column:>10}" for column in (*columns, "step", "best")))
    for (network, make), name in product(selected(names).items(), ("student", "aux", "instant")):
        for row in compared(name, make, rounds):
            rows.append({"network": network, "update": name} | row)
            figures = [row[column] for column in columns] + list(row["step"].values())
            print(f"{network:<10}{name:<10}{row['kind']:<10}" + "".join(f"{figure:>10.3f}" for figure in figures))
            told = {"batch": BATCH, "rounds": rounds, "rows": rows}
            record(target, " ".join(["naive.py", target, *names]), **told)


if __name__ == "__main__":
    main(*sys.argv[1:])
