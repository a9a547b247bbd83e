"""The commands: distill, sample, evaluate."""

import contextlib
import dataclasses
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import jax
import numpy as np

from ._data import Dataset, load
from ._evaluation import FEATURES, distances, draw, labels_like
from ._folder import Folder
from ._formats import require
from ._interrupt import Terminated, deferred
from ._lock import Lock
from ._plots import plot_samples
from ._presets import check_positive, resolved
from ._report import table
from ._settings import Distill, Draw, Run, as_json, difference, from_json
from ._teacher import guide, network, start
from ._unfinished import check_same, resumed, unfinished

tyro = require("tyro")


def run(arguments: list[str]) -> None:
    """Parses and runs a command; what the user can mend is told in a line, and an interrupt ends cleanly."""

    def distill(config: Annotated[Distill, tyro.conf.arg(name="")]) -> None:
        """Distil a few-step student from a teacher, draw, evaluate and report.

        A run that ended early goes on by the same command, or by --resume. Ctrl-C (exit status 1) and SIGTERM (143)
        finish the update and save first.
        """
        run_distill(config, arguments[1:])

    tyro.extras.subcommand_cli_from_dict(
        {"distill": distill, "sample": run_sample, "evaluate": run_evaluate},
        prog="momentax",
        description="Few-step students from diffusion teachers, by moment matching.",
        args=arguments,
    )


def run_distill(config: Distill, arguments: list[str]) -> None:
    """Begins a run, goes on with the one that the folder holds unfinished, or shows the one that it holds finished.

    The arguments are those that the configuration was read from: `--resume` asks which of them were given.
    """
    with _telling(config.output), Lock(config.output) as lock:
        for module in ("matplotlib.figure", "tqdm"):
            require(module)
        from ._distillation import distil

        folder = Folder(config.output)
        stored = unfinished(folder)
        if config.resume:
            config = resumed(folder, stored, config, arguments)
        begun = start(folder, config, load(config.data))
        run = resolved(begun.config, begun.dataset)
        if stored and not config.overwrite:
            check_same(folder, stored, run, begun.dataset)
        elif _finished(folder, run):
            print(f"{folder.path} holds this run, finished:\n{table(folder.read_json('report.json'))}")
            return
        folder.create()
        lock.take()
        distil(run, begun, folder, None if config.overwrite else stored)


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
    if config.model != "teacher" or given is None:
        model = folder.read_weights(f"{config.model}.eqx", model)
    kernel = "posterior" if config.model == "teacher" else settings.kernel
    model = guide(settings, dataset, model) if config.model == "teacher" else model
    return folder, dataset, draw(model, steps, settings.schedule, kernel, dataset, count, config.seed), steps


@contextlib.contextmanager
def _telling(output: Path) -> Iterator[None]:
    try:
        with deferred():
            yield
    except KeyboardInterrupt as interrupt:
        held = ", ".join(sorted(path.name for path in output.glob("[!.]*"))) or "nothing yet"
        goes_on = f"; do go on with: momentax distill --resume --output {shlex.quote(str(output))}"
        told = f"\nmomentax: interrupted; {output} keeps {held}{goes_on if (output / 'run.json').is_file() else ''}"
        print(told, file=sys.stderr)
        sys.exit(128 + signal.SIGTERM if isinstance(interrupt, Terminated) else 1)
    except (ArithmeticError, ImportError, OSError, ValueError) as error:
        if str(error).startswith("needs "):
            sys.exit(f"momentax: {error}")
        raise
