"""What do the number of steps, the weight, the schedule and the kernel do to a student of digits?

    python benchmarks/choosing.py runs/digits docs/results/choosing.json

takes the teacher of a finished run (`make distill`), distils it anew for each row, one setting changed at a time, and
prints one table: the Frechet distance to the data, on pixels, of the student and of the teacher in as many steps.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import jax

from momentax.recipes._data import load
from momentax.recipes._evaluation import distances, draw
from momentax.recipes._folder import Folder
from momentax.recipes._journal import Journal
from momentax.recipes._phases import distillation
from momentax.recipes._presets import resolved
from momentax.recipes._report import versions
from momentax.recipes._settings import KERNELS, Distill
from momentax.recipes._teacher import network
from momentax.recipes._training import train

VARIANTS = [
    {},
    {"k": 1},
    {"k": 2},
    {"k": 4},
    {"weight": "v"},
    {"weight": "edm"},
    {"weight": "adaptive"},
    {"k": 1, "weight": "adaptive"},
    {"schedule": "karras"},
    {"schedule": "flow"},
    {"kernel": "ddim"},
    {"kernel": "stochastic"},
    {"kernel": "renoise"},
]


def main(source: str, target: str) -> None:
    """Prints the table row by row and writes it, with what made it."""
    dataset, rows = load("digits"), []
    teacher = Folder(Path(source)).read_weights("teacher.eqx", network(dataset, jax.random.key(0)))
    print(f"{'changed':<40}{'student':>9}{'teacher':>9}")
    for variant in VARIANTS:
        config = resolved(dataclasses.replace(Distill(updates=3000), **variant), dataset)
        phase = distillation(config, dataset, teacher, jax.random.key(config.seed))
        with tempfile.TemporaryDirectory() as place, contextlib.closing(phase.examples):
            state = train(phase, Journal(Folder(Path(place)), phase.name, 0, {}), config.updates)
        student = state.student
        row = {"changed": variant}
        for name, model, kernel in [
            ("student", student, KERNELS[config.kernel]),
            ("teacher", teacher, KERNELS["posterior"]),
        ]:
            samples = draw(model, config.k, config.schedule, kernel, dataset, config.samples, config.seed)
            row[name] = round(distances(samples, dataset)["frechet_distance"], 4)
        rows.append(row)
        print(f"{variant!s:<40}{row['student']:>9.3f}{row['teacher']:>9.3f}", flush=True)
        told = {"command": f"python benchmarks/choosing.py {source} {target}", "updates": 3000, "seed": 0}
        Path(target).write_text(json.dumps(told | {"versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
