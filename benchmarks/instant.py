"""What makes the instant loss fast on digits: Lambda, a first moment, the weight?

    python benchmarks/instant.py runs/digits docs/results/instant.json

takes the teacher of a finished run (`make distill`), distils it by Algorithm 3 for 2,000 updates at batch 1,024, one
change after the other, and prints one table: the Frechet distance of 5,000 samples in 8 steps to the data, on pixels.
"""

import json
import sys
from pathlib import Path

import jax

import momentax as mm
from momentax.recipes._batches import batches
from momentax.recipes._data import load
from momentax.recipes._evaluation import distances, draw
from momentax.recipes._folder import Folder
from momentax.recipes._report import versions
from momentax.recipes._state import player, updating
from momentax.recipes._teacher import network

UPDATES, BATCH = 2000, 1024
SETTINGS = {"estimated": True, "b1": 0.9, "weight": "flat", "learning_rate": 1e-4}
VARIANTS = [
    {"estimated": False, "b1": 0.0, "weight": "v"},
    {"b1": 0.0, "weight": "v"},
    {"weight": "v"},
    {},
]
WEIGHTS = {"flat": mm.flat_weight, "v": mm.v_weight}


def distilled(dataset, teacher, *, estimated, b1, weight, learning_rate):
    """A student after the updates."""
    schedule, examples, key = mm.CosineSchedule(), batches(dataset, BATCH, 1, hidden=0.0), jax.random.key(0)
    loss = mm.denoising_loss(schedule=schedule, weight=WEIGHTS[weight])
    hundred = (next(examples) for _ in range(100))
    precond = mm.estimate_preconditioner(loss, teacher, hundred, key) if estimated else mm.identity
    instant = mm.instant(teacher, precond, rollout=mm.Rollout(schedule), weight=WEIGHTS[weight])
    optimizer = mm.paper_optimizer(learning_rate, UPDATES, warmup=100, b1=b1)
    student, update = player(teacher, optimizer), updating(optimizer)
    for n in range(UPDATES):
        x, cond = next(examples)
        student, _ = update(instant, student, x, jax.random.fold_in(key, n), cond)
    examples.close()
    return student.model


def main(source: str, target: str) -> None:
    """Prints the table row by row and writes it, with what made it."""
    dataset, rows = load("digits"), []
    teacher = Folder(Path(source)).read_weights("teacher.eqx", network(dataset, jax.random.key(0)))
    for settings in [SETTINGS | variant for variant in VARIANTS]:
        student = distilled(dataset, teacher, **settings)
        samples = draw(student, 8, "cosine", mm.conditional_posterior, dataset, 5000, 0)
        rows.append(settings | {"frechet_distance": round(distances(samples, dataset)["frechet_distance"], 4)})
        print(rows[-1], flush=True)
        told = {"command": f"python benchmarks/instant.py {source} {target}", "seed": 0, "versions": versions()}
        Path(target).write_text(json.dumps(told | {"updates": UPDATES, "batch": BATCH, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
