"""Networks and denoisers of the folders that diffusers' `save_pretrained` writes."""

import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .._denoiser import Denoiser, Time
from .._schedule import AbstractSchedule, DiscreteSchedule
from ._options import Options, read_json
from ._scheduler import Convention, convention, has_scheduler
from ._weights import existing, read_weights

_BUILDERS = {
    "DiTTransformer2DModel": "_dit",
    "Transformer2DModel": "_dit",
    "UNet2DConditionModel": "_unet_2d_condition",
    "UNet2DModel": "_unet_2d",
}
# What diffusers' EMAModel says of itself in the configuration of the network it averages.
_AVERAGED = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")


def from_diffusers(folder: str | os.PathLike[str], *, variant: str | None = None) -> Any:
    """The network `net(z, t, cond)` of a model's folder: `config.json` and weights in safetensors, whole or sharded.

    A `UNet2DModel`, `UNet2DConditionModel` or `DiTTransformer2DModel` (formerly a `Transformer2DModel`). Every tensor
    and every option is used or refused. A `UNet2DConditionModel` takes a `momentax.nn.Text`; that of Stable Diffusion
    attends to the padding of its texts, so pass all the encoder's embeddings, and no mask.

    Args:
        folder: the model's; or a training's output, whose average (`unet_ema`) is taken where there is one beside the
            model (`unet`), with a warning that says so.
        variant: the weights' variant, as in `diffusion_pytorch_model.fp16.safetensors`; of None the plain weights, or,
            with a warning, those of the only variant there is.

    Raises:
        ValueError: for another class, an option that is not supported, a tensor that is missing, left over or
            misshapen, and for weights as a pickle, which are never read.
    """
    folder = _of_training(Path(folder))
    path = existing(folder / "config.json")
    values = read_json(path)
    name = values.get("_class_name")
    if name not in _BUILDERS:
        raise ValueError(f"needs a model out of {sorted(_BUILDERS)}; got {name!r} in {path}; choose another")
    options, tensors = Options(values, path), read_weights(folder, variant)
    net = importlib.import_module(f".{_BUILDERS[name]}", __package__).build(options, tensors)
    for average in _AVERAGED:
        options.take(average, None)
    options.finish()
    tensors.finish()
    return net


def denoiser_from_diffusers(
    folder: str | os.PathLike[str],
    *,
    predict: Callable[..., Any] | None = None,
    schedule: DiscreteSchedule | None = None,
    scheduler: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    variant: str | None = None,
    rounded: bool = False,
) -> Denoiser:
    r"""The denoiser of a pipeline's folder: its network, with the prediction and the time its scheduler names.

    In variance-preserving scaling, whose data is what the network was trained on: a latent model's latents, scaled.
    Its floating-point leaves are the network's own: no table of a schedule is among them to be trained. What only a
    sampler does, as the clipping of DDPM (`momentax.clipped`), is left out.

    Args:
        folder: a pipeline's, with `model_index.json`, or one model's or a training's, which needs `scheduler`, or
            `predict` and `schedule`, unless a `scheduler_config.json` lies in it.
        predict: for one model's folder, `momentax.predict_eps` or another.
        schedule: for one model's folder, the table it was trained with.
        scheduler: for one model's folder, the settings of a scheduler, or their file, its folder or a pipeline's.
        variant: the weights' variant, as in `from_diffusers`.
        rounded: gives the network the nearest whole step of its table; by default it is given fractions, which
            embeddings by sines and cosines extend to.

    Raises:
        ValueError: for what `from_diffusers` and `schedule_from_diffusers` refuse; for `rounded` without a table.
        FileNotFoundError: where there is no such folder, or a file is missing in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"needs a folder that diffusers wrote; got none at {folder}; check the path")
    if (folder / "model_index.json").is_file():
        _check_unset(folder, predict, schedule, scheduler)
        model, (table, predict, time) = _part(folder, _network_of(folder)), convention(folder)
    else:
        model, (table, predict, time) = folder, _given(folder, predict, schedule, scheduler)
    net, time = from_diffusers(model, variant=variant), _rounded(table, folder) if rounded else time
    return Denoiser(net, predict, time, table)


def _check_unset(folder: Path, *told: Any) -> None:
    if any(one is not None for one in told):
        raise ValueError(
            f"needs no predict, schedule or scheduler for a pipeline, which has its own; got one with {folder}; pass"
            " the folder of its network"
        )


def _given(folder: Path, predict: Callable[..., Any] | None, schedule: Any, scheduler: Any) -> Convention:
    if scheduler is not None and (predict is not None or schedule is not None):
        raise ValueError("needs a scheduler, or predict and schedule; got both; leave one out: a scheduler names them")
    if scheduler is not None:
        return convention(scheduler)
    if predict is not None and schedule is not None:
        return Convention(schedule, predict, schedule.step)
    if predict is None and schedule is None and has_scheduler(folder):
        return convention(folder)
    raise ValueError(
        f"needs predict and schedule, or a scheduler, for one model's folder; got {folder} without a model_index.json;"
        " pass them, or the pipeline's folder"
    )


def _rounded(schedule: AbstractSchedule, folder: Path) -> Time:
    if not isinstance(schedule, DiscreteSchedule):
        raise ValueError(f"needs a table of steps to round to; got continuous time in {folder}; pass rounded=False")
    return schedule.nearest_step


def _network_of(folder: Path) -> str:
    index = read_json(folder / "model_index.json")
    names = [name for name in ("unet", "transformer") if any(index.get(name) or ())]
    if len(names) != 1:
        raise ValueError(
            f"needs a pipeline with one unet or transformer; got {names} in {folder / 'model_index.json'};"
            " pass the folder of one network with a scheduler"
        )
    return names[0]


def _part(folder: Path, name: str) -> Path:
    """A pipeline's part; in old pipelines of one network everything lies side by side."""
    average = folder / f"{name}_ema"
    if _is_model(average):
        warnings.warn(f"{folder} is a pipeline with {name}, which is taken, and not {average.name}", stacklevel=3)
    return folder / name if (folder / name).is_dir() else folder


def _of_training(folder: Path) -> Path:
    """A model's own folder; in a training's output its only network, or its average."""
    if (folder / "config.json").is_file():
        return folder
    kinds = [name for name in ("unet", "transformer") if _is_model(folder / name) or _is_model(folder / f"{name}_ema")]
    if len(kinds) != 1:
        return folder
    model, average = folder / kinds[0], folder / f"{kinds[0]}_ema"
    if _is_model(model) and _is_model(average):
        warnings.warn(f"{folder} has {model.name} and its average {average.name}, which is taken", stacklevel=3)
    return average if _is_model(average) else model


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()
