"""The commands: distill, sample, evaluate."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from ._data import Dataset, load
from ._evaluation import FEATURES, distances, draw, evaluate, labels_like
from ._folder import Folder
from ._formats import require
from ._imported import teacher_files
from ._interrupt import deferred
from ._plots import plot_curves, plot_samples
from ._report import report, table
from ._settings import Distill, Draw, Run, as_json, check_positive, difference, from_json, resolved
from ._teacher import network, record_of, start, train_teacher
from ._training import distill, guide

tyro = require("tyro")


def run(arguments: list[str]) -> None:
    """Parses and runs a command; what the user can mend is told in a line, and an interrupt ends cleanly."""
    tyro.extras.subcommand_cli_from_dict(
        {"distill": run_distill, "sample": run_sample, "evaluate": run_evaluate},
        prog="momentax",
        description="Few-step students from diffusion teachers, by moment matching.",
        args=arguments,
    )


def run_distill(config: Annotated[Distill, tyro.conf.arg(name="")]) -> None:
    """Distil a few-step student from a teacher, draw, evaluate and report."""
    with _telling(config.output):
        for module in ("matplotlib.figure", "tqdm"):
            require(module)
        dataset, folder = load(config.data), Folder(config.output)
        config, dataset, record, given = start(folder, config, dataset)
        run = resolved(config, dataset)
        if _finished(folder, run):
            print(f"{folder.path} holds this run, finished:\n{table(folder.read_json('report.json'))}")
        else:
            folder.create()
            _distill(run, dataset, folder, record, given)


def run_sample(config: Annotated[Draw, tyro.conf.arg(name="")]) -> None:
    """Draw from a finished run: drawn.npz (x [n, h, w, c] in [-1, 1]; y [n] where there are labels), drawn.png."""
    with _telling(config.output):
        folder, dataset, drawn, steps = _drawn(config, samples=64)
        labels = labels_like(dataset, len(drawn), config.seed)
        arrays = {"x": np.moveaxis(drawn, 1, -1)} | ({} if labels is None else {"y": labels})
        folder.write("drawn.npz", lambda file: np.savez(file, allow_pickle=False, **arrays))
        plot_samples(folder, "drawn.png", {f"from {i}": drawn[i : i + 16] for i in range(0, min(len(drawn), 256), 16)})
        print(f"{len(drawn)} samples of the {config.model} at {steps} steps: {folder.path / 'drawn.npz'}, drawn.png")


def run_evaluate(config: Annotated[Draw, tyro.conf.arg(name="")]) -> None:
    """Draw from a finished run and measure the distances to its data, as the report does."""
    with _telling(config.output):
        folder, dataset, drawn, steps = _drawn(config, samples=5000)
        figures = distances(drawn, dataset)
        name = f"evaluation-{config.model}-{steps}-{config.seed}.json"
        told = {"model": config.model, "k": steps, "samples": len(drawn), "seed": config.seed, "features": FEATURES}
        folder.write_json(name, told | figures)
        print(f"{table({'figures': {config.model: {str(steps): figures}}})}\n{folder.path / name}")


def _distill(config: Run, dataset: Dataset, folder: Folder, record: dict[str, Any] | None, given: Any) -> None:
    keys = jax.random.split(jax.random.key(config.seed), 3)
    seconds: dict[str, float] = {}
    started = time.monotonic()
    teacher, record, curves = _teacher(config, dataset, folder, record, given, keys)
    seconds["teacher"] = time.monotonic() - started
    student, distilled = distill(config, dataset, teacher, keys[2])
    folder.remove("report.json")
    folder.write_weights("student.eqx", student)
    seconds["distillation"] = time.monotonic() - started - seconds["teacher"]
    figures, drawn = evaluate(config, dataset, guide(config, dataset, teacher), student)
    seconds["evaluation"] = time.monotonic() - started - seconds["teacher"] - seconds["distillation"]
    curves |= distilled
    plot_samples(folder, "samples.png", _rows(config, dataset, drawn))
    plot_curves(folder, curves)
    folder.write_json("report.json", report(config, dataset, record, figures, curves, seconds))
    print(f"{table(folder.read_json('report.json'))}\n{folder.path}: report.json, samples.png, curves.png")


def _teacher(config: Run, dataset: Dataset, folder: Folder, record: dict[str, Any] | None, given: Any, keys: Any):
    """The teacher, its record and its curves: given, or of the folder, or trained now; in the folder from here on."""
    if record:
        source = f"{config.teacher_updates} updates old" if given is None else f"from {config.teacher}"
        print(f"the teacher of {folder.path}, {source}", flush=True)
        teacher = folder.read_weights("teacher.eqx", network(dataset, keys[0])) if given is None else given
        return teacher, record, {}
    record, curves = record_of(config, dataset), {}
    if config.teacher is not None:
        folder.copy("teacher", teacher_files(config.teacher))
        teacher = given
    else:
        teacher, curves = train_teacher(config, dataset, network(dataset, keys[0]), keys[1])
        folder.write_weights("teacher.eqx", teacher)
    folder.write_json("teacher.json", record)
    return teacher, record, curves


def _finished(folder: Folder, config: Run) -> bool:
    if config.overwrite or not folder.has("report.json"):
        return False
    differences = difference(as_json(config), folder.read_json("report.json")["configuration"])
    if differences:
        raise ValueError(
            f"needs a folder without a finished run of another configuration; got {folder.path}, whose run differs in"
            f" {', '.join(differences)}; do choose another --output, or --overwrite (its teacher is kept)"
        )
    return True


def _drawn(config: Draw, samples: int) -> tuple[Folder, Dataset, np.ndarray, int]:
    folder = Folder(config.output)
    settings = from_json(folder.read_json("report.json")["configuration"])
    _, dataset, _, given = start(folder, dataclasses.replace(settings, teacher=None), load(settings.data))
    count = samples if config.samples is None else config.samples
    steps = settings.k if config.k is None else config.k
    check_positive(k=steps, samples=count)
    model = given or network(dataset, jax.random.key(0))
    if config.model == "student" or given is None:
        model = folder.read_weights(f"{config.model}.eqx", model)
    kernel = settings.kernel if config.model == "student" else "posterior"
    model = guide(settings, dataset, model) if config.model == "teacher" else model
    return folder, dataset, draw(model, steps, settings.schedule, kernel, dataset, count, config.seed), steps


def _rows(config: Run, dataset: Dataset, drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng, labels = np.random.default_rng(config.seed), labels_like(dataset, config.samples, config.seed)
    if dataset.y is None or labels is None:
        return {"data": dataset.x[rng.integers(0, len(dataset.x), 16)]} | drawn
    return {"data": dataset.x[[rng.choice(np.flatnonzero(dataset.y == label)) for label in labels[:16]]]} | drawn


@contextlib.contextmanager
def _telling(output: Path) -> Iterator[None]:
    try:
        with deferred():
            yield
    except KeyboardInterrupt:
        held = ", ".join(sorted(path.name for path in output.glob("[!.]*"))) or "nothing yet"
        sys.exit(f"\nmomentax: interrupted; {output} keeps {held}")
    except (ArithmeticError, ImportError, OSError, ValueError) as error:
        if str(error).startswith("needs "):
            sys.exit(f"momentax: {error}")
        raise
