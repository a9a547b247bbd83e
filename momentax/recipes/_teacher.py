"""The teacher: the one that the output folder holds, or one trained on the data."""

import hashlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import momentax as mm

from ._data import Dataset
from ._folder import Folder
from ._progress import Progress
from ._settings import PRESETS, Distill, Run, network_kind
from ._training import Curves, batches, initial_state, updating


def found_teacher(folder: Folder, config: Distill, dataset: Dataset) -> dict[str, Any] | None:
    """What the folder's teacher was trained on, and for how long; None without one; an error if it does not fit."""
    if not folder.has("teacher.json"):
        return None
    found = folder.read_json("teacher.json")
    asked = identity(dataset) | {"teacher_updates": config.teacher_updates or found["teacher_updates"]}
    for name, value in asked.items():
        if found[name] != value:
            raise ValueError(
                f"needs the teacher in {folder.path} to fit: {name} {value}; got {found[name]};"
                " do choose another --output, or ask for what this one is"
            )
    return found


def identity(dataset: Dataset) -> dict[str, Any]:
    """What must be equal for a teacher to be of this data."""
    content = hashlib.sha256(dataset.x.tobytes() + (b"" if dataset.y is None else dataset.y.tobytes()))
    return {
        "data": dataset.name,
        "shape": list(dataset.x.shape[1:]),
        "num_classes": dataset.num_classes,
        "sha256": content.hexdigest(),
    }


def network(dataset: Dataset, key: PRNGKeyArray) -> mm.Denoiser:
    """An untrained denoiser for the data: v-prediction, log-SNR for time, one class more for "none"."""
    shape, classes = dataset.x.shape[1:], dataset.num_classes or None
    if network_kind(shape) == "mlp":
        return mm.Denoiser(mm.nn.MLP(shape, width=256, depth=3, num_classes=classes, key=key))
    return mm.Denoiser(mm.nn.UNet(shape[0], multipliers=(1, 2), patch=2, num_classes=classes, key=key))


def train_teacher(config: Run, dataset: Dataset, teacher: mm.Denoiser, key: PRNGKeyArray) -> tuple[mm.Denoiser, Curves]:
    """A teacher: unweighted loss on v under the cosine schedule, Adam, cosine decay, moving average of its weights.

    A tenth of the labels is hidden, for guidance.
    """
    preset, updates = PRESETS[network_kind(dataset.x.shape[1:])], config.teacher_updates
    rate = optax.warmup_cosine_decay_schedule(0, preset.teacher_learning_rate, min(200, updates // 10), updates)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    average, state, update = teacher, initial_state(optimizer, teacher), updating(optimizer)
    loss = mm.denoising_loss(schedule=mm.CosineSchedule(), weight=mm.v_weight)
    examples = batches(dataset, preset.teacher_batch, config.seed, hidden=0.1)
    progress = Progress("teacher", updates)
    for n in progress:
        x, cond = next(examples)
        teacher, state, value = update(loss, teacher, state, x, jax.random.fold_in(key, n), cond)
        average = _moving_average(average, teacher, jnp.float32(min(0.999, (1 + n) / (10 + n))))
        progress.record(teacher=value)
    return average, progress.losses


@eqx.filter_jit
def _moving_average(average: Any, model: Any, decay: Float[Array, ""]) -> Any:
    moving, fixed = eqx.partition(average, eqx.is_inexact_array)
    return eqx.combine(optax.incremental_update(eqx.filter(model, eqx.is_inexact_array), moving, 1 - decay), fixed)
