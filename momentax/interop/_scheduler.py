"""What a diffusers scheduler says about a network: the schedule, the prediction and the time it was trained with."""

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._denoiser import Time, predict_edm, predict_eps, predict_flow, predict_v, predict_x
from .._schedule import AbstractSchedule, DiscreteSchedule, FlowSchedule, KarrasSchedule, shifted
from ._betas import DDPM, BetaDefaults, alphas_cumprod
from ._options import Options, read_json


class Convention(NamedTuple):
    """A scheduler in the terms of `momentax.Denoiser`."""

    schedule: AbstractSchedule
    predict: Callable[..., Any]
    time: Time | None


def schedule_from_diffusers(config: str | os.PathLike[str] | Mapping[str, Any]) -> AbstractSchedule:
    r"""The noise schedule of a diffusers scheduler, by its settings or their file, its folder or a pipeline's.

    A table of betas becomes a `DiscreteSchedule`; a flow's grid with its shift s a `FlowSchedule` shifted by
    $-2\ln s$ (one that depends on the resolution is not applied); EDM's levels a `KarrasSchedule`. A table that ends
    at zero SNR ends at $\bar\alpha = 2^{-24}$ instead, or at a quarter of the step before where that is less: finite,
    and below it. What a scheduler's class takes where its settings do not say is diffusers'.

    Raises:
        ValueError: for a scheduler or a setting that is not supported.
    """
    return convention(config).schedule


def convention(config: str | os.PathLike[str] | Mapping[str, Any]) -> Convention:
    """The convention of a scheduler, by its settings or their file, its folder or a pipeline's."""
    if isinstance(config, Mapping):
        return _read(config, "the settings that were given")
    path = _config_of(Path(config))
    return _read(read_json(path), path)


def has_scheduler(folder: Path) -> bool:
    """Whether the settings of a scheduler lie in a folder."""
    return any(path.is_file() for path in _places(folder))


def _read(values: Mapping[str, Any], path: Any) -> Convention:
    name = values.get("_class_name")
    if name not in _READERS:
        raise ValueError(
            f"needs a scheduler out of {sorted(_READERS)}; got {name!r} in {path}; build a momentax.Denoiser of the"
            " network with a prediction and a time of your own"
        )
    return _READERS[name](Options(values, path))


def _config_of(path: Path) -> Path:
    for candidate in (path, *_places(path)):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"needs a scheduler_config.json; got none at {path}; pass that file, its folder or its pipeline's"
    )


def _places(folder: Path) -> list[Path]:
    return [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]


class _FlowTime(eqx.Module):
    r"""$N\tau$, $\tau = \mathrm{sigmoid}(-\ell/2)$."""

    steps: int = eqx.field(static=True)

    def __call__(self, logsnr: Float[Array, ""]) -> Float[Array, ""]:
        return self.steps * jax.nn.sigmoid(-logsnr / 2)


class _PredictEDM(eqx.Module):
    """`predict_edm` with a standard deviation of the data of one's own."""

    sigma_data: float = eqx.field(static=True)

    def __call__(self, net, z: Float[Array, "*x"], logsnr: Float[Array, ""], time: Time | None, cond: Any):
        return predict_edm(net, z, logsnr, time, cond, sigma_data=self.sigma_data)


_PREDICTIONS = {"epsilon": predict_eps, "sample": predict_x, "v_prediction": predict_v}


def _variance_preserving(options: Options, defaults: BetaDefaults = DDPM, snr_shift: float = 1.0) -> Convention:
    options.take("use_flow_sigmas", False, False, None)
    options.take("timestep_type", "discrete", "discrete")
    options.take("predict_epsilon", True, True)
    predict = _PREDICTIONS[options.take("prediction_type", "epsilon", *_PREDICTIONS)]
    schedule = DiscreteSchedule(alphas_cumprod(options, defaults, snr_shift))
    return Convention(schedule, predict, schedule.step)


def _flow(options: Options) -> Convention:
    options.take("invert_sigmas", False, False)
    dynamic, shift = options.take("use_dynamic_shifting", False), options.take("shift", 1.0)
    schedule = FlowSchedule() if dynamic or shift == 1 else shifted(FlowSchedule(), -2 * math.log(shift))
    return Convention(schedule, predict_flow, _FlowTime(options.take("num_train_timesteps", 1000)))


def _edm(options: Options) -> Convention:
    options.take("prediction_type", "epsilon", "epsilon")
    options.take("sigma_schedule", "karras", "karras")
    low, high, rho = (float(options.take(*pair)) for pair in (("sigma_min", 0.002), ("sigma_max", 80.0), ("rho", 7.0)))
    predict = _PredictEDM(float(options.take("sigma_data", 0.5)))
    return Convention(KarrasSchedule(low, high, rho), predict, None)


_LATENT = BetaDefaults(0.00085, 0.012)
_SCALED = _LATENT._replace(schedule="scaled_linear")
_video = partial(_variance_preserving, defaults=_SCALED, snr_shift=3.0)

_READERS: dict[Any, Callable[[Options], Convention]] = {
    "CogVideoXDDIMScheduler": _video,
    "CogVideoXDPMScheduler": _video,
    "DDIMInverseScheduler": _variance_preserving,
    "DDIMParallelScheduler": _variance_preserving,
    "DDIMScheduler": _variance_preserving,
    "DDPMParallelScheduler": _variance_preserving,
    "DDPMScheduler": _variance_preserving,
    "DEISMultistepScheduler": _variance_preserving,
    "DPMSolverMultistepInverseScheduler": _variance_preserving,
    "DPMSolverMultistepScheduler": _variance_preserving,
    "DPMSolverSDEScheduler": partial(_variance_preserving, defaults=_LATENT),
    "DPMSolverSinglestepScheduler": _variance_preserving,
    "EDMDPMSolverMultistepScheduler": _edm,
    "EDMEulerScheduler": _edm,
    "EulerAncestralDiscreteScheduler": _variance_preserving,
    "EulerDiscreteScheduler": _variance_preserving,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "FlowMatchHeunDiscreteScheduler": _flow,
    "FlowMatchLCMScheduler": _flow,
    "HeunDiscreteScheduler": partial(_variance_preserving, defaults=_LATENT),
    "KDPM2AncestralDiscreteScheduler": partial(_variance_preserving, defaults=_LATENT),
    "KDPM2DiscreteScheduler": partial(_variance_preserving, defaults=_LATENT),
    "LCMScheduler": partial(_variance_preserving, defaults=_SCALED),
    "LMSDiscreteScheduler": _variance_preserving,
    "PNDMScheduler": _variance_preserving,
    "RePaintScheduler": _variance_preserving,
    "SASolverScheduler": _variance_preserving,
    "TCDScheduler": partial(_variance_preserving, defaults=_SCALED),
    "UnCLIPScheduler": partial(_variance_preserving, defaults=BetaDefaults(schedule="squaredcos_cap_v2")),
    "UniPCMultistepScheduler": _variance_preserving,
}
