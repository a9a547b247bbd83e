"""What distances are measured on: rows of numbers, made of images by one network or by none."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Float64

import momentax as mm

from ._classifier import WIDTH, taught
from ._data import Dataset
from ._devices import at_once
from ._efficientnet import EARLY, LATE, SIDE, read_efficientnet
from ._folder import Folder
from ._presets import check_images
from ._progress import parts

Images = Float32[np.ndarray, "n c h w"]
Rows = Float32[np.ndarray, "n d"]
Others = Float32[np.ndarray, "m d"]


class Features(NamedTuple):
    """Rows of images in [-1, 1], what is told of them, and what figures of samples' and data's rows only they have."""

    told: dict[str, Any]
    rows: Callable[[Images], Rows]
    further: Callable[[Rows, Others], dict[str, float]]


def features(name: str, dataset: Dataset, test: Dataset | None, folder: Folder) -> Features:
    """The features of that name for images of the data; what has to be trained or read for them is.

    Raises:
        ValueError: where the images or labels do not suit them, or are too few for a floor of disjoint parts.
        FileNotFoundError: where a package is missing, with the command that fetches it.
    """
    check_images(dataset, parts=2 if test is None else 1)
    return MAKERS[name](dataset, test, folder)


def _pixels(dataset: Dataset, test: Dataset | None, folder: Folder) -> Features:
    told = {"features": f"pixels, {dataset.x[0].size} numbers in [-1, 1]"}
    return Features(told, lambda images: images.reshape(len(images), -1), _sliced)


def _sliced(samples: Rows, images: Others) -> dict[str, float]:
    return {"sliced_wasserstein": mm.metrics.sliced_wasserstein(samples, images)}


def _classifier(dataset: Dataset, test: Dataset | None, folder: Folder) -> Features:
    model, told = taught(dataset, test, folder)
    right = f"right on {told['accuracy']:.1%} of {told['tested_on']}"

    def scored(samples: Rows, images: Others) -> dict[str, float]:
        logits = samples.astype(np.float64) @ np.asarray(model.last.weight).T + np.asarray(model.last.bias)
        return {"classifier_score": mm.metrics.inception_score(_softmax(logits))}

    title = f"{WIDTH} numbers of a classifier of {dataset.name}, {right}"
    return Features({"features": title, "classifier": told}, _rows(model.features, "the classifier"), scored)


def _efficientnet(dataset: Dataset, test: Dataset | None, folder: Folder) -> Features:
    _check_colours(dataset)
    told = {"features": f"{LATE} numbers of the last layer of EfficientNet-Lite0 at {SIDE} pixels"}
    return Features(told, _rows(read_efficientnet().late, "EfficientNet-Lite0"), _nothing)


def _efficientnet_early(dataset: Dataset, test: Dataset | None, folder: Folder) -> Features:
    _check_colours(dataset)
    told = {"features": f"{EARLY} numbers of the sixth block of EfficientNet-Lite0 at {SIDE} pixels"}
    return Features(told, _rows(read_efficientnet().early, "EfficientNet-Lite0, early"), _nothing)


def _nothing(samples: Rows, images: Others) -> dict[str, float]:
    return {}


def _check_colours(dataset: Dataset) -> None:
    if dataset.x.shape[1] not in (1, 3):
        raise ValueError(
            f"needs grey or RGB images for --features efficientnet; got {dataset.x.shape[1]} channels;"
            " do take pixels or classifier"
        )


def _rows(seen: Callable[..., Any], title: str) -> Callable[[Images], Rows]:
    """Of a network's view of one image that of any number, some at a time."""

    def rows(images: Images) -> Rows:
        size = at_once(100, cached=8)
        starts = parts(range(0, len(images), size), f"{len(images)} images through {title}")
        around = (np.arange(start, start + size) % len(images) for start in starts)
        return np.concatenate([np.asarray(_seen(seen, jnp.asarray(images[rows]))) for rows in around])[: len(images)]

    return rows


@eqx.filter_jit
def _seen(seen: Callable[..., Any], images: Float32[Array, "n c h w"]) -> Float32[Array, "n d"]:
    """In full float32 on every device, so that figures can be compared."""
    with jax.default_matmul_precision("highest"):
        return jax.vmap(seen)(images)


def _softmax(logits: Float64[np.ndarray, "n classes"]) -> Float64[np.ndarray, "n classes"]:
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


MAKERS: dict[str, Callable[[Dataset, Dataset | None, Folder], Features]] = {
    "pixels": _pixels,
    "classifier": _classifier,
    "efficientnet": _efficientnet,
    "efficientnet-early": _efficientnet_early,
}
