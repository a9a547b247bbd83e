"""What a distillation is told, and the defaults that depend on the data and the algorithm."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import momentax as mm

from ._data import Dataset
from ._formats import require

tyro = require("tyro")

SCHEDULES: dict[str, Callable[[], mm.AbstractSchedule]] = {
    "cosine": mm.CosineSchedule,
    "flow": mm.FlowSchedule,
    "karras": mm.KarrasSchedule,
}
WEIGHTS: dict[str, Callable[..., Any]] = {
    "adaptive": mm.adaptive_weight,
    "edm": mm.edm_weight,
    "flat": mm.flat_weight,
    "snr": mm.snr_weight,
    "truncated-snr": mm.truncated_snr_weight,
    "v": mm.v_weight,
}
KERNELS: dict[str, Callable[..., Any]] = {
    "ddim": mm.ddim,
    "posterior": mm.conditional_posterior,
    "renoise": mm.renoise,
    "stochastic": mm.stochastic(0.5),
}

TANGENTS: dict[str, Callable[..., Any]] = {
    "difference": mm.central_difference,
    "forward": mm.forward_mode,
    "reverse": mm.reverse_mode,
}

Weight = Literal["adaptive", "edm", "flat", "snr", "truncated-snr", "v"]


@dataclasses.dataclass(frozen=True)
class Distill:
    """Distils a few-step student from a teacher, draws, evaluates and reports.

    The teacher is trained first, unless it is given or the output folder holds one of the same data.
    """

    data: Annotated[str, tyro.conf.arg(metavar="digits|icons|fashion-mnist|emoji|PATH.npz")] = "digits"
    """what to learn; PATH.npz holds x [n, h, w, c], uint8 or float in [-1, 1], and optionally y [n]"""
    teacher: Path | None = None
    """folder of a diffusers pipeline or network, whose teacher to take"""
    teacher_predicts: Literal["eps", "v", "x"] | None = None
    """of a network's folder, which has no scheduler to tell"""
    teacher_betas: Literal["linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2"] | None = None
    """of a network's folder: the thousand steps it was trained with, in diffusers' names"""
    algorithm: Literal["alternating", "instant"] = "alternating"
    """Algorithm 2, with an auxiliary network, or Algorithm 3, without"""
    k: int = 8
    """steps that the student shall sample in"""
    schedule: Literal["cosine", "flow", "karras"] = "cosine"
    """of the rollouts, and of every sampler of the run"""
    weight: Weight | None = None
    """w(s) of the distillation; None is the preset of data and algorithm"""
    kernel: Literal["ddim", "posterior", "renoise", "stochastic"] = "posterior"
    """q(z_s | z_t, x) of the rollouts and of the student's sampler; stochastic has eta = 0.5"""
    guidance: float = 0.0
    """classifier-free guidance of the teacher; 0 is off"""
    tangent: Literal["difference", "forward", "reverse"] = "forward"
    """how the instant loss takes the teacher's tangent"""
    teacher_updates: int | None = None
    """updates of the teacher; None is the preset, or what the teacher in the folder had"""
    updates: int | None = None
    """updates of the distillation, both players' together; None is the preset"""
    batch: int | None = None
    """examples in a batch of the distillation; None is the preset"""
    learning_rate: float | None = None
    """of the distillation, reached after a warm-up and then linear to zero; None is the preset"""
    samples: int = 5000
    """drawn from each model for the evaluation"""
    seed: int = 0
    """of everything"""
    output: Path = Path("runs/digits")
    """folder for weights, report and pictures"""
    overwrite: bool = False
    """replace the finished run that the folder holds"""


@dataclasses.dataclass(frozen=True)
class Draw:
    """What to draw from a finished run."""

    output: Path = Path("runs/digits")
    """folder of the run"""
    model: Literal["student", "teacher"] = "student"
    """which of its networks"""
    k: int | None = None
    """steps; None is the run's own"""
    samples: int | None = None
    """how many; None is 64 to look at, 5000 to evaluate"""
    seed: int = 0
    """another seed, other samples"""


@dataclasses.dataclass(frozen=True)
class Run(Distill):
    """A distillation with every default filled in."""

    weight: Weight = "flat"
    teacher_updates: int = 0
    updates: int = 0
    batch: int = 0
    learning_rate: float = 0.0


@dataclasses.dataclass(frozen=True)
class Preset:
    """How long and how fast: for one kind of data."""

    teacher_updates: int
    teacher_batch: int
    teacher_learning_rate: float
    alternating: dict[str, Any]
    instant: dict[str, Any]


PRESETS = {
    "mlp": Preset(
        6000,
        256,
        1e-3,
        alternating={"weight": "flat", "updates": 6000, "batch": 256, "learning_rate": 1e-3},
        instant={"weight": "flat", "updates": 4000, "batch": 1024, "learning_rate": 1e-4},
    ),
    "uvit": Preset(
        8000,
        128,
        1e-3,
        alternating={"weight": "flat", "updates": 6000, "batch": 128, "learning_rate": 3e-4},
        instant={"weight": "flat", "updates": 4000, "batch": 256, "learning_rate": 1e-4},
    ),
}


def resolved(config: Distill, dataset: Dataset) -> Run:
    """The configuration with every default filled in, checked against the data."""
    preset = PRESETS[network_kind(dataset.x.shape[1:])]
    filled = {**getattr(preset, config.algorithm), "teacher_updates": 0 if config.teacher else preset.teacher_updates}
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    config = Run(**(filled | given))
    _check_teacher(config)
    trains = config.teacher is None
    if trains and network_kind(dataset.x.shape[1:]) == "uvit" and (dataset.x.shape[2] % 4 or dataset.x.shape[3] % 4):
        raise ValueError(f"needs images of sides that divide by 4; got {dataset.x.shape[2:]}; do pad or crop them")
    positive = ("k", "updates", "batch", "samples", "learning_rate", *(["teacher_updates"] if trains else []))
    check_positive(**{name: getattr(config, name) for name in positive})
    if config.algorithm == "instant" and config.batch % 2:
        raise ValueError(f"needs an even --batch for instant; got {config.batch}; do take {config.batch + 1}")
    if config.guidance and not dataset.num_classes:
        raise ValueError(f"needs labels for --guidance; got {dataset.name} without; do add y, or drop --guidance")
    if config.samples < 16:
        raise ValueError(f"needs --samples >= 16; got {config.samples}; do draw more, 5000 for a stable distance")
    return config


def _check_teacher(config: Run) -> None:
    if config.teacher is not None and config.teacher_updates:
        raise ValueError(
            f"needs --teacher or --teacher-updates; got both, {config.teacher} and {config.teacher_updates};"
            " do drop one: a teacher that is given is not trained"
        )
    if config.teacher is None and (config.teacher_predicts or config.teacher_betas):
        raise ValueError("needs --teacher with --teacher-predicts and --teacher-betas; got none; do name its folder")


def check_positive(**options: float) -> None:
    """Demands options above zero, and says which is not."""
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"needs --{_flag(name)} > 0; got {value}; do give a positive number")


def network_kind(shape: tuple[int, ...]) -> str:
    """Which reference network suits images [c, h, w]: an MLP up to 8x8, a UViT above."""
    return "mlp" if shape[1] * shape[2] <= 64 else "uvit"


def as_json(config: Run) -> dict[str, Any]:
    """The configuration as plain values, without what is about the place it is written to."""
    values = dataclasses.asdict(config)
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    return {name: value for name, value in plain.items() if name not in ("output", "overwrite")}


def from_json(values: dict[str, Any]) -> Run:
    """What `as_json` told."""
    run = Run(**values)
    return dataclasses.replace(run, teacher=None if run.teacher is None else Path(run.teacher))


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Each setting that two configurations disagree on, as `--name theirs -> ours`."""
    theirs = as_json(Run()) | theirs
    names = [name for name in ours if ours[name] != theirs.get(name)]
    return [f"--{_flag(name)} {theirs.get(name)} -> {ours[name]}" for name in names]


def _flag(name: str) -> str:
    return name.replace("_", "-")
