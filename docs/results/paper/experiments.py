"""Do few steps of a student do what many of its teacher do? The paper's experiments, at the size of two CPU cores.

    python docs/results/paper/experiments.py distil fashion-mnist runs/fashion-mnist
    python docs/results/paper/experiments.py measure fashion-mnist runs/fashion-mnist docs/results/paper

`plan.py` says what there is. `distil` makes what is missing, run by run; a second process beside the first takes other
runs; a signal stops it, and the same command goes on. `measure` draws 10,000 samples from every network of the runs
that are finished and writes their figures one by one to a file of the data's name; those that it has are not made
again.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from plan import FIRST, Drawing, drawings, runs

from momentax.recipes._classifier import taught
from momentax.recipes._command import run
from momentax.recipes._data import load, test_split
from momentax.recipes._evaluation import labels_like
from momentax.recipes._features import features
from momentax.recipes._figures import Reference, measured, reference
from momentax.recipes._finished import opened
from momentax.recipes._folder import Folder
from momentax.recipes._report import versions
from momentax.recipes._settings import Draw

SAMPLES, SEED, PICTURES = 10_000, 0, 400
FEATURES = ("pixels", "classifier", "efficientnet")


def distil(data: str, place: Path) -> None:
    """Every run of the plan, the first with the teacher that the others take."""
    for name, arguments in runs(data).items():
        folder = place / name
        if name != FIRST and not (folder / "teacher.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            for file in ("teacher.eqx", "teacher.json"):
                shutil.copy(place / FIRST / file, folder / file)
        try:
            run(["distill", *arguments, "--output", str(folder)])
        except SystemExit as ended:
            if not isinstance(ended.code, str):
                raise
            print(f"{name}: {ended.code}", flush=True)


def measure(data: str, place: Path, target: Path) -> None:
    """Every drawing of the plan whose run is finished, the quick ones first."""
    dataset, test, folder = load(data), test_split(data), Folder(place / FIRST)
    told = json.loads(target.read_text()) if target.exists() else {"figures": {}}
    pending = [d for d in drawings(data) if d.name not in told["figures"] and (place / d.run / "report.json").exists()]
    if not pending:
        return
    images = len(dataset.x) if test else SAMPLES
    made = {name: features(name, dataset, test, folder) for name in FEATURES}
    against = {name: reference(by, dataset, test, SAMPLES, images) for name, by in made.items()}
    classifier, _ = taught(dataset, test, folder)
    told["command"] = f"experiments.py measure {data} ..."
    told |= {"data": data, "samples": SAMPLES, "images": images, "seed": SEED, "versions": versions()}
    told["features"] = {name: of.features.told | {"floor": of.floor} for name, of in against.items()}
    for drawing in sorted(pending, key=lambda drawing: drawing.k):
        told["figures"][drawing.name] = figures(drawing, place, against, classifier)
        told["runs"] = {name: _report(place / name) for name in runs(data) if (place / name / "report.json").exists()}
        target.write_text(json.dumps(told, indent=1) + "\n")
        print(f"{drawing.name}: {_brief(told['figures'][drawing.name])}", flush=True)


def figures(drawing: Drawing, place: Path, against: dict[str, Reference], classifier: Any) -> dict[str, Any]:
    """Of one drawing, on all features; how many are what they were asked to be; and some pictures, beside its run."""
    config = Draw(output=place / drawing.run, model=drawing.model, k=drawing.k, **drawing.sampler)
    finished = opened(config, SAMPLES)
    samples = finished.drawn(SEED)
    labels = labels_like(finished.dataset, SAMPLES, SEED)
    pictures = {"x": samples[:PICTURES], **({} if labels is None else {"y": labels[:PICTURES]})}
    np.savez(place / f"{drawing.name}.npz", allow_pickle=False, **pictures)
    found = {name: _own(measured(of, samples)) for name, of in against.items()}
    return found | {"agreement": agreement(classifier, samples, labels)}


def agreement(classifier: Any, samples: np.ndarray, labels: Any) -> float:
    """The part of the samples that the classifier takes for what they were asked to be."""
    seen = eqx.filter_jit(lambda x: jnp.argmax(jax.vmap(classifier)(x), -1))
    parts = [np.asarray(seen(samples[start : start + 500])) for start in range(0, len(samples), 500)]
    return float(np.mean(np.concatenate(parts) == labels))


def _own(figures: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if isinstance(value, float)}


def _brief(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {figures[name]['frechet_distance']:.4g}" for name in FEATURES)


def _report(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    return {name: report[name] for name in ("command", "versions", "seconds", "losses") if name in report}


def main(what: str, data: str, place: str, target: str = "") -> None:
    """Distils or measures."""
    if what == "distil":
        distil(data, Path(place))
    else:
        measure(data, Path(place), Path(target) / f"{data}.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
