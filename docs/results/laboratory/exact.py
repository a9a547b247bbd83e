"""Do the losses say how far the student's moments are from the teacher's, and is a student of no gap the data?

    python docs/results/laboratory/exact.py docs/results/laboratory/exact.json

On a line everything that the losses estimate is known: the data are a mixture of three Gaussians, the teacher is their
exact denoiser, and the moment gap of equation (4), the norm of equation (9) and the distance of a k-step sampler to the
data are sums over a grid (`quadrature.py`). Every student is measured on the way, and one table is printed; the curves
are drawn beside the JSON. A run that was stopped goes on where it was: a student that the JSON has is not made anew.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
from distilling import AUX_RATE, BATCH, RATE, Algorithm, alternating, estimated, instant, players, readings, rounds
from mixture import Mixture, copy, line, with_tangents
from pictures import draw_curves
from quadrature import (
    auxiliary_error,
    distance,
    exact_atoms,
    instant_value,
    moment_gap,
    moments,
    student_atoms,
    student_value,
)

import momentax as mm
from momentax.recipes._report import versions

STEPS = (1, 2, 4, 8)
ROUNDS, EVERY = 2000, 200
TURNS = {"alternating": 1, "alternating, 3 turns": 3}
STUDENTS = [
    *[("alternating", k) for k in STEPS],
    *[("alternating, 3 turns", k) for k in (1, 2)],
    *[(name, k) for name in ("instant, network", "instant, mixture") for k in STEPS],
]


def references(data: Mixture) -> dict[str, Any]:
    """Who does not learn: the exact student's gap, and the teacher's distances."""
    return {
        "exact student": {k: moment_gap(moments(exact_atoms(data), k), data) for k in STEPS},
        "teacher": {k: distance(data, data, k) for k in (*STEPS, 16, 64, 256)},
    }


def made(name: str, data: Mixture, k: int, key: jax.Array, count: int) -> tuple[Algorithm, Any, Any]:
    """The algorithm, its teacher and its Lambda."""
    if name in TURNS:
        return alternating(data, k, count, turns=TURNS[name]), data, mm.identity
    teacher = with_tangents(data, key) if name == "instant, network" else data
    precond = estimated(teacher, data, key)
    return instant(teacher, precond, k, count), teacher, precond


def distilled(name: str, data: Mixture, k: int, key: jax.Array, count: int, number: int) -> dict[str, Any]:
    """One student, measured on the way and at the end."""
    algorithm, teacher, precond = made(name, data, k, key, count)

    def measured(current):
        found = moments(student_atoms(data, current.student.model), k)
        if current.aux is None:
            return {"gap": moment_gap(found, data), "expected": instant_value(found, teacher, precond)}
        aux = current.aux.model
        expected, error = student_value(found, data, aux), auxiliary_error(found, data, aux)
        return {"gap": moment_gap(found, data), "expected": expected, "auxiliary": error}

    current = players(copy(data, key), algorithm)
    curve = [{"rounds": 0, **measured(current)}]
    for n, then, met in rounds(algorithm, current, data, key, count):
        current = then
        if n % EVERY == 0:
            curve.append({"rounds": n, "value": met, **measured(current)})
    value, error = readings(algorithm, current, data, jax.random.fold_in(key, count), number)
    row = {"algorithm": name, "k": k, "first_gap": curve[0]["gap"], "gap": curve[-1]["gap"]}
    row |= {"value": value, "error": error, "expected": curve[-1]["expected"]}
    return row | {"distance": distance(data, current.student.model, k), "curve": curve}


def earlier(target: Path, told: dict[str, Any]) -> dict[tuple[str, int], Any]:
    """The students that the same command has made before it was stopped."""
    found = json.loads(target.read_text()) if target.exists() else {}
    same = all(found.get(name) == value for name, value in told.items())
    return {(row["algorithm"], row["k"]): row for row in found["rows"]} if same else {}


def main(target: str, count: int = ROUNDS, number: int = 1000) -> None:
    """Prints the table row by row and writes it, with what made it."""
    data, key = line(), jax.random.key(0)
    told = {"command": f"python docs/results/laboratory/exact.py {target}", "seed": 0, "versions": versions()}
    told |= {"date": time.strftime("%Y-%m-%d"), "rounds": count, "batch": BATCH, "rates": [RATE, AUX_RATE]}
    found, kept, rows = references(data), earlier(Path(target), told), []
    print(f"{'algorithm':<22}{'k':>2}{'teacher':>9}{'student':>9}{'gap':>10}{'to':>10}{'loss':>21}{'expected':>11}")
    for name, k in STUDENTS:
        row = kept.get((name, k)) or distilled(name, data, k, key, count, number)
        rows.append(row)
        print(
            f"{name:<22}{k:>2}{found['teacher'][k]:>9.3f}{row['distance']:>9.3f}{row['first_gap']:>10.2e}"
            f"{row['gap']:>10.2e}{row['value']:>11.2e} ±{row['error']:>8.1e}{row['expected']:>11.2e}",
            flush=True,
        )
        Path(target).write_text(json.dumps(told | {"references": found, "rows": rows}, indent=1) + "\n")
    draw_curves(Path(target).with_suffix(".png"), rows)


if __name__ == "__main__":
    main(sys.argv[1])
