"""What a distillation is told."""

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import momentax as mm

from ._formats import require

tyro = require("tyro")

SCHEDULES: dict[str, Callable[[], mm.AbstractSchedule | None]] = {
    "teacher": lambda: None,
    "cosine": mm.CosineSchedule,
    "flow": mm.FlowSchedule,
    "karras": mm.KarrasSchedule,
}
WEIGHTS: dict[str, Callable[..., Any]] = {
    "adaptive": mm.adaptive_weight,
    "edm": mm.edm_weight,
    "flat": mm.flat_weight,
    "min-snr": mm.min_snr_weight,
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

Network = Literal["mlp", "uvit", "uvit-small"]
Kernel = Literal["ddim", "posterior", "renoise", "stochastic"]
Weight = Literal["adaptive", "edm", "flat", "min-snr", "snr", "truncated-snr", "v"]


@dataclasses.dataclass(frozen=True)
class Distill:
    """Distils a few-step student from a teacher, draws, evaluates and reports.

    The teacher is trained first, unless it is given or the output folder holds one of the same data. Where there are
    several devices, batches are spread over all of them.
    """

    data: Annotated[str, tyro.conf.arg(metavar="digits|icons|fashion-mnist|emoji|PATH.npz")] = "digits"
    """what to learn; PATH.npz holds x [n, h, w, c], uint8 or float in [-1, 1], and optionally y [n]"""
    teacher: Path | None = None
    """folder of a diffusers pipeline or network, whose teacher to take"""
    teacher_predicts: Literal["eps", "v", "x"] | None = None
    """of a network's folder, which has no scheduler to tell"""
    teacher_betas: Literal["linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2"] | None = None
    """of a network's folder: the thousand steps it was trained with, in diffusers' names"""
    teacher_scheduler: Path | None = None
    """of a network's folder, in place of both: a scheduler_config.json, its folder or a pipeline's"""
    teacher_variant: str | None = None
    """of the weights, as fp16; None is the plain ones, or the only variant there is"""
    network: Network | None = None
    """of a teacher that is trained; None is an MLP up to 8x8 and a UViT above, or what the teacher in the folder has"""
    algorithm: Literal["alternating", "joint", "instant"] = "alternating"
    """Algorithm 2, with an auxiliary network, in turns or both at once, or Algorithm 3, without"""
    k: int = 8
    """steps that the student shall sample in"""
    schedule: Literal["teacher", "cosine", "flow", "karras"] = "teacher"
    """of the rollouts, and of every sampler of the run; teacher is the one that the teacher was trained under, which
    for one that is trained here is cosine"""
    weight: Weight | None = None
    """w(s) of the distillation; None fits what the teacher predicts: flat, or min-snr for the noise"""
    kernel: Kernel = "posterior"
    """q(z_s | z_t, x) of the rollouts and of the student's sampler; stochastic has eta = 0.5"""
    guidance: float = 0.0
    """classifier-free guidance of the teacher; 0 is off"""
    tangent: Literal["difference", "forward", "reverse"] = "forward"
    """how the instant loss takes the teacher's tangent"""
    teacher_updates: int | None = None
    """updates of the teacher; None is the preset, or what the teacher in the folder had"""
    updates: int | None = None
    """updates of the distillation, each of one player, or of both at once if joint; None is the preset"""
    batch: int | None = None
    """examples in a batch of the distillation, on all devices together; None is the preset"""
    micro_batches: int = 1
    """parts in which each device takes its batch of the distillation, with the memory of one of them"""
    learning_rate: float | None = None
    """of the distillation, reached after a warm-up and then linear to zero; None is the preset"""
    auxiliary_rate: float | None = None
    """the auxiliary's learning rate over the student's; None is the preset"""
    b1: float | None = None
    """of the distillation's Adam; at 0, the paper's, it keeps no first moment; None is the preset"""
    samples: int = 5000
    """drawn from each model for the evaluation"""
    evaluate_every: int | None = None
    """updates of the distillation from one Frechet distance of the student to the next; the best student is kept"""
    seed: int = 0
    """of everything"""
    output: Path | None = None
    """folder for weights, report and pictures; None is runs/ and the name of the data"""
    overwrite: bool = False
    """start anew, in place of the run that the folder holds; its teacher is kept"""
    resume: bool = False
    """go on with the unfinished run in the folder, with its own settings"""
    checkpoint_every: int = 1000
    """updates from one checkpoint to the next"""


@dataclasses.dataclass(frozen=True)
class Draw:
    """What to draw from a finished run."""

    output: Path = Path("runs/digits")
    """folder of the run"""
    to: Path | None = None
    """folder for what is drawn or measured; None is the run's"""
    model: Literal["student", "student-best", "teacher"] = "student"
    """which of its networks"""
    k: int | None = None
    """steps; None is the run's own"""
    samples: int | None = None
    """how many; None is 64 to look at, 5000 to evaluate"""
    seed: int = 0
    """another seed, other samples"""
    kernel: Kernel | None = None
    """q(z_s | z_t, x) of the sampler; None is the run's own for a student, and the posterior for a teacher"""
    noise: float | None = None
    """in place of a kernel: gamma of Salimans & Ho's noisier posterior, from 0, the posterior, to 1"""


@dataclasses.dataclass(frozen=True)
class Evaluate(Draw):
    """What to measure of a finished run."""

    features: tuple[Literal["pixels", "classifier", "efficientnet", "efficientnet-early"], ...] = ("pixels",)
    """what the distances are measured on; several are of the same samples"""
    images: int | None = None
    """of the data, to hold the samples against; None is four for each sample, as in the report"""
    data: str | None = None
    """where the run's data are now, a name or PATH.npz; None is where they were"""


@dataclasses.dataclass(frozen=True)
class Run(Distill):
    """A distillation with every default filled in."""

    weight: Weight = "flat"
    teacher_updates: int = 0
    updates: int = 0
    batch: int = 0
    learning_rate: float = 0.0
    auxiliary_rate: float = 1.0
    b1: float = 0.0
    output: Path = Path("runs/digits")


def schedule_of(name: str, teacher: Any) -> mm.AbstractSchedule:
    """The schedule of the rollouts and of every sampler of a run."""
    named = SCHEDULES[name]()
    return mm.default_schedule(teacher) if named is None else named


_OF_THE_PLACE = ("output", "overwrite", "resume", "checkpoint_every")


def folder_of(config: Distill) -> Path:
    """The folder of a run: the one that is named, or `runs/` and the data's name."""
    return config.output or Path("runs", Path(config.data).stem)


def as_json(config: Distill) -> dict[str, Any]:
    """The configuration as plain values, without what changes nothing but where and how often it is written."""
    values = dataclasses.asdict(config)
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    return {name: value for name, value in plain.items() if name not in _OF_THE_PLACE}


def from_json(values: Any) -> Run:
    """What `as_json` told.

    Raises:
        ValueError: for settings that this version does not know, and values that they cannot have.
    """
    hints, told = typing.get_type_hints(Run), values if isinstance(values, dict) else {"configuration": values}
    wrong = [name for name in told if name not in hints or not _fits(told[name], hints[name])]
    if wrong:
        got = ", ".join(f"{name} {told[name]!r}" for name in wrong)
        raise ValueError(f"needs settings that this version knows; got {got}; use the version that wrote them")
    names = ("teacher", "teacher_scheduler")
    paths: dict[str, Any] = {name: Path(values[name]) for name in names if values.get(name)}
    return Run(**(values | paths))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a setting's type."""
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_args(hint):
        return any(_fits(value, one) for one in typing.get_args(hint))
    return isinstance(value, {float: (float, int), Path: str}.get(hint, hint))


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Each setting that two configurations disagree on, as `--name theirs -> ours`."""
    theirs = as_json(Run()) | theirs
    names = [name for name in ours if ours[name] != theirs.get(name)]
    return [f"{flag(name)} {theirs.get(name)} -> {ours[name]}" for name in names]


def flag(name: str) -> str:
    """How a setting is written on the command line."""
    return f"--{name.replace('_', '-')}"
