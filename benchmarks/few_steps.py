"""Do a shifted schedule or dropout help a student of few steps?

    python benchmarks/few_steps.py runs/digits docs/results/few_steps.json [K ...]

takes the teacher of a finished run (`make distill`), distils it with both players at once for 500 updates at batch
256, one change at a time, and prints one table: the Frechet distance of 5,000 samples to the data, on pixels, and that
of the teacher in as many steps of the same schedule. A shift is of the log-SNRs of rollouts and samplers alike; dropout
is of the student's hidden values while it is distilled, and not while it samples.
"""

import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from _measure import record

import momentax as mm
from momentax.recipes._batches import batches
from momentax.recipes._data import load
from momentax.recipes._evaluation import distances, labels_like
from momentax.recipes._folder import Folder
from momentax.recipes._state import player, updating
from momentax.recipes._teacher import network

UPDATES, BATCH, RATE, SAMPLES = 500, 256, 1e-3, 5000
STEPS = (1, 2, 4)
VARIANTS = [{}, *({"shift": shift} for shift in (-1.0, 1.0)), {"dropout": 0.1}]


class Dropping(eqx.Module):
    """An MLP whose hidden values drop out after each block, for a key; without one it is the MLP."""

    net: mm.nn.MLP
    dropout: eqx.nn.Dropout

    def __call__(self, z: Any, t: Any, cond: Any = None, *, key: Any = None) -> Any:
        net, emb = self.net, self.net.embedding(t, cond)
        keys = [None] * len(net.blocks) if key is None else jax.random.split(key, len(net.blocks))
        h = net.first(z.ravel())
        for block, own in zip(net.blocks, keys, strict=True):
            h = self.dropout(block(h, emb), key=own, inference=own is None)
        return net.last(jax.nn.silu(h)).reshape(net.shape)


def distilled(dataset, teacher, k, *, shift=0.0, dropout=0.0):
    """A student after the updates."""
    rollout = mm.Rollout(mm.shifted(mm.CosineSchedule(), shift), k)
    loss = mm.joint_loss(teacher, rollout=rollout, weight=mm.flat_weight)
    own = mm.paper_optimizer(RATE, UPDATES, warmup=UPDATES // 10)
    optimizer = optax.partition({"student": own, "aux": own}, ("student", "aux"))
    start = teacher
    if dropout:
        start = eqx.tree_at(lambda model: model.net, teacher, Dropping(teacher.net, eqx.nn.Dropout(dropout)))
    players, update = player((start, teacher), optimizer), updating(optimizer)
    examples, key = batches(dataset, BATCH, 1, hidden=0.0), jax.random.key(0)
    for n in range(UPDATES):
        x, cond = next(examples)
        players, _ = update(loss, players, x, jax.random.fold_in(key, n), cond)
    examples.close()
    student = players.model[0]
    return eqx.tree_at(lambda model: model.net, student, student.net.net) if dropout else student


def distance(model, dataset, k, shift):
    """Of samples in k steps of the schedule to the data."""
    sampler = mm.ancestral_sampler(model, k, schedule=mm.shifted(mm.CosineSchedule(), shift))
    keys, labels = jax.random.split(jax.random.key(0), SAMPLES), jnp.asarray(labels_like(dataset, SAMPLES, 0))
    drawn = eqx.filter_jit(jax.vmap(lambda key, label: sampler(key, dataset.x.shape[1:], label)))(keys, labels)
    return round(distances(jax.device_get(jnp.clip(drawn, -1, 1)), dataset)["frechet_distance"], 4)


def main(source: str, target: str, *steps: str) -> None:
    """Prints the table row by row and writes it, with what made it."""
    dataset, rows = load("digits"), []
    teacher = Folder(Path(source)).read_weights("teacher.eqx", network(dataset, jax.random.key(0)))
    for k in map(int, steps or STEPS):
        for variant in VARIANTS:
            student, shift = distilled(dataset, teacher, k, **variant), variant.get("shift", 0.0)
            row = {name: distance(of, dataset, k, shift) for name, of in (("student", student), ("teacher", teacher))}
            rows.append({"k": k, "changed": variant} | row)
            print(f"{k:>2} {variant!s:<20}{row['student']:>9.3f}{row['teacher']:>9.3f}", flush=True)
            told = {"seed": 0, "updates": UPDATES, "batch": BATCH, "rows": rows}
            record(target, " ".join(["few_steps.py", source, target, *steps]), **told)


if __name__ == "__main__":
    main(*sys.argv[1:])
