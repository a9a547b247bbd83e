"""Do both players at once, on one rollout, learn as much as in turns, and for how much less?

    python benchmarks/joint.py docs/results/joint.json runs/digits-0 runs/digits-1 runs/digits-2

takes the teachers of finished runs (`momentax distill --seed N --output runs/digits-N`), distils each in turns for
3,000 updates, at once for 1,500 (as many of each player) and for 2,143 (as many forward passes), all else being the
preset, and prints one table: the Frechet distance of 5,000 samples in 8 steps to the data, on pixels, and the cost in
forward passes of a batch, a gradient being three.
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
VARIANTS: list[Any] = [("alternating", 3000), ("joint", 1500), ("joint", 2143)]


def main(target: str, *sources: str) -> None:
    """Prints the table row by row and writes it, with what made it."""
    dataset, rows = load("digits"), []
    for source in sources:
        folder = Folder(Path(source))
        seed = folder.read_json("report.json")["seed"]
        teacher = folder.read_weights("teacher.eqx", network(dataset, jax.random.key(0)))
        for algorithm, updates in VARIANTS:
            config = resolved(Distill(algorithm=algorithm, updates=updates, seed=seed), dataset)
            phase = distillation(config, dataset, teacher, jax.random.key(seed))
            with tempfile.TemporaryDirectory() as place, contextlib.closing(phase.examples):
                state = train(phase, Journal(Folder(Path(place)), phase.name, 0, {}), updates)
            row = {"seed": seed, "algorithm": algorithm, "updates": updates, "forwards": updates * FORWARDS[algorithm]}
            rows.append(row | {"frechet_distance": round(distance(config, dataset, state.student), 4)})
            print(*rows[-1].values(), flush=True)
            record(target, " ".join(["joint.py", target, *sources]), rows=rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
