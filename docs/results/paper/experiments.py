"""Do few steps of a student do what many of its teacher do? The paper's experiments, at the size of two CPU cores.

    python docs/results/paper/experiments.py distil fashion-mnist runs/fashion-mnist
    python docs/results/paper/experiments.py measure fashion-mnist runs/fashion-mnist

`plan.py` says what there is. `distil` makes what is missing, or the runs that are named, all of one teacher: the first
run's or, before there is one, the record's. `measure` draws from every network of the runs that are finished
and gathers the figures in the record, beside this script; what it has already of the same command is not made again.
`follow` measures, too, and waits for the runs that are not finished. A second process beside any takes other runs and
other drawings; a signal stops them, and the same command goes on.
"""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from plan import FIRST, IMAGES, SAMPLES, Drawing, command, drawings, runs

from momentax.recipes._classifier import taught
from momentax.recipes._command import run
from momentax.recipes._data import Dataset, load, test_split
from momentax.recipes._evaluation import labels_like
from momentax.recipes._features import features
from momentax.recipes._figures import Reference, measured, reference
from momentax.recipes._finished import opened
from momentax.recipes._folder import Folder
from momentax.recipes._lock import Lock
from momentax.recipes._presets import resolved
from momentax.recipes._report import versions
from momentax.recipes._settings import Distill, Draw, as_json

HERE = Path(__file__).parent
SEED, PICTURES, PAUSE = 0, 160, 20
FEATURES = ("pixels", "classifier", "efficientnet")
TEACHER = ("teacher.eqx", "teacher.json")


def distil(data: str, place: Path, *names: str) -> None:
    """The runs of the plan that are missing."""
    for name in names or runs(data):
        _give_teacher(data, place, name)
        try:
            run(["distill", *runs(data)[name], "--output", str(place / name)])
        except SystemExit as ended:
            if not isinstance(ended.code, str):
                raise
            print(f"{name}: {ended.code}", flush=True)
        jax.clear_caches()


def _give_teacher(data: str, place: Path, name: str) -> None:
    """A copy of the one teacher; none for the first run, which may train it."""
    folder, sources = place / name, (place / FIRST, HERE / data)
    source = next((of for of in sources if (of / "teacher.json").exists()), None)
    if source is None and (name != FIRST or folder.exists()):
        raise SystemExit(f"needs the teacher of {place / FIRST}; got none yet; do start again once it is trained")
    if source is not None and not (folder / "teacher.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for file in TEACHER:
            shutil.copy(source / file, folder / file)


def measure(data: str, place: Path, *, wait: bool) -> None:
    """Every drawing of the plan, the quick ones first, whose run is finished, or will be."""
    dataset, test, folder = load(data), test_split(data), Folder(place / FIRST)
    made = {name: features(name, dataset, test, folder) for name in FEATURES}
    against = {name: reference(by, dataset, test, SAMPLES[data], IMAGES[data]) for name, by in made.items()}
    classifier, _ = taught(dataset, test, folder)
    told: dict[str, Any] = {"command": f"python docs/results/paper/experiments.py measure {data} runs/{data}"}
    told |= {"data": data, "samples": SAMPLES[data], "images": IMAGES[data], "seed": SEED, "versions": versions()}
    told["features"] = {name: of.features.told | {"floor": of.floor} for name, of in against.items()}
    tried: set[str] = set()
    while drawing := _next(data, dataset, place, tried, wait=wait):
        tried.add(drawing.name)
        kept = Folder(place / "drawings" / drawing.name)
        kept.path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(BlockingIOError), Lock(kept.path):
            if not known(drawing, data, place):
                found = figures(drawing, data, place, kept.path, against, classifier)
                kept.write_json("figures.json", found)
                print(f"{drawing.name}: {_brief(found)}", flush=True)
        Folder(HERE).write_json(f"{data}.json", told | gathered(data, place))


def _next(data: str, dataset: Dataset, place: Path, tried: set[str], *, wait: bool) -> Drawing | None:
    """The quickest drawing of a finished run that is not known, nor tried; none where there is nothing to wait for."""
    while True:
        missing = [drawing for drawing in drawings(data) if not known(drawing, data, place)]
        missing = [drawing for drawing in missing if drawing.name not in tried]
        made = [drawing for drawing in missing if _is_finished(data, dataset, place, drawing.run)]
        if made:
            return min(made, key=lambda drawing: drawing.k)
        if not missing or not wait:
            return None
        time.sleep(PAUSE)


def _is_finished(data: str, dataset: Dataset, place: Path, name: str) -> bool:
    """Whether the folder has the run that the plan has now."""
    folder, planned = Folder(place / name), tyro.cli(Distill, args=runs(data)[name])
    if not folder.has("report.json"):
        return False
    return folder.read_json("report.json")["configuration"] == as_json(resolved(planned, dataset))


def known(drawing: Drawing, data: str, place: Path) -> dict[str, Any] | None:
    """The figures of this drawing that the runs' folder or the record has, of the plan's command."""
    kept = Folder(place / "drawings" / drawing.name)
    made = kept.read_json("figures.json") if kept.has("figures.json") else None
    both = (made, _recorded(data, "figures").get(drawing.name))
    return next((found for found in both if found and found["command"] == command(data, drawing.run)), None)


def gathered(data: str, place: Path) -> dict[str, Any]:
    """The figures that there are, and the runs that are finished."""
    figures = {drawing.name: found for drawing in drawings(data) if (found := known(drawing, data, place))}
    told = {name: _told(data, place, name) or _recorded(data, "runs").get(name) for name in runs(data)}
    return {"figures": figures, "runs": {name: of for name, of in told.items() if of}}


def figures(
    drawing: Drawing, data: str, place: Path, kept: Path, against: dict[str, Reference], classifier: Any
) -> dict[str, Any]:
    """Of one drawing, on all features; how many are what they were asked to be; and some pictures, which are kept."""
    config = Draw(output=place / drawing.run, model=drawing.model, k=drawing.k, **drawing.sampler)
    finished = opened(config, SAMPLES[data])
    samples = finished.drawn(SEED)
    labels = labels_like(finished.outline, len(samples), SEED)
    pictures = {"x": samples[:PICTURES], **({} if labels is None else {"y": labels[:PICTURES]})}
    np.savez(kept / "samples.npz", allow_pickle=False, **pictures)
    pixels, *others = FEATURES
    found: dict[str, Any] = {pixels: against[pixels].features.further(_flat(samples), against[pixels].data)}
    found |= {name: _own(measured(against[name], samples)) for name in others}
    told = {"command": command(data, drawing.run), "versions": versions()}
    return told | found | {"agreement": agreement(classifier, samples, labels)}


def agreement(classifier: Any, samples: np.ndarray, labels: Any) -> float:
    """The part of the samples that the classifier takes for what they were asked to be."""
    seen = eqx.filter_jit(lambda x: jnp.argmax(jax.vmap(classifier)(x), -1))
    parts = [np.asarray(seen(samples[start : start + 500])) for start in range(0, len(samples), 500)]
    return float(np.mean(np.concatenate(parts) == labels))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def _own(figures: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if isinstance(value, float)}


def _brief(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {figures[name]['frechet_distance']:.4g}" for name in FEATURES[1:])


def _told(data: str, place: Path, name: str) -> dict[str, Any] | None:
    folder = Folder(place / name)
    if not folder.has("report.json"):
        return None
    report = folder.read_json("report.json")
    own = {key: report[key] for key in ("configuration", "versions", "date", "seconds", "losses")}
    return {"command": command(data, name)} | own


def _recorded(data: str, key: str) -> dict[str, Any]:
    record = Folder(HERE)
    return record.read_json(f"{data}.json")[key] if record.has(f"{data}.json") else {}


def _check(got: str, known: Iterable[str]) -> None:
    if got not in known:
        raise SystemExit(f"needs one of {', '.join(known)}; got {got!r}")


def main(what: str, data: str, place: str, *names: str) -> None:
    """Distils or measures."""
    _check(what, ("distil", "measure", "follow"))
    _check(data, SAMPLES)
    for name in names:
        _check(name, runs(data))
    if what == "distil":
        distil(data, Path(place), *names)
    else:
        measure(data, Path(place), wait=what == "follow")


if __name__ == "__main__":
    main(*sys.argv[1:])
