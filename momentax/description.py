"""What a folder says of a student in `student.json`: how its network is built, and how it is sampled.

Plain JSON in names of this library. Reading it calls nothing but the classes and functions that are listed here.
"""

import dataclasses
import importlib.metadata
import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from . import nn
from ._denoiser import Denoiser, predict_eps, predict_flow, predict_score, predict_v, predict_x
from ._process import _Noisier, _Stochastic, conditional_posterior, ddim, noisier, renoise, stochastic
from ._schedule import (
    AbstractSchedule,
    CosineSchedule,
    DiscreteSchedule,
    FlowSchedule,
    KarrasSchedule,
    _Interpolated,
    _Shifted,
    _Truncated,
    interpolated,
    shifted,
    truncated,
)
from .interop import denoiser_from_diffusers

FILE = "student.json"
FORMAT = 1

Kernel = Callable[..., Any]


class Network(NamedTuple):
    """A network of `momentax.nn` and what it predicts, given the log-SNR for a time.

    Args:
        name: its class, such as "UViT".
        arguments: those that it is made with, all but the key; plain values.
        predict: `momentax.predict_v` or another that takes no settings.
        schedule: the one that it was trained under; None is not known.
    """

    name: str
    arguments: Mapping[str, Any]
    predict: Callable[..., Any] = predict_v
    schedule: AbstractSchedule | None = None

    def untrained(self, key: PRNGKeyArray) -> Denoiser:
        """The denoiser before its training."""
        arguments = {name: tuple(of) if isinstance(of, list) else of for name, of in self.arguments.items()}
        return Denoiser(_NETWORKS[self.name](**arguments, key=key), self.predict, schedule=self.schedule)

    def like(self, root: Path) -> Denoiser:
        """The denoiser with shapes in place of its arrays."""
        return eqx.filter_eval_shape(self.untrained, jax.random.key(0))

    def as_json(self) -> dict[str, Any]:
        predict, schedule = _name(self.predict, _PREDICTIONS), None if self.schedule is None else _plain(self.schedule)
        return {"network": self.name, "arguments": dict(self.arguments), "predict": predict, "schedule": schedule}


class Imported(NamedTuple):
    """A network in diffusers' format whose files are kept beside the weights.

    Args:
        folder: its name in the student's folder.
        predict: of a network without a scheduler, as of `momentax.interop.denoiser_from_diffusers`.
        schedule: likewise.
        variant: likewise.
    """

    folder: str = "teacher"
    predict: Callable[..., Any] | None = None
    schedule: DiscreteSchedule | None = None
    variant: str | None = None

    def like(self, root: Path) -> Denoiser:
        """The denoiser with its own weights."""
        return denoiser_from_diffusers(
            root / self.folder, predict=self.predict, schedule=self.schedule, variant=self.variant
        )

    def as_json(self) -> dict[str, Any]:
        predict = None if self.predict is None else _name(self.predict, _PREDICTIONS)
        schedule = None if self.schedule is None else _plain(self.schedule)
        return {"diffusers": self.folder, "predict": predict, "schedule": schedule, "variant": self.variant}


class Description(NamedTuple):
    """A student without its weights: its network, and what it is sampled with.

    Args:
        denoiser: how its network is built.
        shape: of one example.
        num_classes: of the data, so that `cond` is one of 0 to num_classes - 1; 0 for data without labels.
        k: the steps that it was distilled for.
        schedule: that of the distillation: one of this library's, shifted and interpolated ones included.
        kernel: likewise.
        configuration: of the run, as plain values; nothing reads them to build or to sample.
    """

    denoiser: Network | Imported
    shape: tuple[int, ...]
    num_classes: int
    k: int
    schedule: AbstractSchedule
    kernel: Kernel
    configuration: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The contents of `student.json`.

        Raises:
            ValueError: for a schedule, kernel or prediction that is not of this library.
        """
        return {
            "format": FORMAT,
            "momentax": importlib.metadata.version("momentax"),
            "denoiser": self.denoiser.as_json(),
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "k": self.k,
            "schedule": _plain(self.schedule),
            "kernel": _plain(self.kernel),
            "configuration": self.configuration,
        }


def read(folder: Path) -> Description:
    """What the folder's `student.json` says.

    Raises:
        FileNotFoundError: where there is none, with what to do.
        ValueError: for another file, and for a format of a later version, which is named.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(_missing(folder))
    try:
        values = json.loads(path.read_text())
        written = values["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(_damaged(path, error)) from error
    if not isinstance(written, int) or written > FORMAT:
        raise ValueError(
            f"needs momentax {values.get('momentax')} or later for {path}, of format {written!r}; got momentax"
            f" {importlib.metadata.version('momentax')}, which reads formats up to {FORMAT}; upgrade momentax"
        )
    try:
        return _description(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(_damaged(path, error)) from error


def _missing(folder: Path) -> str:
    if (folder / "run.json").is_file():
        return (
            f"needs a finished run in {folder}; got one that is unfinished;"
            f" run `momentax distill --resume --output {folder}` first"
        )
    if (folder / "report.json").is_file():
        return (
            f"needs {folder / FILE}; got a run of an older momentax, without;"
            " run the distillation again with --overwrite, which keeps its teacher"
        )
    return f"needs {folder / FILE} of a finished run; got none; run `momentax distill --output {folder}` first"


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"needs a description of a student in {path}; got one that fails with {type(error).__name__}: {error};"
        " copy the file again from where the run is whole"
    )


def _description(values: dict[str, Any]) -> Description:
    return Description(
        _denoiser(values["denoiser"]),
        tuple(map(int, values["shape"])),
        int(values["num_classes"]),
        int(values["k"]),
        _made(values["schedule"], _SCHEDULES),
        _made(values["kernel"], _KERNELS),
        dict(values["configuration"]),
    )


def _denoiser(values: dict[str, Any]) -> Network | Imported:
    predict = None if values["predict"] is None else _listed(values["predict"], _PREDICTIONS)
    schedule = None if values["schedule"] is None else _made(values["schedule"], _SCHEDULES)
    if "network" in values:
        _listed(values["network"], _NETWORKS)
        return Network(values["network"], values["arguments"], predict or predict_v, schedule)
    if Path(values["diffusers"]).name != values["diffusers"] or values["diffusers"] == "..":
        raise ValueError(f"needs the name of a folder beside the weights; got {values['diffusers']!r}")
    return Imported(values["diffusers"], predict, schedule, values["variant"])


def _plain(made: Any) -> dict[str, Any]:
    """A schedule or kernel by its maker's name and arguments."""
    if made in _FUNCTIONS.values():
        return {"name": _name(made, _FUNCTIONS)}
    name = _MAKERS.get(type(made))
    if name is None:
        raise ValueError(
            f"needs a schedule and a kernel of momentax, to be kept in a file; got {made}; use one of these"
        )
    fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    return {"name": name} | {name: _plain_value(value) for name, value in fields.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, AbstractSchedule):
        return _plain(value)
    return list(value) if isinstance(value, tuple) else value


def _made(values: dict[str, Any], makers: Mapping[str, Any]) -> Any:
    """What `_plain` told."""
    arguments = {name: value for name, value in values.items() if name != "name"}
    maker = _listed(values["name"], makers)
    if maker in _FUNCTIONS.values():
        return maker
    nested = {name: _made(of, _SCHEDULES) if isinstance(of, dict) else of for name, of in arguments.items()}
    return maker(**nested)


def _discrete(logsnrs: list[float]) -> DiscreteSchedule:
    """The table to the last bit, which its alphas would not give back."""
    table = tuple(map(float, logsnrs))
    if len(table) < 2 or not all(-math.inf < b < a < math.inf for a, b in itertools.pairwise(table)):
        raise ValueError("needs at least two strictly decreasing log-SNRs")
    schedule = object.__new__(DiscreteSchedule)
    object.__setattr__(schedule, "logsnrs", table)
    return schedule


def _name(function: Any, known: Mapping[str, Any]) -> str:
    found = [name for name, one in known.items() if one == function]
    if not found:
        raise ValueError(f"needs one of {', '.join(known)}, to be kept in a file; got {function}; use one of these")
    return found[0]


def _listed(name: Any, known: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"needs one of {', '.join(known)}; got {name!r}")
    return known[name]


_NETWORKS: dict[str, Callable[..., Any]] = {net.__name__: net for net in (nn.MLP, nn.UNet, nn.UViT, nn.DiT)}
_PREDICTIONS: dict[str, Callable[..., Any]] = {
    predict.__name__: predict for predict in (predict_x, predict_eps, predict_v, predict_score, predict_flow)
}
_FUNCTIONS: dict[str, Kernel] = {kernel.__name__: kernel for kernel in (conditional_posterior, ddim, renoise)}
_MAKERS: dict[type, str] = {
    KarrasSchedule: "KarrasSchedule",
    CosineSchedule: "CosineSchedule",
    FlowSchedule: "FlowSchedule",
    DiscreteSchedule: "DiscreteSchedule",
    _Shifted: "shifted",
    _Interpolated: "interpolated",
    _Truncated: "truncated",
    _Stochastic: "stochastic",
    _Noisier: "noisier",
}
_SCHEDULES: dict[str, Callable[..., AbstractSchedule]] = {
    "KarrasSchedule": KarrasSchedule,
    "CosineSchedule": CosineSchedule,
    "FlowSchedule": FlowSchedule,
    "DiscreteSchedule": _discrete,
    "shifted": shifted,
    "interpolated": interpolated,
    "truncated": truncated,
}
_KERNELS: dict[str, Callable[..., Any]] = {**_FUNCTIONS, "stochastic": stochastic, "noisier": noisier}
