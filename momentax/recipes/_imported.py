"""A teacher from elsewhere: a folder in diffusers' format, held against the data, kept beside the run."""

import contextlib
import dataclasses
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import momentax as mm
from momentax import description

from ._data import Dataset
from ._settings import Distill

_PREDICTIONS = {"eps": mm.predict_eps, "v": mm.predict_v, "x": mm.predict_x}
_SCHEDULERS = ("scheduler/scheduler_config.json", "scheduler_config.json")
_WEIGHTS = ("config.json", "diffusion_pytorch_model*.[sj]*")


def read_teacher(folder: Path, config: Distill) -> mm.Denoiser:
    """The denoiser of a pipeline's folder, or of a network's with what the configuration says of it.

    What was chosen among several networks or weights is printed.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"needs a folder for --teacher; got {folder}; name one that diffusers wrote")
    convention = _convention(folder, config)
    with noted():
        return mm.interop.denoiser_from_diffusers(folder, variant=config.teacher_variant, **convention)


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Prints what the library tells of the weights that it chose."""
    with warnings.catch_warnings(record=True) as chosen:
        warnings.simplefilter("always", UserWarning)
        yield
    for each in chosen:
        print(f"note: {each.message}", flush=True)


def _convention(folder: Path, config: Distill) -> dict[str, Any]:
    """What is told of a network without a scheduler; nothing of a pipeline, or where a scheduler lies in the folder."""
    told, scheduler = config.teacher_predicts or config.teacher_betas, config.teacher_scheduler
    if (folder / "model_index.json").is_file():
        if told or scheduler:
            raise ValueError(
                "needs no --teacher-predicts, --teacher-betas or --teacher-scheduler for a pipeline, which has its own;"
                f" got one with {folder}; drop it"
            )
        return {}
    if scheduler is not None:
        if told:
            raise ValueError(
                "needs --teacher-scheduler, or --teacher-predicts and --teacher-betas; got both with"
                f" {folder}; drop one"
            )
        return {"scheduler": _scheduler_file(scheduler)}
    if config.teacher_predicts is None:
        return _own_scheduler(folder)
    told = imported(config)
    return {"predict": told.predict, "schedule": told.schedule}


def imported(config: Distill) -> description.Imported:
    """The run's copy of the teacher's folder, and what the configuration says of a network without a scheduler."""
    if config.teacher_predicts is None:
        return description.Imported(variant=config.teacher_variant)
    betas = {"_class_name": "DDPMScheduler", "beta_schedule": config.teacher_betas or "linear"}
    schedule: Any = mm.interop.schedule_from_diffusers(betas)
    return description.Imported("teacher", _PREDICTIONS[config.teacher_predicts], schedule, config.teacher_variant)


def _own_scheduler(folder: Path) -> dict[str, Any]:
    if not any((folder / place).is_file() for place in _SCHEDULERS):
        raise ValueError(
            f"needs --teacher-predicts for a network without a scheduler; got {folder}; name its scheduler_config.json"
            " by --teacher-scheduler, or pass what it was trained to predict, and --teacher-betas if not linear"
        )
    return {}


def _scheduler_file(path: Path) -> Path:
    for file in (path, *(path / place for place in _SCHEDULERS)):
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"needs a scheduler_config.json for --teacher-scheduler; got none at {path}; name it, or its folder or pipeline"
    )


def as_taught(teacher: mm.Denoiser, dataset: Dataset, guidance: float) -> Dataset:
    """The data as the teacher knows it: without labels, where it has no classes; an error if it does not fit.

    That the teacher has more classes than the data, or none, is printed.
    """
    net: Any = teacher.net
    labels, needed = net.num_labels, dataset.num_classes + (guidance != 0)
    if labels is None:
        if dataset.num_classes:
            print(f"note: the teacher has no classes, so the labels of {dataset.name} are left out", flush=True)
        dataset = dataclasses.replace(dataset, y=None, num_classes=0)
    elif not dataset.num_classes:
        raise ValueError(f"needs labels for a class-conditional teacher; got {dataset.name} without; add y")
    elif labels < needed:
        raise ValueError(
            f"needs a teacher of {needed} labels, that of no class for --guidance among them; got {labels};"
            " choose another, or --guidance 0"
        )
    elif labels > dataset.num_classes:
        print(f"note: {_fewer(labels, dataset, guidance)}", flush=True)
    _check_called(teacher, dataset)
    return dataset


def _fewer(labels: int, dataset: Dataset, guidance: float) -> str:
    """What data of fewer classes mean for the student, and which label guidance takes for no class."""
    told = f"the teacher has the labels 0 to {labels - 1}, and {dataset.name} has 0 to {dataset.num_classes - 1}"
    no_class = f"; --guidance takes {labels - 1}, the teacher's last, for no class" if guidance else ""
    return f"{told}, which are all that the student learns{no_class}"


def teacher_files(folder: Path, scheduler: Path | None = None) -> dict[str, Path]:
    """What of a folder, and of a scheduler elsewhere, makes its teacher, by the place in the folder."""
    patterns = ["model_index.json", *_SCHEDULERS]
    patterns += [f"{network}{name}" for network in _networks(folder) for name in _WEIGHTS]
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    elsewhere = {} if scheduler is None else {_SCHEDULERS[0]: _scheduler_file(scheduler)}
    return {str(path.relative_to(folder)): path for path in found} | elsewhere


def _networks(folder: Path) -> list[str]:
    """Where the network may lie: averages come first in the output of a training, and never in a pipeline."""
    plain, averages = ["unet", "transformer"], ["unet_ema", "transformer_ema"]
    pipeline = (folder / "model_index.json").is_file()
    averaged = not pipeline and any((folder / name / "config.json").is_file() for name in averages)
    return ["", *(f"{name}/" for name in (averages if averaged else plain))]


def checksum(files: dict[str, Path]) -> str:
    """Of all files' places and contents."""
    digest = hashlib.sha256()
    for place, path in sorted(files.items()):
        with path.open("rb") as file:
            digest.update(f"{place}: {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


def _check_called(teacher: Any, dataset: Dataset) -> None:
    z, logsnr = jax.ShapeDtypeStruct(dataset.x.shape[1:], jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    label = jax.ShapeDtypeStruct((), jnp.int32) if dataset.num_classes else None
    try:
        eqx.filter_eval_shape(teacher, z, logsnr, label)
    except ValueError as error:
        reason = str(error).rpartition(";")[0] or error
        raise ValueError(
            f"needs a teacher of the data's images and labels; got {dataset.name}, where {reason};"
            " choose other data, or another teacher"
        ) from error
