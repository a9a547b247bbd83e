"""A teacher from elsewhere: a folder in diffusers' format, held against the data, kept beside the run."""

import dataclasses
import hashlib
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
_NETWORKS = ("", "unet/", "transformer/")
_FILES = ["model_index.json", "scheduler_config.json", "scheduler/scheduler_config.json"] + [
    f"{network}{name}" for network in _NETWORKS for name in ("config.json", "diffusion_pytorch_model*.[sj]*")
]


def read_teacher(folder: Path, config: Distill) -> mm.Denoiser:
    """The denoiser of a pipeline's folder, or of one network's with what the configuration says of it."""
    if not folder.is_dir():
        raise NotADirectoryError(f"needs a folder for --teacher; got {folder}; do name one that diffusers wrote")
    if (folder / "model_index.json").is_file():
        if config.teacher_predicts or config.teacher_betas:
            raise ValueError(
                f"needs no --teacher-predicts or --teacher-betas for a pipeline; got them with {folder}; do drop them"
            )
        return mm.interop.denoiser_from_diffusers(folder)
    if config.teacher_predicts is None:
        raise ValueError(
            f"needs --teacher-predicts for a network without a scheduler; got {folder}; do say what it was trained"
            " to predict, and under which --teacher-betas if not linear"
        )
    told = imported(config)
    return mm.interop.denoiser_from_diffusers(folder, predict=told.predict, schedule=told.schedule)


def imported(config: Distill) -> description.Imported:
    """The run's copy of the teacher's folder, and what the configuration says of a network without a scheduler."""
    if config.teacher_predicts is None:
        return description.Imported()
    betas = {"_class_name": "DDPMScheduler", "beta_schedule": config.teacher_betas or "linear"}
    schedule: Any = mm.interop.schedule_from_diffusers(betas)
    return description.Imported("teacher", _PREDICTIONS[config.teacher_predicts], schedule)


def as_taught(teacher: mm.Denoiser, dataset: Dataset, guidance: float) -> Dataset:
    """The data as the teacher knows it: without labels, where it has no classes; an error if it does not fit."""
    net: Any = teacher.net
    labels, needed = net.num_labels, dataset.num_classes + (guidance != 0)
    if labels is None:
        dataset = dataclasses.replace(dataset, y=None, num_classes=0)
    elif not dataset.num_classes:
        raise ValueError(f"needs labels for a class-conditional teacher; got {dataset.name} without; do add y")
    elif labels < needed:
        raise ValueError(
            f"needs a teacher of {needed} labels, that of no class for --guidance among them; got {labels};"
            " do choose another, or --guidance 0"
        )
    _check_called(teacher, dataset)
    return dataset


def teacher_files(folder: Path) -> dict[str, Path]:
    """What of a folder makes its teacher, by the place in the folder."""
    found = [path for pattern in _FILES for path in sorted(folder.glob(pattern))]
    return {str(path.relative_to(folder)): path for path in found}


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
        raise ValueError(f"needs a teacher of the data's images and labels; got one where {error}") from error
