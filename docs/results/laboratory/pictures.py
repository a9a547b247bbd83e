"""The pictures of the laboratory: curves of losses beside what they estimate, and samples as densities."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image


def draw_curves(target: Path, rows: list[dict[str, Any]]) -> None:
    """A row of panels by algorithm, a column by k: gap, loss, and the loss's expectation, over the rounds."""
    names, steps = (list(dict.fromkeys(row[key] for row in rows)) for key in ("algorithm", "k"))
    figure = Figure(figsize=(2.6 * len(steps), 2.1 * len(names)), dpi=72, layout="constrained")
    axes = figure.subplots(len(names), len(steps), squeeze=False, sharex=True)
    for row in rows:
        axis = axes[names.index(row["algorithm"]), steps.index(row["k"])]
        axis.set(title=f"{row['algorithm']}, k = {row['k']}", yscale="log")
        for key, style in (("value", "0.75"), ("expected", "C1"), ("gap", "C0")):
            points = [(point["rounds"], point[key]) for point in row["curve"] if point.get(key, 0) > 0]
            axis.plot(*zip(*points, strict=True), color=style, label={"value": "loss, as met"}.get(key, key))
        axis.grid(visible=True, alpha=0.2)
    for axis in axes.ravel():
        axis.set_visible(axis.has_data())
    axes[0, 0].legend(fontsize=8)
    figure.savefig(target, format="png")
    Image.open(target).convert("RGB").quantize(16).save(target, optimize=True)


def draw_samples(target: Path, sets: dict[tuple[str, int], Any]) -> None:
    """A row by algorithm, with the data and the teacher in many steps last; one panel a set of samples."""
    order = [(name, k) for name in ("teacher", "alternating", "instant") for k in (1, 2, 4, 8)]
    order[4:4], order[9:9], order[14:14] = [("teacher", 256)], [("data", 0)], [("", 0)]
    figure = Figure(figsize=(7.5, 4.9), dpi=72, layout="constrained")
    for axis, name in zip(figure.subplots(3, 5).ravel(), order, strict=True):
        axis.set_axis_off()
        if name in sets:
            counts = np.histogram2d(*np.asarray(sets[name]).T, bins=64, range=[[-1.5, 1.5]] * 2)[0]
            axis.imshow(np.sqrt(np.minimum(counts, 60)).T, cmap="gray_r", interpolation="nearest", origin="lower")
            axis.set_title(name[0] if name[0] == "data" else f"{name[0]}, {name[1]}", fontsize=9)
    figure.savefig(target, format="png")
    Image.open(target).convert("L").save(target, optimize=True)
