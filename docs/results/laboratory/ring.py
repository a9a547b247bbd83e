"""Which algorithm, and in one and two steps which weight, brings a student nearest to eight Gaussians on a ring?

    python docs/results/laboratory/ring.py docs/results/laboratory/ring.json

The teacher is the exact denoiser. Distances are sliced Wasserstein ones of 20,000 samples to as many of the data, over
64 directions; the floor is that of two such sets of the data. One table is printed, and the samples drawn beside the
JSON.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from distilling import AUX_RATE, BATCH, RATE, alternating, estimated, examples, instant, players, rounds, samples
from mixture import Mixture, copy, ring, with_tangents
from pictures import draw_samples

import momentax as mm
from momentax.recipes._report import versions

STEPS = (1, 2, 4, 8)
ROUNDS, SAMPLES = 1000, 20_000
WEIGHTS = {"flat": mm.flat_weight, "adaptive": mm.adaptive_weight, "EDM": mm.edm_weight}
STUDENTS = [
    *[("alternating", "flat", k) for k in STEPS],
    *[("alternating", weight, k) for weight in ("adaptive", "EDM") for k in (1, 2)],
    *[("instant", "flat", k) for k in STEPS],
]


def distilled(algorithm: str, weight: str, data: Mixture, k: int, key: jax.Array, count: int) -> Any:
    """A student after its rounds."""
    if algorithm == "instant":
        teacher = with_tangents(data, key)
        made = instant(teacher, estimated(teacher, data, key), k, count)
    else:
        made = alternating(data, k, count, weight=WEIGHTS[weight])
    *_, (_, last, _) = rounds(made, players(copy(data, key), made), data, key, count)
    return last.student.model


def far(drawn: jax.Array, truth: jax.Array) -> float:
    """The distance of two sets of samples."""
    return round(mm.metrics.sliced_wasserstein(np.asarray(drawn), np.asarray(truth), projections=64), 4)


def main(target: str, count: int = ROUNDS, number: int = SAMPLES) -> None:
    """Prints the table row by row and writes it, with what made it."""
    data, key, start = ring(), jax.random.key(0), time.monotonic()
    for_truth, for_floor, for_samples = jax.random.split(jax.random.fold_in(key, 1), 3)
    truth = examples(data, for_truth, number)
    pictures = {("data", 0): truth} | {("teacher", k): samples(data, k, for_samples, number) for k in (*STEPS, 256)}
    told = {"command": f"python docs/results/laboratory/ring.py {target}", "seed": 0, "versions": versions()}
    told |= {
        "date": time.strftime("%Y-%m-%d"),
        "rounds": count,
        "batch": BATCH,
        "rates": [RATE, AUX_RATE],
        "samples": number,
    }
    told |= {"floor": far(examples(data, for_floor, number), truth)}
    told |= {"teacher": {k: far(pictures["teacher", k], truth) for k in (*STEPS, 256)}}
    print(f"floor {told['floor']:.3f}, teacher {told['teacher']}")
    rows = []
    for algorithm, weight, k in STUDENTS:
        drawn = samples(distilled(algorithm, weight, data, k, key, count), k, for_samples, number)
        rows.append({"algorithm": algorithm, "weight": weight, "k": k, "distance": far(drawn, truth)})
        if weight == "flat":
            pictures[algorithm, k] = drawn
        print(f"{algorithm:<12}{weight:<9}{k:>2}{rows[-1]['distance']:>8.3f}", flush=True)
        told["seconds"] = round(time.monotonic() - start)
        Path(target).write_text(json.dumps(told | {"rows": rows}, indent=1) + "\n")
    draw_samples(Path(target).with_suffix(".png"), pictures)


if __name__ == "__main__":
    main(sys.argv[1])
