"""How good the samples are: the same draws, features and distances for teacher and student."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

import momentax as mm

from ._data import Dataset
from ._devices import at_once
from ._figures import near
from ._key import key_of
from ._progress import parts
from ._settings import KERNELS, Run, schedule_of
from ._source import Outline

Kernel = Callable[..., mm.Gaussian]
Schedule = str | mm.AbstractSchedule
FEATURES = "pixels"


def draw(
    denoiser: Any, steps: int, schedule: Schedule, kernel: Kernel, like: Dataset | Outline, samples: int, seed: int
) -> Float[np.ndarray, "n c h w"]:
    """Samples in [-1, 1], of labels drawn as the data has them; sample i depends on seed and i alone."""
    chunks = _chunks(denoiser, steps, schedule, kernel, outline(like), samples, seed)
    shown = parts(range(len(chunks)), f"{samples} samples in {steps} steps")
    return np.clip(np.concatenate([chunks[n]() for n in shown]), -1, 1)


def distance(config: Run, dataset: Dataset, student: Any) -> float:
    """The Frechet distance that the report has of a student, without a bar and without heed of signals."""
    told = (config.k, config.schedule, KERNELS[config.kernel], outline(dataset), config.samples, config.seed)
    samples = np.concatenate([chunk() for chunk in _chunks(student, *told)])
    return mm.metrics.frechet_distance(*_features(np.clip(samples, -1, 1), dataset))


def outline(like: Dataset | Outline) -> Outline:
    """What samples take from the data."""
    return like if isinstance(like, Outline) else Outline(like.x.shape[1:], like.y)


def labels_like(like: Dataset | Outline, samples: int, seed: int) -> Int[np.ndarray, " n"] | None:
    """Labels with the data's frequencies, or none where the data has none."""
    if like.y is None:
        return None
    return like.y[np.random.default_rng(seed).integers(0, len(like.y), samples)]


def distances(samples: Float[np.ndarray, "n c h w"], dataset: Dataset) -> dict[str, float]:
    """Distances of n samples to the first 4n images of the data, on pixels; precision and recall of 5,000 at most."""
    return near(*_features(samples, dataset))


def evaluate(
    config: Run, dataset: Dataset, teacher: Any, student: Any
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, Float[np.ndarray, "n c h w"]]]:
    """Distances of the student at k steps and the teacher at several, and the samples behind them.

    The samples are by label, which has the Frechet distance.
    """
    figures: dict[str, dict[str, dict[str, float]]] = {"student": {}, "teacher": {}}
    drawn = {}
    for name, steps in [("student", config.k), *(("teacher", n) for n in sorted({config.k, 8, 16, 64, 256}))]:
        model, kernel = (student, KERNELS[config.kernel]) if name == "student" else (teacher, mm.conditional_posterior)
        samples = draw(model, steps, config.schedule, kernel, dataset, config.samples, config.seed)
        figures[name][str(steps)] = distances(samples, dataset)
        frechet = figures[name][str(steps)]["frechet_distance"]
        drawn[f"{name}, {steps} steps  {short(frechet)}"] = samples[:64]
        print(f"{name} at {steps} steps: Frechet distance {frechet:.3f}")
    return figures, drawn


def short(distance: float) -> str:
    """A distance in few digits, for a label."""
    return f"{distance:.2f}" if distance >= 0.1 else f"{distance:.1g}"


def _features(samples: Float[np.ndarray, "n c h w"], dataset: Dataset) -> tuple[Any, Any]:
    return samples.reshape(len(samples), -1), dataset.x[: 4 * len(samples)].reshape(-1, dataset.x[0].size)


def _chunks(
    denoiser: Any, steps: int, schedule: Schedule, kernel: Kernel, like: Outline, samples: int, seed: int
) -> list[Callable[[], Float[np.ndarray, "m c h w"]]]:
    named = schedule_of(schedule, denoiser) if isinstance(schedule, str) else schedule
    sampler = mm.ancestral_sampler(denoiser, steps, schedule=named, kernel=kernel)
    labels, keys = labels_like(like, samples, seed), jax.random.split(key_of(seed), samples)

    size = at_once(500, cached=64)

    def chunk(start: int) -> Float[np.ndarray, "m c h w"]:
        own = slice(start, start + size)
        label = None if labels is None else jnp.asarray(labels[own])
        return np.asarray(_draw_chunk(sampler, keys[own], label, like.shape))

    return [partial(chunk, start) for start in range(0, samples, size)]


@eqx.filter_jit
def _draw_chunk(
    sampler: Any, keys: Key[Array, " n"], labels: Int[Array, " n"] | None, shape: tuple[int, ...]
) -> Float[Array, "n *x"]:
    return jax.vmap(lambda key, label: sampler(key, shape, label))(keys, labels)
