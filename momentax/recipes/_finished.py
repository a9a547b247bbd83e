"""A finished run, opened to draw from one of its networks."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

import momentax as mm

from ._data import Dataset, load
from ._evaluation import Kernel, draw
from ._folder import Folder
from ._key import key_of
from ._presets import check_positive
from ._program import command
from ._settings import KERNELS, Draw, Run, from_json
from ._teacher import guide, network, start


class Finished(NamedTuple):
    """A run's settings, its data (as they are, and as the teacher knows them), and what to draw how."""

    folder: Folder
    settings: Run
    data: Dataset
    dataset: Dataset
    model: Any
    kernel: Kernel
    k: int
    samples: int

    def drawn(self, seed: int) -> Float[np.ndarray, "n c h w"]:
        """Samples in [-1, 1] of the network."""
        return draw(self.model, self.k, self.settings.schedule, self.kernel, self.dataset, self.samples, seed)


def check_finished(folder: Folder) -> None:
    """Demands a finished run in a folder, and tells which there are beside it."""
    if folder.has("report.json"):
        return
    found, first = ("an unfinished one", ["--resume"]) if folder.has("run.json") else ("none", [])
    raise FileNotFoundError(
        f"needs a finished run in {folder.path}; got {found}; run `{command('distill', folder.path, *first)}` first,"
        f" or name the --output of another one{folder.beside('report.json')}"
    )


def opened(config: Draw, samples: int) -> Finished:
    """The run in the folder and the network that is asked for; so many samples where nothing is said of them."""
    folder = Folder(config.output)
    settings = from_json(folder.read_json("report.json", "configuration")["configuration"])
    if config.model == "student-best" and not folder.has("student-best.eqx"):
        raise FileNotFoundError(
            f"needs a best student in {folder.path}; got none; use --model student, or distil with --evaluate-every"
        )
    kernel, data = _kernel(config, settings), load(settings.data)
    _, dataset, _, given = start(folder, dataclasses.replace(settings, teacher=None), data)
    count = samples if config.samples is None else config.samples
    steps = settings.k if config.k is None else config.k
    check_positive(k=steps, samples=count)
    model = given or network(dataset, key_of(0), settings.network)
    if config.model != "teacher" or given is None:
        model = folder.read_weights(f"{config.model}.eqx", model)
    model = guide(settings, model) if config.model == "teacher" else model
    return Finished(folder, settings, data, dataset, model, kernel, steps, count)


def _kernel(config: Draw, settings: Run) -> Kernel:
    if config.kernel and config.noise is not None:
        raise ValueError(
            f"needs --kernel or --noise; got both, {config.kernel} and {config.noise}; do drop one: noise is a kernel"
        )
    if config.noise is not None and not 0 <= config.noise <= 1:
        raise ValueError(f"needs 0 <= --noise <= 1; got {config.noise}; choose one inside: 0 is the posterior")
    if config.noise is not None:
        return mm.noisier(config.noise)
    return KERNELS[config.kernel or ("posterior" if config.model == "teacher" else settings.kernel)]
