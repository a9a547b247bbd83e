"""Figures of samples against images of the data, and the floor: the same figures of the data against themselves."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Real

import momentax as mm

from ._data import Dataset
from ._features import Features

Rows = Real[np.ndarray, "n d"]
Others = Real[np.ndarray, "m d"]


def near(samples: Rows, images: Others) -> dict[str, float]:
    """The Frechet distance, and precision and recall of the first 5,000 of each at most."""
    covered = mm.metrics.precision_recall(images[:5000], samples[:5000])
    return {
        "frechet_distance": mm.metrics.frechet_distance(samples, images),
        "precision": covered.precision,
        "recall": covered.recall,
    }


class Reference(NamedTuple):
    """What any n samples are measured against: features, the first images of the data by them, and the floor.

    The floor is the same figures between n images of the test split, or as many as it has, and the same images of the
    data; of data without one between two disjoint parts of its first `n + images`, of these sizes or of half of what
    there is.
    """

    features: Features
    data: Rows
    floor: dict[str, Any]


def reference(features: Features, dataset: Dataset, test: Dataset | None, samples: int, images: int) -> Reference:
    """That of so many samples and so many images."""
    first, second, data = _floor(features, samples, dataset, test, images)
    return Reference(features, data, _sides(first, second, test) | _figures(features, first, second))


def report_floor(features: Features, dataset: Dataset, test: Dataset | None, samples: int) -> dict[str, Any]:
    """The floor of the report's figures, which are of four images for each sample."""
    first, second, _ = _floor(features, samples, dataset, test, 4 * samples)
    return _sides(first, second, test) | near(first, second)


def measured(reference: Reference, samples: Float32[np.ndarray, "n c h w"]) -> dict[str, Any]:
    """Every figure of the samples, what it is of, and the floor."""
    features, data, floor = reference
    of = {"samples": len(samples), "images": len(data)}
    return {**features.told, **of, **_figures(features, features.rows(samples), data), "floor": floor}


def _sides(first: Rows, second: Others, test: Dataset | None) -> dict[str, Any]:
    return {"samples": len(first), "images": len(second), "of": "training split" if test is None else "test split"}


def _floor(
    features: Features, samples: int, dataset: Dataset, test: Dataset | None, images: int
) -> tuple[Rows, Others, Real[np.ndarray, "data d"]]:
    """The two sides of the floor, and the data that samples are held against."""
    if test is not None:
        data = features.rows(dataset.x[:images])
        return features.rows(test.x[:samples]), data, data
    pool = features.rows(dataset.x[: samples + images])
    order, size = np.random.default_rng(0).permutation(len(pool)), min(samples, len(pool) // 2)
    return pool[order[:size]], pool[order[size : size + images]], pool[:images]


def _figures(features: Features, samples: Rows, images: Others) -> dict[str, float]:
    """The kernel distance is of ten blocks at least, for the sake of its error, if each has four rows of both sets."""
    longer, shorter = max(len(samples), len(images)), min(len(samples), len(images))
    block = max(min(1000, longer // 10), 4 * longer // shorter + 1)
    kernel = mm.metrics.kernel_distance(samples, images, block=block)
    return {
        **near(samples, images),
        "kernel_distance": kernel.value,
        "kernel_distance_stderr": kernel.stderr,
        **features.further(samples, images),
    }
