"""The teacher: the one that the output folder holds, or is given, or an untrained one for the data."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

import momentax as mm
from momentax import description

from ._data import Dataset
from ._folder import Folder
from ._imported import as_taught, checksum, read_teacher, teacher_files
from ._presets import suited
from ._settings import Distill, Network, Run

_KEYS = ("data", "shape", "num_classes", "sha256", "teacher_updates")
_TOLD = ("teacher_predicts", "teacher_betas", "teacher_scheduler", "teacher_variant")

_PIECE = 2**20
"""How many numbers are hashed at once."""


class Start(NamedTuple):
    """What a run starts from: the data as the teacher knows it, what is on record of the teacher, itself if given."""

    config: Distill
    dataset: Dataset
    record: dict[str, Any] | None
    given: mm.Denoiser | None


def start(folder: Folder, config: Distill, dataset: Dataset) -> Start:
    """The teacher that is in the folder or is given, held against the data, before anything is written."""
    record = folder.read_json("teacher.json", *_KEYS) if folder.has("teacher.json") else None
    if record and "folder" in record:
        config, given = _kept(folder, config, record)
    elif config.teacher is not None:
        _check_none(folder, record)
        given = read_teacher(config.teacher, config)
    else:
        given = None
    if given is not None:
        dataset = as_taught(given, dataset, config.guidance)
    if record:
        _check_fits(folder, config, dataset, record)
        had = {name: record.get(name) for name in ("teacher_updates", "network")}
        config = dataclasses.replace(config, **had)
    return Start(config, dataset, record, given)


def record_of(config: Run, dataset: Dataset, given: mm.Denoiser | None = None) -> dict[str, Any]:
    """What is kept on record of a teacher: of one that is given the number of its own labels, too."""
    made = identity(dataset) | {"teacher_updates": config.teacher_updates, "seed": config.seed}
    if config.teacher is None:
        return made | {"network": config.network or suited(dataset.x.shape[1:])}
    values = {name: getattr(config, name) for name in _TOLD}
    told = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    files = checksum(teacher_files(config.teacher, config.teacher_scheduler))
    labels = {} if given is None else {"num_labels": cast(Any, given.net).num_labels}
    return made | told | labels | {"folder": str(config.teacher), "files": files}


def _kept(folder: Folder, config: Distill, record: dict[str, Any]) -> tuple[Distill, mm.Denoiser]:
    given = None if config.teacher is None else teacher_files(config.teacher, config.teacher_scheduler)
    if given is not None and checksum(given) != record["files"]:
        raise ValueError(
            f"needs the teacher that {folder.path} has, of {record['folder']}; got other files in {config.teacher};"
            " do choose another --output"
        )
    told = {name: record.get(name) for name in _TOLD}
    scheduler = told["teacher_scheduler"] and Path(told["teacher_scheduler"])
    told |= {"teacher": Path(record["folder"]), "teacher_scheduler": scheduler}
    config = dataclasses.replace(config, **told)
    # A scheduler from elsewhere lies in the copy.
    return config, read_teacher(folder.path / "teacher", dataclasses.replace(config, teacher_scheduler=None))


def _check_none(folder: Folder, record: dict[str, Any] | None) -> None:
    if record:
        raise ValueError(
            f"needs a folder without a teacher for --teacher; got {folder.path}, which has one that was trained there;"
            " do choose another --output"
        )


def _check_fits(folder: Folder, config: Distill, dataset: Dataset, record: dict[str, Any]) -> None:
    asked = identity(dataset) | {"teacher_updates": config.teacher_updates or record["teacher_updates"]}
    asked |= {"network": config.network} if config.network else {}
    had = {"network": record.get("folder", suited(dataset.x.shape[1:]))} | record
    for name, value in asked.items():
        if had[name] != value:
            raise ValueError(
                f"needs the teacher in {folder.path} to fit: {name} {value}; got {had[name]};"
                " do choose another --output, or ask for what this one is"
            )


def identity(dataset: Dataset) -> dict[str, Any]:
    """What must be equal for a teacher to be of this data."""
    return {
        "data": dataset.name,
        "shape": list(dataset.x.shape[1:]),
        "num_classes": dataset.num_classes,
        "sha256": _sha256(dataset),
    }


def _sha256(dataset: Dataset) -> str:
    """Of all images as float32, and then of all labels; some megabytes of them at a time."""
    content, size = hashlib.sha256(), max(1, _PIECE // dataset.x[0].size)
    for start in range(0, len(dataset.x), size):
        content.update(np.ascontiguousarray(dataset.x[start : start + size]).data)
    if dataset.y is not None:
        content.update(np.ascontiguousarray(dataset.y).data)
    return content.hexdigest()


def network(dataset: Dataset, key: PRNGKeyArray, kind: Network | None = None) -> mm.Denoiser:
    """An untrained denoiser of the data: it predicts v, on the cosine schedule; one class more is for "none"."""
    return described(dataset, kind).untrained(key)


def described(dataset: Dataset, kind: Network | None = None) -> description.Network:
    """The network of that kind, or the one that suits the data, by class and arguments."""
    shape, classes = dataset.x.shape[1:], {"num_classes": dataset.num_classes or None}
    uvit = {"channels": shape[0], **classes}
    known = {
        "mlp": ("MLP", {"shape": shape, "width": 256, "depth": 3, **classes}),
        "uvit": ("UViT", uvit | {"depth": 4, "patch": 2}),
        "uvit-small": ("UViT", uvit | {"width": 64, "multipliers": (1,), "depth": 2, "heads": 2, "patch": 4}),
    }
    name, arguments = known[kind or suited(shape)]
    return description.Network(name, arguments, schedule=mm.CosineSchedule())


def guide(config: Run, teacher: Any) -> Any:
    """The teacher as it is matched and sampled: with guidance, where there is any; no class is its own last label."""
    return mm.guided(teacher, config.guidance, jnp.asarray(teacher.net.num_labels - 1)) if config.guidance else teacher
