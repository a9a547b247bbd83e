"""Do both players at once, on one rollout, learn as much as in turns, and for how much less?

    python benchmarks/joint.py runs/digits docs/results/joint.json

takes the teacher of a finished run (`make distill`), distils it in turns for 1,500 updates, at once for 750 (as many of
each player) and for 1,071 (as many forward passes), with three seeds, all else being the preset, and prints one table:
the Frechet distance of 5,000 samples in 8 steps to the data, on pixels, and the cost in forward passes of a batch, a
gradient being three.
"""

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from _measure import record

from momentax.recipes._data import load
from momentax.recipes._evaluation import distance
from momentax.recipes._folder import Folder
from momentax.recipes._journal import Journal
from momentax.recipes._phases import distillation
from momentax.recipes._presets import resolved
from momentax.recipes._settings import Distill
from momentax.recipes._teacher import network
from momentax.recipes._training import train

FORWARDS = {"alternating": 5, "joint": 7}
VARIANTS: list[Any] = [("alternating", 1500), ("joint", 750), ("joint", 1071)]
SEEDS = (0, 1, 2)


def main(source: str, target: str) -> None:
    """Prints the table row by row and writes it, with what made it."""
    dataset, rows = load("digits"), []
    teacher = Folder(Path(source)).read_weights("teacher.eqx", network(dataset, jax.random.key(0)))
    for seed in SEEDS:
        for algorithm, updates in VARIANTS:
            config = resolved(Distill(algorithm=algorithm, updates=updates, seed=seed), dataset)
            phase = distillation(config, dataset, teacher, jax.random.key(seed))
            with tempfile.TemporaryDirectory() as place, contextlib.closing(phase.examples):
                state = train(phase, Journal(Folder(Path(place)), phase.name, 0, {}), updates)
            row = {"seed": seed, "algorithm": algorithm, "updates": updates, "forwards": updates * FORWARDS[algorithm]}
            rows.append(row | {"frechet_distance": round(distance(config, dataset, state.student), 4)})
            print(*rows[-1].values(), flush=True)
            record(target, " ".join(["joint.py", source, target]), rows=rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
