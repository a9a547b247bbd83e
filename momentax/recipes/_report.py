"""The report of a run: everything that makes it again, and every figure it came to."""

import importlib.metadata
import platform
import shlex
import time
from typing import Any

import jax
import numpy as np

from ._data import Dataset
from ._evaluation import FEATURES
from ._settings import Run, as_json


def versions() -> dict[str, str]:
    """Of everything that has a say in the figures."""
    packages = ("momentax", "jax", "jaxlib", "equinox", "optax", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def report(
    config: Run,
    dataset: Dataset,
    teacher: dict[str, Any],
    figures: dict[str, Any],
    floor: dict[str, Any],
    curves: dict[str, list[float]],
    distances: dict[int, float],
    skipped: dict[str, int],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Plain values: command, configuration, seed, versions, data, figures and their floor, losses, times."""
    return {
        "command": command(config),
        "configuration": as_json(config),
        "seed": config.seed,
        "versions": versions(),
        "device": f"{jax.devices()[0].device_kind}, {jax.device_count()} of them",
        "date": time.strftime("%Y-%m-%d"),
        "data": {
            "name": dataset.name,
            "examples": len(dataset.x),
            "shape": dataset.x.shape[1:],
            "source": dataset.source,
        },
        "teacher": teacher,
        "features": f"{FEATURES}, {dataset.x[0].size} numbers in [-1, 1]",
        "figures": figures,
        "floor": floor,
        "losses": {name: _ends(values) for name, values in curves.items()},
        "skipped_updates": skipped,
        **_judged(distances),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def command(config: Run) -> str:
    """The command line that makes this run again, with every default written out."""
    given = {name: value for name, value in as_json(config).items() if value is not None}
    flags = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given.items()]
    folder = config.output.name if config.output.is_absolute() else config.output
    return " ".join(["momentax distill", *flags, f"--output {shlex.quote(str(folder))}"])


def table(written: dict[str, Any]) -> str:
    """The figures as lines of text: what they are, and the floor, if it was measured, before all models'."""
    lines = [_header(written), f"{'model':<10}{'steps':>6}{'Frechet':>10}{'precision':>11}{'recall':>8}"]
    if "floor" in written:
        lines.append(f"{'data (floor)':<16}{_row(written['floor'])}")
    for model, by_steps in written["figures"].items():
        lines += [f"{model:<10}{steps:>6}{_row(figures)}" for steps, figures in by_steps.items()]
    return "\n".join(lines)


def _header(written: dict[str, Any]) -> str:
    told = f"Frechet distances to the data on {written.get('features', FEATURES)}: lower is better"
    if "floor" not in written:
        return told
    floor, samples = written["floor"], written["configuration"]["samples"]
    fewer = f", fewer than the {samples} samples, which makes it larger" if floor["samples"] < samples else ""
    return f"{told}\nthe floor: {floor['samples']} images of the {floor['of']} against {floor['images']} others{fewer}"


def _row(figures: dict[str, Any]) -> str:
    return f"{figures['frechet_distance']:>10.3f}{figures['precision']:>11.3f}{figures['recall']:>8.3f}"


def compared(written: dict[str, Any]) -> str:
    """An evaluation as lines of text: what it is of, and each figure beside its floor."""
    floor, model = written["floor"], f"{written['model']}, {written['k']} steps"
    lines = [
        f"on {written['features']}",
        f"{written['samples']} samples against {written['images']} images; the floor: {floor['samples']} images of the"
        f" {floor['of']} against {floor['images']}",
        f"{'':<24}{model:>20}{'floor':>12}",
    ]
    figures = (name for name, value in floor.items() if isinstance(value, float))
    return "\n".join([*lines, *(f"{name:<24}{written[name]:>20.4g}{floor[name]:>12.4g}" for name in figures)])


def _judged(distances: dict[int, float]) -> dict[str, Any]:
    """The student's distances on the way, by updates, and what is in `student-best.eqx`; nothing without any."""
    if not distances:
        return {}
    best = min(distances, key=lambda updates: distances[updates])
    return {"distances": distances, "best": {"updates": best, "frechet_distance": distances[best]}}


def _ends(values: list[float]) -> dict[str, float]:
    tenth = max(1, len(values) // 10)
    return {
        "updates": len(values),
        "first_tenth": float(np.mean(values[:tenth])),
        "last_tenth": float(np.mean(values[-tenth:])),
    }
