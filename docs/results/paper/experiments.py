"""Do few steps of a student do what many of its teacher do? The paper's experiments, at the size of two CPU cores.

    python docs/results/paper/experiments.py distil fashion-mnist runs/fashion-mnist
    python docs/results/paper/experiments.py measure fashion-mnist runs/fashion-mnist docs/results/paper

`plan.py` says what there is. `distil` makes what is missing, run by run. `measure` draws 10,000 samples from every
network of the runs that are finished and gathers their figures in a file of the data's name; those that it has of the
same run are not made again. A second process beside the first takes other runs, once the teacher is there, and other
drawings; a signal stops either, and the same command goes on.
"""

import contextlib
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
from momentax.recipes._lock import Lock
from momentax.recipes._report import versions
from momentax.recipes._settings import Draw

SAMPLES, SEED, PICTURES = 10_000, 0, 400
SCRIPT = "docs/results/paper/experiments.py"
FEATURES = ("pixels", "classifier", "efficientnet")


def distil(data: str, place: Path) -> None:
    """Every run of the plan, the first with the teacher that the others take."""
    if (place / FIRST).exists() and not (place / FIRST / "teacher.json").exists():
        raise SystemExit(f"needs the teacher of {place / FIRST}; got none yet; do start again once it is trained")
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
        jax.clear_caches()


def measure(data: str, place: Path, target: Path) -> None:
    """Every drawing of the plan whose run is finished, the quick ones first."""
    dataset, test, folder = load(data), test_split(data), Folder(place / FIRST)
    images = len(dataset.x) if test else SAMPLES
    made = {name: features(name, dataset, test, folder) for name in FEATURES}
    against = {name: reference(by, dataset, test, SAMPLES, images) for name, by in made.items()}
    classifier, _ = taught(dataset, test, folder)
    told: dict[str, Any] = {"command": f"python {SCRIPT} measure {data} runs/{data} docs/results/paper", "data": data}
    told |= {"samples": SAMPLES, "images": images, "seed": SEED, "versions": versions()}
    told["features"] = {name: of.features.told | {"floor": of.floor} for name, of in against.items()}
    for drawing in sorted(drawings(data), key=lambda drawing: drawing.k):
        kept = Folder(place / "drawings" / drawing.name)
        kept.path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(BlockingIOError), Lock(kept.path):
            if (place / drawing.run / "report.json").exists() and not known(drawing, place):
                found = figures(drawing, place, kept.path, against, classifier)
                kept.write_json("figures.json", found)
                print(f"{drawing.name}: {_brief(found)}", flush=True)
        Folder(target.parent).write_json(target.name, told | gathered(data, place))


def known(drawing: Drawing, place: Path) -> dict[str, Any] | None:
    """The figures of this drawing of the run as it is; none where they are missing, or of an earlier run."""
    run, kept = Folder(place / drawing.run), Folder(place / "drawings" / drawing.name)
    if not run.has("report.json") or not kept.has("figures.json"):
        return None
    found = kept.read_json("figures.json")
    return found if found["command"] == _told(run)["command"] else None


def gathered(data: str, place: Path) -> dict[str, Any]:
    """The figures that there are, and the runs that are finished."""
    finished = {name: Folder(place / name) for name in runs(data)}
    return {
        "figures": {drawing.name: found for drawing in drawings(data) if (found := known(drawing, place))},
        "runs": {name: _told(run) for name, run in finished.items() if run.has("report.json")},
    }


def figures(
    drawing: Drawing, place: Path, kept: Path, against: dict[str, Reference], classifier: Any
) -> dict[str, Any]:
    """Of one drawing, on all features; how many are what they were asked to be; and some pictures, which are kept."""
    config = Draw(output=place / drawing.run, model=drawing.model, k=drawing.k, **drawing.sampler)
    finished = opened(config, SAMPLES)
    samples = finished.drawn(SEED)
    labels = labels_like(finished.dataset, SAMPLES, SEED)
    pictures = {"x": samples[:PICTURES], **({} if labels is None else {"y": labels[:PICTURES]})}
    np.savez(kept / "samples.npz", allow_pickle=False, **pictures)
    found = {name: _own(measured(of, samples)) for name, of in against.items()}
    told = {"command": _told(Folder(place / drawing.run))["command"], "versions": versions()}
    return told | found | {"agreement": agreement(classifier, samples, labels)}


def agreement(classifier: Any, samples: np.ndarray, labels: Any) -> float:
    """The part of the samples that the classifier takes for what they were asked to be."""
    seen = eqx.filter_jit(lambda x: jnp.argmax(jax.vmap(classifier)(x), -1))
    parts = [np.asarray(seen(samples[start : start + 500])) for start in range(0, len(samples), 500)]
    return float(np.mean(np.concatenate(parts) == labels))


def _own(figures: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if isinstance(value, float)}


def _brief(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {figures[name]['frechet_distance']:.4g}" for name in FEATURES)


def _told(run: Folder) -> dict[str, Any]:
    report = run.read_json("report.json")
    return {name: report[name] for name in ("command", "versions", "seconds", "losses") if name in report}


def main(what: str, data: str, place: str, target: str = "") -> None:
    """Distils or measures."""
    if what == "distil":
        distil(data, Path(place))
    else:
        measure(data, Path(place), Path(target) / f"{data}.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
