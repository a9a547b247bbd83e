"""A run from data to report: teacher, student, evaluation, each as far as it was not done before."""

import contextlib
import time
from functools import partial
from typing import Any

import jax
import numpy as np

from momentax import description

from ._data import Dataset, test_split
from ._evaluation import distance, evaluate, labels_like, short
from ._features import features
from ._figures import report_floor
from ._folder import Folder
from ._imported import imported, teacher_files
from ._journal import Journal, clear, curves, distances
from ._key import key_of
from ._phases import Phase, distillation, teaching
from ._plots import plot_curves, plot_samples
from ._report import report, table
from ._settings import KERNELS, Run, as_json, schedule_of
from ._source import FILES, keep
from ._state import State
from ._teacher import Start, described, guide, network, record_of
from ._training import Trial, train
from ._unfinished import begin, completed, end


def distil(config: Run, start: Start, folder: Folder, run: dict[str, Any] | None) -> None:
    """Goes on with an unfinished run, or begins one, and leaves the report and all that belongs to it."""
    if run is None:
        end(folder)
        for name in ("student.json", *FILES):
            folder.remove(name)
        clear(folder)
        run = begin(folder, config, start.dataset)
    else:
        print(f"going on with the unfinished run in {folder.path}", flush=True)
    keys = jax.random.split(key_of(config.seed), 3)
    teacher, record = _teacher(config, start, folder, run, keys)
    student = _student(config, start.dataset, folder, run, teacher, keys[2])
    _describe(config, start, folder, teacher)
    _report(config, start.dataset, folder, run, record, guide(config, teacher), student)
    clear(folder)
    end(folder)
    print(f"{table(folder.read_json('report.json'))}\n{folder.path}: report.json, samples.png, curves.png")


def _teacher(config: Run, start: Start, folder: Folder, run: dict[str, Any], keys: Any) -> tuple[Any, dict[str, Any]]:
    """The teacher and its record: given, or of the folder, or trained now; in the folder from here on."""
    if start.record:
        source = f"{config.teacher_updates} updates old" if start.given is None else f"from {config.teacher}"
        print(f"the teacher of {folder.path}, {source}", flush=True)
        if start.given is not None:
            return start.given, start.record
        return folder.read_weights("teacher.eqx", network(start.dataset, keys[0], config.network)), start.record
    record, teacher = record_of(config, start.dataset, start.given), start.given
    if config.teacher is not None:
        folder.copy("teacher", teacher_files(config.teacher, config.teacher_scheduler))
    else:
        teacher = _taught(config, start.dataset, folder, run, keys)
    folder.write_json("teacher.json", record)
    clear(folder)
    return teacher, record


def _taught(config: Run, dataset: Dataset, folder: Folder, run: dict[str, Any], keys: Any) -> Any:
    journal = Journal(folder, "teacher", 0, _told(config, run))
    untrained = network(dataset, keys[0], config.network)
    state = _trained(teaching(config, dataset, untrained, keys[1]), journal, config)
    folder.write_weights("teacher.eqx", state.average)
    _complete(folder, run, "teacher", journal, state)
    return state.average


def _student(config: Run, dataset: Dataset, folder: Folder, run: dict[str, Any], teacher: Any, key: Any) -> Any:
    if "distillation" in run["phases"]:
        return folder.read_weights("student.eqx", teacher)
    journal = Journal(folder, "distillation", config.teacher_updates, _told(config, run))
    trial = Trial(config.evaluate_every, partial(distance, config, dataset)) if config.evaluate_every else None
    state = _trained(distillation(config, dataset, teacher, key), journal, config, trial)
    student = state.student
    folder.remove("report.json")
    folder.write_weights("student.eqx", student)
    if not journal.distances:
        folder.remove("student-best.eqx")
    _complete(folder, run, "distillation", journal, state)
    clear(folder)
    return student


def _describe(config: Run, start: Start, folder: Folder, teacher: Any) -> None:
    """Writes what `momentax.load`, `sample` and `evaluate` need besides the weights."""
    dataset = start.dataset
    keep(folder, config.data, dataset)
    denoiser = imported(config) if config.teacher is not None else described(dataset, config.network)
    made = schedule_of(config.schedule, teacher), KERNELS[config.kernel], as_json(config)
    told = description.Description(denoiser, dataset.x.shape[1:], dataset.num_classes, config.k, *made)
    folder.write_json("student.json", told.as_json())


def _trained(phase: Phase, journal: Journal, config: Run, trial: Trial | None = None) -> State:
    with contextlib.closing(phase.examples):
        return train(phase, journal, config.checkpoint_every, trial)


def _complete(folder: Folder, run: dict[str, Any], phase: str, journal: Journal, state: State) -> None:
    completed(folder, run, phase, {"seconds": journal.seconds, "skipped_updates": state.skipped})


def _report(
    config: Run,
    dataset: Dataset,
    folder: Folder,
    run: dict[str, Any],
    record: dict[str, Any],
    guided: Any,
    student: Any,
) -> None:
    started, phases = time.monotonic(), run["phases"]
    figures, drawn = evaluate(config, dataset, guided, student)
    test = test_split(config.data)
    floor = report_floor(features("pixels", dataset, test, folder), dataset, test, config.samples)
    seconds = {name: phases[name]["seconds"] if name in phases else 0.0 for name in ("teacher", "distillation")}
    seconds["evaluation"] = time.monotonic() - started
    skipped = {name: count for phase in phases.values() for name, count in phase["skipped_updates"].items()}
    losses, judged = curves(folder), distances(folder, config.teacher_updates)
    data = {f"data  (floor {short(floor['frechet_distance'])})": _shown(config, dataset)}
    plot_samples(folder, "samples.png", data | drawn)
    plot_curves(folder, losses, judged)
    folder.write_json("report.json", report(config, dataset, record, figures, floor, losses, judged, skipped, seconds))


def _told(config: Run, run: dict[str, Any]) -> dict[str, Any]:
    return as_json(config) | {"sha256": run["data"]["sha256"]}


def _shown(config: Run, dataset: Dataset) -> np.ndarray:
    """Images of the data, of the labels that samples have."""
    rng, labels = np.random.default_rng(config.seed), labels_like(dataset, config.samples, config.seed)
    if dataset.y is None or labels is None:
        return dataset.x[rng.integers(0, len(dataset.x), 16)]
    return dataset.x[[rng.choice(np.flatnonzero(dataset.y == label)) for label in labels[:16]]]
