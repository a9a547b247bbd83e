"""The defaults that depend on the data and the algorithm, and what they and the rest must be like."""

import dataclasses
import math
from typing import Any

import jax

import momentax as mm

from ._data import Dataset
from ._settings import SCHEDULES, WEIGHTS, Distill, Network, Run, flag


@dataclasses.dataclass(frozen=True)
class Preset:
    """How long and how fast: for one kind of data."""

    teacher_updates: int
    teacher_batch: int
    teacher_learning_rate: float
    alternating: dict[str, Any]
    joint: dict[str, Any]
    instant: dict[str, Any]


_MLP = {"batch": 256, "learning_rate": 1e-3, "auxiliary_rate": 1.0, "b1": 0.0}
_UVIT = {"batch": 128, "learning_rate": 1e-4, "auxiliary_rate": 4.0, "b1": 0.9}
_INSTANT = {"updates": 4000, "learning_rate": 1e-4, "b1": 0.9}

PRESETS = {
    "mlp": Preset(
        6000,
        256,
        1e-3,
        alternating=_MLP | {"updates": 6000},
        joint=_MLP | {"updates": 3000},
        instant=_INSTANT | {"batch": 1024},
    ),
    "uvit": Preset(
        8000,
        128,
        1e-3,
        alternating=_UVIT | {"updates": 6000},
        joint=_UVIT | {"updates": 3000},
        instant=_INSTANT | {"batch": 256},
    ),
    "uvit-small": Preset(
        10_000,
        64,
        2e-3,
        alternating=_UVIT | {"updates": 2000, "batch": 64},
        joint=_UVIT | {"updates": 1000, "batch": 64},
        instant=_INSTANT | {"updates": 1000, "batch": 128},
    ),
}


def resolved(config: Distill, dataset: Dataset, teacher: Any = None) -> Run:
    """The configuration with every default filled in, checked against the data and the teacher that is given, if any.

    A teacher that is trained here predicts v.
    """
    preset = preset_of(config, dataset)
    filled = {**getattr(preset, config.algorithm), "teacher_updates": 0 if config.teacher else preset.teacher_updates}
    filled["weight"] = _fitting_weight(teacher)
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    if config.teacher is None and config.network == suited(dataset.x.shape[1:]):
        given["network"] = None
    config = Run(**(filled | given))
    _check_teacher(config)
    _check_sides(config, dataset)
    check_positive(**{name: getattr(config, name) for name in _positive(config)})
    _check_divides(config)
    _check_optimizer(config)
    if not 0 <= config.guidance < math.inf:
        raise ValueError(f"needs --guidance >= 0 and finite; got {config.guidance}; use 0 for none")
    if config.guidance and not dataset.num_classes:
        raise ValueError(f"needs labels for --guidance; got {dataset.name} without; do add y, or drop --guidance")
    check_enough(samples=config.samples)
    check_images(dataset)
    _check_schedule(config, teacher)
    check_seed(config.seed)
    return config


def _check_schedule(config: Run, teacher: Any) -> None:
    """The library's own check of a schedule against what the teacher was trained on, before anything is written."""
    if teacher is not None:
        mm.student_loss(teacher, teacher, rollout=mm.Rollout(SCHEDULES[config.schedule]()))


def _fitting_weight(teacher: Any) -> str:
    """By name; of a teacher that is yet to be trained, which predicts v, flat."""
    fitting = mm.flat_weight if teacher is None else mm.default_weight(teacher)
    return next(name for name, weight in WEIGHTS.items() if weight is fitting)


def _check_sides(config: Run, dataset: Dataset) -> None:
    sides, network = dataset.x.shape[2:], config.network or suited(dataset.x.shape[1:])
    if config.teacher is None and network != "mlp" and any(side % 4 for side in sides):
        raise ValueError(f"needs images of sides that divide by 4; got {sides}; do pad or crop them")


def _positive(config: Run) -> list[str]:
    names = ["k", "updates", "batch", "samples", "learning_rate", "auxiliary_rate", "micro_batches", "checkpoint_every"]
    maybe = [("evaluate_every", config.evaluate_every is not None), ("teacher_updates", config.teacher is None)]
    return names + [name for name, asked in maybe if asked]


def _check_divides(config: Run) -> None:
    devices, halves = jax.device_count(), 2 if config.algorithm == "instant" else 1
    unit = devices * config.micro_batches * halves
    if config.batch % unit == 0:
        return
    suitable = config.batch + unit - config.batch % unit
    if unit == 2 and halves == 2:
        raise ValueError(f"needs an even --batch for instant; got {config.batch}; do take {suitable}")
    halved = " times 2 for instant" if halves == 2 else ""
    raise ValueError(
        f"needs a --batch that divides by {unit}: {devices} devices times {config.micro_batches} --micro-batches"
        f"{halved}; got {config.batch}; do take {suitable}"
    )


def _check_teacher(config: Run) -> None:
    if config.teacher is not None and config.teacher_updates:
        raise ValueError(
            f"needs --teacher or --teacher-updates; got both, {config.teacher} and {config.teacher_updates};"
            " do drop one: a teacher that is given is not trained"
        )
    if config.teacher is not None and config.network:
        raise ValueError(
            f"needs --teacher or --network; got both, {config.teacher} and {config.network};"
            " do drop one: the teacher that is given is the network"
        )
    told = [config.teacher_predicts, config.teacher_betas, config.teacher_scheduler, config.teacher_variant]
    if config.teacher is None and any(told):
        raise ValueError("needs --teacher with what is told of one (--teacher-...); got none; name its folder")


def _check_optimizer(config: Run) -> None:
    if not 0 <= config.b1 < 1:
        raise ValueError(f"needs 0 <= --b1 < 1; got {config.b1}; do take 0, or 0.9")
    if config.algorithm == "instant" and config.auxiliary_rate != 1:
        raise ValueError(
            f"needs an auxiliary for --auxiliary-rate; got {config.auxiliary_rate} for instant, without one; do drop it"
        )


def check_positive(**options: int | float) -> None:
    """Demands finite options above zero, and says which is not."""
    for name, value in options.items():
        if not 0 < value < math.inf:
            finite = " and finite" if value == math.inf else ""
            raise ValueError(f"needs {flag(name)} > 0{finite}; got {value}; give a positive number")
        if isinstance(value, int) and value >= 2**31:
            raise ValueError(f"needs {flag(name)} < 2**31; got {value}; give a smaller number")


def check_seed(seed: int) -> None:
    """Demands a seed that all generators of random numbers take."""
    if not 0 <= seed < 2**32 - 1:
        raise ValueError(f"needs 0 <= --seed < 2**32 - 1; got {seed}; choose one of these")


def check_enough(**options: int) -> None:
    """Demands as many samples or images as a distance takes, and says which are too few."""
    for name, value in options.items():
        if value < 16:
            raise ValueError(f"needs {flag(name)} >= 16; got {value}; do take more, 5000 for a stable distance")


def check_images(dataset: Dataset, parts: int = 1) -> None:
    """Demands as many images as distances take, four in each of so many disjoint parts."""
    least, count = 4 * parts, len(dataset.x)
    if count < least:
        held = "to measure samples against" if parts == 1 else "to measure samples against, and each half by the other"
        raise ValueError(f"needs at least {least} images {held}; got {count} in {dataset.name}; add more to the data")


def preset_of(config: Distill, dataset: Dataset) -> Preset:
    """That of the network that is asked for, or of the one that suits the data."""
    return PRESETS[config.network or suited(dataset.x.shape[1:])]


def suited(shape: tuple[int, ...]) -> Network:
    """Which reference network suits images [c, h, w]: an MLP up to 8x8, a UViT above."""
    return "mlp" if shape[1] * shape[2] <= 64 else "uvit"
