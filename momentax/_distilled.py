"""A student that a run left in a folder, with what it is sampled with."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from . import description
from ._denoiser import Denoiser
from ._sample import ancestral_sampler
from ._schedule import AbstractSchedule


class Distilled(NamedTuple):
    """A student and what it is sampled with: `distilled.sampler(key, distilled.shape, cond)` draws one example.

    Args:
        student: the denoiser with its weights.
        sampler: `momentax.ancestral_sampler` of it, with `k`, `schedule` and `kernel` of its distillation.
        shape: of one example.
        num_classes: `cond` is one of 0 to num_classes - 1; 0 for data without labels, where it is None.
        configuration: of the run, as plain values.
    """

    student: Denoiser
    sampler: Callable[..., Any]
    k: int
    schedule: AbstractSchedule
    kernel: Callable[..., Any]
    shape: tuple[int, ...]
    num_classes: int
    configuration: dict[str, Any]


def load(folder: str | os.PathLike[str], *, best: bool = False) -> Distilled:
    """The student of a finished run, from its `student.json` and `student.eqx`; its data are not needed.

    Nothing in the folder is executed: pickles are refused.

    Args:
        best: the student at its least distance, `student-best.eqx`, of a run that measured it on the way.

    Raises:
        FileNotFoundError: where the folder has no finished run, or not these weights, with what to do.
        ValueError: for a description of a later version, and for weights that are damaged or of another network.
    """
    told = description.read(Path(folder))
    student = _weights(Path(folder), "student-best.eqx" if best else "student.eqx", told)
    sampler = ancestral_sampler(student, told.k, schedule=told.schedule, kernel=told.kernel)
    return Distilled(student, sampler, *told[3:6], *told[1:3], told.configuration)


def load_teacher(folder: str | os.PathLike[str]) -> Denoiser:
    """The teacher of a finished run, without guidance; raises as `load` does."""
    told = description.read(Path(folder))
    if isinstance(told.denoiser, description.Imported):
        return told.denoiser.like(Path(folder))
    return _weights(Path(folder), "teacher.eqx", told)


def _weights(folder: Path, name: str, told: description.Description) -> Denoiser:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"needs the weights {path}; got none; copy them there from where the run is whole")
    try:
        with path.open("rb") as file:
            wide = np.load(file, allow_pickle=False).dtype == np.float64
        with jax.enable_x64(bool(wide)):
            return eqx.tree_deserialise_leaves(path, told.denoiser.like(folder))
    except (ValueError, RuntimeError, EOFError, TypeError) as error:
        raise ValueError(
            f"needs whole weights of the network that {description.FILE} describes in {path}; got"
            f" {type(error).__name__}: {error}; copy the file again from where the run is whole"
        ) from error
