"""A finished run, opened to draw from one of its networks."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

import momentax as mm
from momentax import description

from ._evaluation import Kernel, draw
from ._folder import Folder
from ._imported import noted
from ._key import key_of
from ._presets import check_positive
from ._program import command
from ._settings import KERNELS, Draw, Evaluate, Run, from_json, schedule_of
from ._source import Outline, data_again, kept_outline
from ._teacher import guide, network, start


class Finished(NamedTuple):
    """What to draw of a run, and how."""

    settings: Run
    outline: Outline
    model: Any
    schedule: mm.AbstractSchedule
    kernel: Kernel
    k: int
    samples: int

    def drawn(self, seed: int) -> Float[np.ndarray, "n c h w"]:
        """Samples in [-1, 1] of the network."""
        return draw(self.model, self.k, self.schedule, self.kernel, self.outline, self.samples, seed)


def check_finished(folder: Folder) -> None:
    """Demands a finished run in a folder, and tells which there are beside it.

    One that is being made anew is none, though the report of the last one is there: its files may be of either.
    """
    unfinished = folder.has("run.json")
    if folder.has("report.json") and not unfinished:
        return
    found, first = ("an unfinished one", ["--resume"]) if unfinished else ("none", [])
    raise FileNotFoundError(
        f"needs a finished run in {folder.path}; got {found}; run `{command('distill', folder.path, *first)}` first,"
        f" or name the --output of another one{folder.beside('report.json')}"
    )


def settings_of(folder: Folder) -> Run:
    """The configuration of a finished run."""
    return from_json(folder.read_json("report.json", "configuration")["configuration"])


def opened(config: Draw, samples: int) -> Finished:
    """The run in the folder and the network that is asked for; so many samples where nothing is said of them.

    Nothing outside the folder is read, except for a run of before there were descriptions: that takes its data.
    """
    folder = Folder(config.output)
    settings = settings_of(folder)
    if config.model == "student-best" and not folder.has("student-best.eqx"):
        raise FileNotFoundError(
            f"needs a best student in {folder.path}; got none; use --model student, or distil with --evaluate-every"
        )
    kernel = _kernel(config, settings)
    count = samples if config.samples is None else config.samples
    steps = settings.k if config.k is None else config.k
    check_positive(k=steps, samples=count)
    with noted():
        outline, model, schedule = (_described if _is_described(folder) else _older)(folder, settings, config)
    model = guide(settings, model) if config.model == "teacher" else model
    return Finished(settings, outline, model, schedule, kernel, steps, count)


def _is_described(folder: Folder) -> bool:
    if not folder.has(description.FILE):
        return False
    return folder.has("labels.npy") or not description.read(folder.path).num_classes


def _described(folder: Folder, settings: Run, config: Draw) -> tuple[Outline, Any, mm.AbstractSchedule]:
    told = description.read(folder.path)
    outline = kept_outline(folder, told.shape, told.num_classes)
    if config.model == "teacher":
        return outline, mm.load_teacher(folder.path), told.schedule
    return outline, mm.load(folder.path, best=config.model == "student-best").student, told.schedule


def _older(folder: Folder, settings: Run, config: Draw) -> tuple[Outline, Any, mm.AbstractSchedule]:
    """What a description would tell, of the data."""
    try:
        data = data_again(folder, settings.data, config.data if isinstance(config, Evaluate) else None)
    except FileNotFoundError as error:
        if isinstance(config, Evaluate) or not settings.data.endswith(".npz"):
            raise
        raise FileNotFoundError(
            f"needs {description.FILE} and labels.npy in {folder.path}, or the data {settings.data}, as it is of an"
            " older momentax; got neither; sample from the folder that the run was made from"
        ) from error
    _, dataset, _, given = start(folder, dataclasses.replace(settings, teacher=None), data)
    model = given or network(dataset, key_of(0), settings.network)
    if config.model != "teacher" or given is None:
        model = folder.read_weights(f"{config.model}.eqx", model)
    return Outline(dataset.x.shape[1:], dataset.y), model, schedule_of(settings.schedule, model)


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
