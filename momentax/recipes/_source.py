"""Where a run's data are, and what of them its folder keeps: enough to draw without them, and to know them again."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from ._data import Dataset, load
from ._folder import Folder
from ._teacher import identity

FILES = ("data.json", "labels.npy")
_KEYS = ("place", "shape", "num_classes", "sha256")


class Outline(NamedTuple):
    """What samples take from a data set: the shape of one example, and the labels, in the order of the data."""

    shape: tuple[int, ...]
    y: Int32[np.ndarray, " n"] | None


def place_of(data: str) -> str:
    """The name of a data set, or the absolute path of a file: the same from every folder."""
    return os.path.abspath(Path(data).expanduser()) if data.endswith(".npz") else data


def keep(folder: Folder, data: str, dataset: Dataset) -> None:
    """Writes which data they are, and every label: counts alone would draw others."""
    folder.write_json("data.json", {"place": place_of(data), **identity(dataset)})
    if dataset.y is None:
        return
    labels = dataset.y.astype(np.min_scalar_type(int(dataset.y.max())))
    folder.write("labels.npy", lambda file: np.save(file, labels, allow_pickle=False))


def kept_outline(folder: Folder, shape: tuple[int, ...], num_classes: int) -> Outline:
    """What `keep` wrote, of data of so many classes."""
    if not num_classes:
        return Outline(shape, None)
    path = folder.path / "labels.npy"
    try:
        labels = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(_damaged(path, f"{type(error).__name__}: {error}", num_classes)) from error
    if labels.ndim != 1 or labels.dtype.kind != "u" or not len(labels) or labels.max() >= num_classes:
        raise ValueError(_damaged(path, f"{labels.dtype} of shape {labels.shape}", num_classes))
    return Outline(shape, labels.astype(np.int32))


def found_at(places: Iterable[str]) -> str:
    """The first place whose file is there, or the first one: what is wrong with that is told when it is read."""
    places = list(places)
    there = (place for place in places if not place.endswith(".npz") or Path(place).expanduser().is_file())
    return next(there, places[0])


def data_again(folder: Folder, data: str, given: str | None) -> Dataset:
    """The data of a finished run, under their name in it: from where they are given, or from where they were.

    Raises:
        FileNotFoundError: where they are not, with what to do.
        ValueError: for other data, with the difference.
    """
    kept: dict[str, Any] = folder.read_json("data.json", *_KEYS) if folder.has("data.json") else {"place": data}
    place = given or found_at([kept["place"], data])
    if place.endswith(".npz") and not Path(place).expanduser().is_file():
        raise FileNotFoundError(
            f"needs the data of the run in {folder.path}; got no file {place}; name where they are by --data"
        )
    dataset = dataclasses.replace(load(place), name=Path(data).stem)
    _check_same(folder, kept, dataset, place)
    return dataset


def _check_same(folder: Folder, kept: dict[str, Any], dataset: Dataset, place: str) -> None:
    """Demands the contents that were hashed; of a teacher without classes these are the images alone."""
    if not kept.get("num_classes", dataset.num_classes):
        dataset = dataclasses.replace(dataset, y=None, num_classes=0)
    found = identity(dataset)
    for name in ("shape", "num_classes", "sha256"):
        if name in kept and kept[name] != found[name]:
            raise ValueError(
                f"needs the data of the run in {folder.path}, of {name} {kept[name]}; got {found[name]} in {place};"
                " name the same data by --data"
            )


def _damaged(path: Path, got: str, num_classes: int) -> str:
    return (
        f"needs labels 0 to {num_classes - 1} of the data in {path}; got {got};"
        " copy the file again from where the run is whole"
    )
