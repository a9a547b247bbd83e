"""The pictures of a run: rows of samples, and curves of losses."""

from typing import Any

import numpy as np
from jaxtyping import Float

from ._folder import Folder
from ._formats import require

_WIDTH = 9.92
_SMALL = 16


def columns(images: Float[np.ndarray, "n c h w"]) -> int:
    """How many images a row shows: 16, or 8 of small ones."""
    return 8 if max(images.shape[2:]) <= _SMALL else 16


def plot_samples(folder: Folder, name: str, rows: dict[str, Float[np.ndarray, "n c h w"]]) -> None:
    """One labelled row of up to 16 images each, or of 8 that are small."""
    shown = columns(next(iter(rows.values())))
    height = 0.1 + (0.04 + _WIDTH / shown) * len(rows)
    figure = require("matplotlib.figure").Figure(figsize=(2.6 + _WIDTH, height), dpi=100)
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (label, images) in zip(axes, rows.items(), strict=True):
        axis.imshow(_strip(images[:shown]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.subplots_adjust(left=2.5 / figure.get_figwidth(), right=0.995, top=0.99, bottom=0.01, hspace=0.06)
    _save(figure, folder, name)


def plot_curves(folder: Folder, curves: dict[str, list[float]], distances: dict[int, float]) -> None:
    """`curves.png`: each loss by update, and the student's distance where it was measured, on log axes.

    A loss is shown as it is and smoothed; what is not positive has no place.
    """
    panels = len(curves) + bool(distances)
    figure = require("matplotlib.figure").Figure(figsize=(4.2 * panels, 3.2), dpi=100, layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if distances:
        axes[-1].plot(list(distances), list(distances.values()), color="C0", linewidth=1.2, marker=".")
        axes[-1].set(title="Frechet distance of the student", xlabel="updates", yscale="log")
    for axis, (name, values) in zip(axes, curves.items(), strict=False):
        smooth = _smoothed(np.asarray(values))
        axis.plot(np.where(np.asarray(values) > 0, values, np.nan), color="0.8", linewidth=0.5)
        axis.plot(np.where(smooth > 0, smooth, np.nan), color="C0", linewidth=1.2)
        axis.set(title=f"loss of the {name}", xlabel="its updates", yscale="log")
    for axis in axes:
        _number(axis)
        axis.grid(visible=True, which="both", alpha=0.2)
    _save(figure, folder, "curves.png")


def _number(axis: Any) -> None:
    """Plain numbers on a log axis: round ones within a decade or so, powers of ten beyond."""
    ticker, (low, high) = require("matplotlib.ticker"), axis.get_ylim()
    if high < 30 * low:
        axis.yaxis.set_major_locator(ticker.MaxNLocator(5))
        axis.yaxis.set_minor_locator(ticker.NullLocator())
    axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())


def _strip(images: Float[np.ndarray, "n c h w"]) -> Float[np.ndarray, "..."]:
    padded = np.pad((np.clip(images, -1, 1) + 1) / 2, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1.0)
    strip = np.concatenate(list(np.moveaxis(padded, 1, -1)), axis=1)
    return strip[..., 0] if strip.shape[-1] < 3 else strip[..., :3]


def _smoothed(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    window = max(1, len(values) // 50)
    total = np.cumsum(np.concatenate([np.zeros(1), values]))
    first = np.maximum(np.arange(1, len(total)) - window, 0)
    return (total[1:] - total[first]) / (np.arange(1, len(total)) - first)


def _save(figure: Any, folder: Folder, name: str) -> None:
    folder.write(name, lambda file: figure.savefig(file, format="png"))
