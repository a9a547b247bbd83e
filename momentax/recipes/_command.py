"""The commands: distill, sample, evaluate."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np

from ._data import Dataset, load, test_split
from ._evaluation import labels_like
from ._features import features
from ._figures import measured, reference
from ._finished import Finished, check_finished, opened
from ._folder import Folder
from ._formats import require
from ._interrupt import Terminated, deferred, status
from ._lock import Lock
from ._plots import columns, plot_samples
from ._presets import check_enough, check_seed, resolved
from ._program import command
from ._refusal import refusal
from ._report import compared, table
from ._settings import Distill, Draw, Evaluate, Run, as_json, difference, folder_of, from_json
from ._source import data_again
from ._teacher import start
from ._unfinished import check_same, place, resumed, unfinished

tyro = require("tyro")

Read = TypeVar("Read")


def run(arguments: list[str]) -> None:
    """Parses and runs a command; what the user can mend is told in a line, and an interrupt ends cleanly."""

    def distill(config: Annotated[Distill, tyro.conf.arg(name="")]) -> None:
        """Distil a few-step student from a teacher, draw, evaluate and report.

        A run that ended early goes on by the same command, or by --resume. Ctrl-C (exit status 1) and SIGTERM (143)
        finish the update and save first, or save what is before it where it takes more than four seconds.
        """
        run_distill(config, arguments[1:])

    commands = {"distill": distill, "sample": run_sample, "evaluate": run_evaluate}
    if arguments and arguments[0] in commands:
        tyro.cli(commands[arguments[0]], prog=f"momentax {arguments[0]}", args=arguments[1:])
    else:
        told = "Few-step students from diffusion teachers, by moment matching. `momentax distill --help` has the flags."
        tyro.extras.subcommand_cli_from_dict(commands, prog="momentax", description=told, args=arguments)


def run_distill(config: Distill, arguments: list[str]) -> None:
    """Begins a run, goes on with the one that the folder holds unfinished, or shows the one that it holds finished.

    The arguments are those that the configuration was read from: `--resume` asks which of them were given.
    """
    output = folder_of(config)
    config = dataclasses.replace(config, output=output)
    with _telling(output), Lock(output) as lock:
        for module in ("matplotlib.figure", "tqdm"):
            require(module)
        from ._distillation import distil

        folder = Folder(output)
        stored = unfinished(folder)
        if config.resume:
            config = resumed(folder, stored, config, arguments)
        begun = start(folder, config, load(place(stored) if config.resume and stored else config.data))
        run = resolved(begun.config, begun.dataset, begun.given)
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
    with _opened(config, lambda: opened(config, samples=64)) as (finished, folder):
        drawn = finished.drawn(config.seed)
        labels = labels_like(finished.outline, len(drawn), config.seed)
        arrays = {"x": np.moveaxis(drawn, 1, -1)} | ({} if labels is None else {"y": labels})
        folder.write("drawn.npz", lambda file: np.savez(file, allow_pickle=False, **arrays))
        row = columns(drawn)
        starts = range(0, min(len(drawn), 16 * row), row)
        plot_samples(folder, "drawn.png", {f"from {start}": drawn[start : start + row] for start in starts})
        of = f"{len(drawn)} samples of the {config.model} at {finished.k} steps"
        print(f"{of}: {folder.path / 'drawn.npz'}, drawn.png")


def run_evaluate(config: Annotated[Evaluate, tyro.conf.arg(name="")]) -> None:
    """Draw from a finished run and measure distances to its data, and the floor: those of the data to themselves.

    On pixels they are the report's, and more.
    """

    def both() -> tuple[Finished, Dataset]:
        finished = opened(config, samples=5000)
        return finished, data_again(Folder(config.output), finished.settings.data, config.data)

    with _opened(config, both) as ((finished, data), folder):
        images = 4 * finished.samples if config.images is None else config.images
        check_enough(samples=finished.samples, images=images)
        if not config.features:
            raise ValueError("needs --features; got none of them; name one, such as pixels")
        test = test_split(finished.settings.data)
        chosen = {name: features(name, data, test, folder) for name in config.features}
        drawn = finished.drawn(config.seed)
        for name, made in chosen.items():
            told = {"model": config.model, "k": finished.k} | _sampler(config) | {"seed": config.seed}
            file = "-".join(["evaluation", *map(str, told.values()), *([] if name == "pixels" else [name])]) + ".json"
            told |= measured(reference(made, data, test, len(drawn), images), drawn)
            folder.write_json(file, told)
            print(f"{compared(told)}\n{folder.path / file}")


@contextlib.contextmanager
def _opened(config: Draw, read: Callable[[], Read]) -> Iterator[tuple[Read, Folder]]:
    """What is read of a finished run, and the folder for what comes of it: tried before anything is drawn."""
    folder = Folder(config.to or config.output)
    with _telling(folder.path), Lock(folder.path) as lock:
        require("matplotlib.figure")
        check_seed(config.seed)
        check_finished(Folder(config.output))
        found = read()
        folder.create("--to")
        lock.take()
        yield found, folder


def _sampler(config: Evaluate) -> dict[str, Any]:
    """What was asked of the sampler besides its steps."""
    if config.noise is not None:
        return {"kernel": f"noise{config.noise:g}"}
    return {"kernel": config.kernel} if config.kernel else {}


def _finished(folder: Folder, config: Run) -> bool:
    if config.overwrite or not folder.has("report.json"):
        return False
    report = folder.read_json("report.json", "configuration", "figures")
    from_json(report["configuration"])
    differences = difference(as_json(config), report["configuration"])
    if differences:
        raise ValueError(
            f"needs a folder without a finished run of another configuration; got {folder.path}, whose run differs in"
            f" {', '.join(differences)}; do choose another --output, or --overwrite (its teacher is kept)"
        )
    return True


@contextlib.contextmanager
def _telling(output: Path) -> Iterator[None]:
    try:
        with deferred(lambda: f"interrupted in a long computation, which is lost; {_kept(output)}"):
            yield
    except KeyboardInterrupt as interrupt:
        print(f"\nmomentax: interrupted; {_kept(output)}", file=sys.stderr)
        sys.exit(status(isinstance(interrupt, Terminated)))
    except Exception as error:
        if told := refusal(error):
            sys.exit(f"momentax: {told}")
        raise


def _kept(output: Path) -> str:
    held = ", ".join(sorted(path.name for path in output.glob("[!.]*"))) or "nothing yet"
    goes_on = f"; go on with: {command('distill', output, '--resume')}"
    return f"{output} keeps {held}{goes_on if (output / 'run.json').is_file() else ''}"
