"""The tables and pictures of the measured figures.

    python docs/results/paper/pages.py runs/fashion-mnist docs/results/paper/fashion-mnist.json

prints the tables in Markdown and draws the pictures beside the JSON, of samples and losses that the runs' folder has.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from plan import FIRST, GUIDANCE, GUIDED_STEPS, KERNELS, SEARCH, SEEDS, STEPS, drawings

from momentax import checkpoint
from momentax.recipes._folder import Folder
from momentax.recipes._plots import _smoothed, plot_samples

COLUMNS = {
    "FD, EfficientNet": ("efficientnet", "frechet_distance", "{:.2f}"),
    "KD, EfficientNet": ("efficientnet", "kernel_distance", "{:.4f}"),
    "FD, classifier": ("classifier", "frechet_distance", "{:.2f}"),
    "score": ("classifier", "classifier_score", "{:.2f}"),
    "precision": ("efficientnet", "precision", "{:.3f}"),
    "recall": ("efficientnet", "recall", "{:.3f}"),
    "sliced W, pixels": ("pixels", "sliced_wasserstein", "{:.4f}"),
}
OF_KERNELS = {"posterior": "", "DDIM": "-ddim", "re-noising": "-renoise"}
SCALES = GUIDANCE["fashion-mnist"]
Figures = dict[str, dict[str, Any]]


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """A row by name, of one set of figures or the mean and standard deviation of several."""
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, of in rows.items():
        cells = (cell([found[features][figure] for found in of], form) for features, figure, form in COLUMNS.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(values: list[float], form: str) -> str:
    """One value, or several as mean and standard deviation."""
    if len(values) == 1:
        return form.format(values[0])
    return f"{form} ± {form}".format(statistics.mean(values), statistics.stdev(values))


def steps(told: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Tables 1 and 2 of the paper: the data's floor, the teacher, the students."""
    found, rows = told["figures"], {f"data against data ({_floor_of(told)})": [_floor(told)]}
    teacher = [drawing.name for drawing in drawings(told["data"]) if drawing.name.startswith("teacher, ")]
    rows |= {name: [found[name]] for name in sorted(teacher, key=_steps) if name in found}
    for algorithm, ks in STEPS[told["data"]].items():
        for k in ks:
            of = [found[name] for seed in SEEDS if (name := f"{algorithm}-{k}-{seed}") in found]
            rows |= {f"**{algorithm}, {_plural(k)}**{_seeds(of)}": of} if of else {}
    return rows


def kernels(found: Figures) -> dict[str, list[dict[str, Any]]]:
    """Section 5.2: what the rollouts and the sampler do with the student's prediction."""
    names = {kernel: [f"alternating-8-{seed}{ending}" for seed in SEEDS] for kernel, ending in OF_KERNELS.items()}
    rows = {kernel: [found[name] for name in of if name in found] for kernel, of in names.items()}
    return {f"{kernel}{_seeds(of)}": of for kernel, of in rows.items() if of}


def guidance(found: Figures) -> dict[str, dict[float, dict[str, Any]]]:
    """Section 5.3: by whom, the figures at every scale."""
    who = {
        f"teacher, {GUIDED_STEPS} steps": lambda scale: f"teacher of {FIRST}-guided-{scale:g}, {GUIDED_STEPS} steps",
        "alternating, 8 steps": lambda scale: f"{FIRST}-guided-{scale:g}",
        "instant, 8 steps": lambda scale: f"instant-8-0-guided-{scale:g}",
    }
    without = {
        f"teacher, {GUIDED_STEPS} steps": f"teacher, {GUIDED_STEPS} steps",
        "alternating, 8 steps": FIRST,
        "instant, 8 steps": "instant-8-0",
    }
    names = {model: {0.0: without[model]} | {scale: name(scale) for scale in SCALES} for model, name in who.items()}
    return {model: {w: found[name] for w, name in of.items() if name in found} for model, of in names.items()}


def guidance_table(found: Figures) -> str:
    """Quality and fidelity at every scale."""
    lines = ["| guidance | " + " | ".join(f"{model}: FD | agreement" for model in guidance(found)) + " |"]
    lines.append("|---" * (1 + 2 * len(guidance(found))) + "|")
    for scale in (0.0, *SCALES):
        cells = [of.get(scale) for of in guidance(found).values()]
        shown = (
            f"{of['efficientnet']['frechet_distance']:.2f} | {of['agreement']:.3f}" if of else " | " for of in cells
        )
        lines.append(f"| {scale:g} | {' | '.join(shown)} |")
    return "\n".join(lines)


def search(found: Figures) -> dict[str, list[dict[str, Any]]]:
    """Students of other settings, and teachers of another schedule."""
    rows = {f"as {FIRST}": FIRST} | {f"`{' '.join(changed)}`": f"search-{name}" for name, changed in SEARCH.items()}
    rows |= {f"teacher, {k} steps, `--schedule cosine`": f"teacher of search-cosine, {k} steps" for k in (8, 64)}
    return {title: [found[name]] for title, name in rows.items() if name in found}


def draw_guidance(found: Figures, target: Path) -> None:
    """Fidelity against quality, a curve for each model."""
    figure = Figure(figsize=(5, 3.6), dpi=100, layout="constrained")
    axis = figure.subplots()
    for model, of in guidance(found).items():
        x, y = ([value(row) for row in of.values()] for value in (_agreement, _distance))
        axis.plot(x, y, marker=".", label=model)
        for scale, a, b in zip(of, x, y, strict=True):
            axis.annotate(f"{scale:g}", (a, b), fontsize=8)
    axis.set(xlabel="classified as asked", ylabel="Frechet distance, EfficientNet-Lite0", yscale="log")
    axis.grid(visible=True, alpha=0.2)
    axis.legend(fontsize=8)
    figure.savefig(target, format="png")


def draw_losses(place: Path, names: list[str], target: Path) -> None:
    """Section 5.4: the students' losses on a log axis, smoothed over a fiftieth of the run."""
    figure = Figure(figsize=(3.6 * len(names), 3), dpi=100, layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        values = np.array([row["student"] for _, row in checkpoint.read_losses(place / name) if "student" in row])
        smooth = _smoothed(values)
        axis.plot(np.where(values > 0, values, np.nan), color="0.8", linewidth=0.5)
        axis.plot(np.where(smooth > 0, smooth, np.nan), linewidth=1.2)
        axis.set(title=name, xlabel="updates of the student", yscale="log")
        axis.grid(visible=True, which="both", alpha=0.2)
    figure.savefig(target, format="png")


def pictures(place: Path, names: dict[str, str], label: int | None = None) -> dict[str, Any]:
    """Samples by title, of one class or as they come; those that were drawn."""
    rows = {}
    for title, name in names.items():
        samples = place / "drawings" / name / "samples.npz"
        if samples.exists():
            with np.load(samples, allow_pickle=False) as drawn:
                rows[title] = drawn["x"] if label is None else drawn["x"][drawn["y"] == label]
    return rows


def _floor(told: dict[str, Any]) -> dict[str, Any]:
    return {name: of["floor"] for name, of in told["features"].items()}


def _floor_of(told: dict[str, Any]) -> str:
    of = told["features"]["pixels"]["floor"]
    return f"{of['samples']:,} of the {of['of']} against {of['images']:,}"


def _seeds(of: list[Any]) -> str:
    return f", {len(of)} seeds" if len(of) > 1 else ""


def _plural(k: int) -> str:
    return f"{k} step{'s' * (k > 1)}"


def _steps(name: str) -> int:
    return int(name.split()[1])


def _agreement(row: dict[str, Any]) -> float:
    return row["agreement"]


def _distance(row: dict[str, Any]) -> float:
    return row["efficientnet"]["frechet_distance"]


def tables(told: dict[str, Any]) -> list[str]:
    """All of a data set's, in Markdown."""
    found = told["figures"]
    further = [table(kernels(found)), guidance_table(found), table(search(found))] if KERNELS[told["data"]] else []
    return [table(steps(told)), *further]


def main(place: str, source: str) -> None:
    """Prints the tables and draws the pictures."""
    told, folder, runs = json.loads(Path(source).read_text()), Folder(Path(source).parent), Path(place)
    data, found = told["data"], told["figures"]
    print("\n\n".join(tables(told)))
    shown = {f"teacher, {k} steps": f"teacher, {k} steps" for k in (1024, 256, 64, 8)}
    shown |= {f"{name}, {_plural(k)}": f"{name}-{k}-0" for name in ("alternating", "instant") for k in (8, 4, 2, 1)}
    plot_samples(folder, f"{data}-samples.png", pictures(runs, shown))
    if KERNELS[data]:
        of_kernels = {kernel: f"{FIRST}{ending}" for kernel, ending in OF_KERNELS.items()}
        plot_samples(folder, f"{data}-kernels.png", pictures(runs, of_kernels, 7))
        draw_guidance(found, folder.path / f"{data}-guidance.png")
    finished = [name for name in (FIRST, "alternating-1-0", "instant-8-0") if (runs / name / "losses.jsonl").exists()]
    draw_losses(runs, finished, folder.path / f"{data}-losses.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
